"""The worker thread: takes prompts one after the other and runs them."""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_server.simulator.execution import Cache, PromptRun, Stage, WorkerDied
from gpu_server.simulator.prompt_queue import Item, PromptQueue

log = logging.getLogger(__name__)

MAX_EXECUTED_IDS = 10_000


@dataclass(slots=True)
class Counts:
    """What happened since the start."""

    prompts: int = 0
    """Accepted prompts."""
    executions: int = 0
    """Prompts whose execution began."""
    uploads: int = 0
    executed_ids: deque[str] = field(default_factory=lambda: deque[str](maxlen=MAX_EXECUTED_IDS))
    executions_s: deque[tuple[str, float, float]] = field(
        default_factory=lambda: deque[tuple[str, float, float]](maxlen=MAX_EXECUTED_IDS)
    )
    """Prompt id, begin and end of each execution, in seconds of a clock that never goes back."""
    ledger: Path | None = None
    """File that keeps each execution beyond this process: time, process id, prompt id."""

    def begun(self, prompt_id: str) -> None:
        """Count an execution."""
        self.executions += 1
        self.executed_ids.append(prompt_id)
        if self.ledger is not None:
            with self.ledger.open("a") as file:
                file.write(f"{time.time():.6f} {os.getpid()} {prompt_id}\n")


class Interrupt:
    """The one flag that stops whatever runs."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def ask(self) -> None:
        """Ask the running prompt to stop."""
        self._asked.set()

    def clear(self) -> None:
        """Forget what was asked."""
        self._asked.clear()

    def take(self) -> bool:
        """Return whether it was asked, and forget it."""
        asked = self._asked.is_set()
        self._asked.clear()
        return asked


class Worker:
    """One life of the worker thread; after a simulated restart another one takes its place."""

    def __init__(
        self, queue: PromptQueue, stage: Stage, interrupt: Interrupt, counts: Counts
    ) -> None:
        self._queue = queue
        self._interrupt = interrupt
        self._counts = counts
        self._gone = threading.Event()
        self._cache: Cache = {}
        send = self._guarded(stage.send)
        self._stage = replace(stage, send=send, interrupted=self._must_stop)
        self._thread = threading.Thread(target=self._work, name="prompt worker", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether prompts are being taken."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to take prompts."""
        self._thread.start()

    def abandon(self) -> None:
        """Let it take no more prompts and say nothing more."""
        self._gone.set()

    def _must_stop(self) -> bool:
        if self._gone.is_set():
            raise WorkerDied
        return self._interrupt.take()

    def _guarded(self, send: Callable[[str, Any, Any], None]) -> Callable[[str, Any, Any], None]:
        def guarded(event: str, data: Any, client_id: Any) -> None:  # noqa: ANN401 - JSON
            if not self._gone.is_set():
                send(event, data, client_id)

        return guarded

    def _closed(self) -> bool:
        if self._stage.knobs.current.wedge == "idle":
            self._stage.knobs.update({"wedge": None})
            raise WorkerDied
        return self._gone.is_set()

    def _work(self) -> None:
        try:
            while not self._gone.is_set():
                taken = self._queue.take(self._closed)
                if taken is not None:
                    self._run(*taken)
                self._free(self._queue.take_flags())
        except WorkerDied:
            log.warning("the worker stopped; prompts are accepted but nothing runs any more")
        except Exception:
            # What kills ComfyUI's worker kills this one: the prompt stays "running" for ever.
            log.exception("the worker died of a prompt; nothing runs any more")

    def _run(self, ticket: int, item: Item) -> None:
        self._interrupt.clear()
        self._counts.begun(item[1])
        settings = self._stage.knobs.current
        held: list[tuple[str, Any, Any]] = []
        stage = self._stage
        if settings.late_executed:
            stage = replace(stage, send=_holding_back("executed", stage.send, held))
        run = PromptRun(item, self._cache, stage)
        began = time.monotonic()
        verdict = run.execute()
        self._counts.executions_s.append((item[1], began, time.monotonic()))
        if self._gone.is_set():
            raise WorkerDied
        delay = settings.history_delay_ms / 1000
        if delay == 0:
            self._queue.remember(ticket, verdict)
            self._queue.forget_running(ticket)
        else:
            self._later(delay, ticket, lambda: self._queue.remember(ticket, verdict))
            if settings.history_gap:
                self._queue.hide_running(ticket)
        if run.client_id is not None:
            end = {"node": None, "prompt_id": run.prompt_id}
            self._stage.send("executing", end, run.client_id)
        for event, data, client_id in held:
            self._stage.send(event, data, client_id)

    def _later(self, delay: float, ticket: int, remember: Callable[[], None]) -> None:
        def finish() -> None:
            # After a simulated restart there is nothing left to remember.
            with contextlib.suppress(KeyError):
                remember()
                self._queue.forget_running(ticket)

        timer = threading.Timer(delay, finish)
        timer.daemon = True
        timer.start()

    def _free(self, flags: set[str]) -> None:
        if "free_memory" in flags:
            self._cache.clear()


def _holding_back(
    event: str, send: Callable[[str, Any, Any], None], held: list[tuple[str, Any, Any]]
) -> Callable[[str, Any, Any], None]:
    def hold_or_send(name: str, data: Any, client_id: Any) -> None:  # noqa: ANN401 - JSON
        if name == event:
            held.append((name, data, client_id))
        else:
            send(name, data, client_id)

    return hold_or_send
