"""One run as this process follows it: events in, a stream of what matters out (no I/O).

ComfyUI's events are hints: they may be missed, repeated or out of order. A run's verdict, and what
it produced, is its history entry; an output already announced is not announced again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from gpu_server.comfy.failures import RunCancelled, RunFailed, execution_failure
from gpu_server.comfy.progress import Meter, Stepped
from gpu_server.graph_check import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyFile:
    """A file a node put into one of ComfyUI's folders."""

    node: str
    key: str
    """Where the node lists it: `images`, `gifs`, `3d`, …; says nothing about what it is."""
    index: int
    filename: str
    subfolder: str
    type: str
    """`output`, `temp` or `input`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """ComfyUI has begun to execute the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A node's results are there, while later nodes may still run."""

    node: str
    files: tuple[ComfyFile, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run succeeded and everything it made was announced."""


RunEvent = Started | Stepped | Produced | Finished

_TELLING = frozenset({"execution_success", "execution_error", "execution_interrupted"})


class Followed:
    """A run that somebody in this process follows."""

    def __init__(self, run_id: str, graph: Graph, timeout_s: float) -> None:
        self.run_id = run_id
        self.timeout_s = timeout_s
        self.sent = False
        """A POST was tried: ComfyUI may know the run."""
        self.posted = False
        """ComfyUI knows the run, or did."""
        self.deaf = False
        """ComfyUI sends its events to somebody else: its silence means nothing."""
        self.cancel_asked = False
        self.settling = False
        """ComfyUI said it ended, the verdict is being fetched."""
        self.misses = 0
        """How often in a row it was neither queued nor in the history."""
        self.probed = False
        """The socket was renewed because of this run's silence."""
        self.last_event = time.monotonic()
        self.started_at: float | None = None
        self.over = asyncio.Event()
        """No more events: concluded, or nobody follows it any longer."""
        self.concluded = False
        self.graph = graph
        self._meter = Meter(graph)
        self._produced: set[str] = set()
        self._telling: tuple[str, dict[str, Any]] | None = None
        self._events: deque[RunEvent] = deque()
        self._end: Exception | None = None
        self._news = asyncio.Event()

    def heard(self, kind: str, data: dict[str, Any]) -> bool:
        """Take one websocket event; True when it says that the run has ended."""
        self.last_event = time.monotonic()
        if self.over.is_set():
            return False
        # An event proves that the POST arrived, whatever became of its answer.
        self.posted = True
        if kind == "executing" and data.get("node") is None:
            return True
        if kind in _TELLING:
            # A blocked branch is told like an error, yet the run goes on.
            if data.get("exception_type") != "ExecutionBlocked":
                self._telling = (kind, data)
        elif kind == "executed":
            self.begin()
            self._produce(str(data.get("node")), data.get("output"), data.get("display_node"))
        elif (step := self._step(kind, data)) is not None:
            self._emit(step)
        return False

    def begin(self) -> None:
        """Note that it executes."""
        if self.started_at is None:
            self.started_at = self.last_event = time.monotonic()
            self._emit(Started())

    def conclude(self, entry: Mapping[str, Any], failure: RunFailed | None) -> None:
        """End it by its history entry, or by the failure read from that."""
        if self.over.is_set():
            return
        self.begin()
        if failure is not None:
            self._fail_as(failure)
            return
        meta = cast("dict[str, dict[str, Any]]", entry.get("meta") or {})
        outputs = cast("dict[str, Any]", entry.get("outputs") or {})
        for node, output in outputs.items():
            self._produce(node, output, meta.get(node, {}).get("display_node"))
        self._emit(Finished())
        self._close()

    def give_up(self) -> None:
        """End a run that is neither queued nor in the history, by what was heard of it."""
        if self.cancel_asked:
            self.fail(RunCancelled())
        elif self._telling is None:
            self.fail(RunFailed("transient", "lost", "ComfyUI lost the run"))
        elif self._telling[0] == "execution_success":
            # Somebody emptied the history; its outputs came as events.
            self._emit(Finished())
            self._close()
        else:
            self._fail_as(execution_failure([self._telling]))

    def fail(self, error: Exception) -> None:
        """End it with an error; the first end counts."""
        if not self.over.is_set():
            self._end = error
            self._close()

    def abandon(self) -> None:
        """Stop following; the prompt itself goes on and can be adopted."""
        if not self.over.is_set():
            self._end = RuntimeError("another call follows this run now")
            self.over.set()
            self._news.set()

    async def next(self) -> RunEvent:
        """Return the next event; raise what ended the run after the last one."""
        while not self._events:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    def _step(self, kind: str, data: dict[str, Any]) -> Stepped | None:
        if kind not in ("execution_start", "execution_cached", "executing", *_PROGRESS):
            return None
        self.begin()
        match kind:
            case "execution_cached":
                return self._meter.cached(cast("list[Any]", data.get("nodes") or []))
            case "executing":
                return self._meter.entered(str(data.get("display_node") or data["node"]))
            case "progress":
                return self._meter.stepped(
                    str(data.get("node")),
                    float(data.get("value") or 0),
                    float(data.get("max") or 0),
                )
            case "progress_state":
                return self._meter.state(cast("dict[str, Any]", data.get("nodes") or {}))
            case _:
                return None

    def _fail_as(self, error: RunFailed) -> None:
        interrupted = error.failure.code == "interrupted"
        self.fail(RunCancelled() if interrupted and self.cancel_asked else error)

    def _produce(self, node: str, output: object, display: object) -> None:
        if node in self._produced or not isinstance(output, dict):
            return
        self._produced.add(node)
        # A node made at run time has an id the graph lacks: its maker answers for it.
        name = node if node in self.graph or not display else str(display)
        files, texts = collect(name, cast("dict[str, Any]", output))
        if files or texts:
            self._emit(Produced(node=name, files=files, texts=texts))

    def _emit(self, event: RunEvent) -> None:
        # A reader slower than the steps needs only the newest of them.
        if isinstance(event, Stepped) and self._events and isinstance(self._events[-1], Stepped):
            self._events.pop()
        self._events.append(event)
        self._news.set()

    def _close(self) -> None:
        self.concluded = True
        self.over.set()
        self._news.set()


_PROGRESS = ("progress", "progress_state")


def collect(
    node: str, output: Mapping[str, object]
) -> tuple[tuple[ComfyFile, ...], tuple[str, ...]]:
    """Return what a node's output holds: every dict with a filename is a file, strings are text."""
    files: list[ComfyFile] = []
    texts: list[str] = []
    for key, value in output.items():
        if not isinstance(value, list):
            continue
        items = cast("list[object]", value)
        if items and all(isinstance(each, str) for each in items):
            texts.extend(cast("list[str]", items))
            continue
        for index, each in enumerate(items):
            if isinstance(each, dict) and "filename" in each:
                found = cast("dict[str, Any]", each)
                files.append(
                    ComfyFile(
                        node=node,
                        key=key,
                        index=index,
                        filename=str(found["filename"]),
                        subfolder=str(found.get("subfolder") or ""),
                        type=str(found.get("type") or "output"),
                    )
                )
    return tuple(files), tuple(texts)
