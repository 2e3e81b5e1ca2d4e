"""The client of one ComfyUI: run a graph under an id of our own, and never twice.

    async for event in client.run(run_id, graph, timeout_s=600): ...

A run is POSTed with our id as ComfyUI's `prompt_id`; its events come over one websocket, its
verdict from `/history`. Whoever follows a run may die: the prompt goes on, and `run` with the same
id, in this process or the next one, adopts it.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import httpx

from gpu_server.comfy.failures import (
    ComfyUnavailable,
    RunCancelled,
    RunFailed,
    verdict,
)
from gpu_server.comfy.http import ComfyHttp
from gpu_server.comfy.post import Poster, encode, happens
from gpu_server.comfy.preview import Picture, parse
from gpu_server.comfy.run import ComfyFile, Finished, Followed, RunEvent
from gpu_server.comfy.socket import ComfySocket
from gpu_server.comfy.watch import Patience, Watch
from gpu_server.graph_check import Graph, InvalidGraph, check_graph
from gpu_server.journal import Journal
from gpu_server.protocol import Engine

_log = logging.getLogger(__name__)

_GREET_AGAIN_S = 0.25
_STOP_S = 10.0
"""How long a run that failed here may take to stop there before its failure is told."""


class ComfyClient:
    """One ComfyUI (or its simulator); all methods belong to the loop that called `start`.

    Args:
        url: ComfyUI's http(s) address.
        journal: stays open as long as the client.
        http: a connection pool to use instead of an own one.
        reconcile_s: between two looks at the queue while runs are open.
        posting_grace_s: how long a run that may have been POSTed is looked for.
        wedged_after_s: how long ComfyUI's worker may stand still before it counts as dead.
        patience: the waits hardly anybody changes.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        *,
        http: httpx.AsyncClient | None = None,
        reconcile_s: float = 5,
        posting_grace_s: float = 5,
        wedged_after_s: float = 60,
        patience: Patience | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._journal = journal
        self._http = ComfyHttp(url, http)
        self._patience = patience or Patience()
        self._ready = asyncio.Event()
        self._runs: dict[str, Followed] = {}
        self._watch = Watch(
            self._http,
            self._runs,
            self._patience,
            reconcile_s=reconcile_s,
            wedged_after_s=wedged_after_s,
            conclude=self._conclude,
            reconnect=self._reconnect,
        )
        self._poster = Poster(
            self._http,
            journal,
            self._watch,
            ready=self._ready,
            stop=self._give_up,
            posting_grace_s=posting_grace_s,
        )
        self._client_id = ""
        self._socket: ComfySocket | None = None
        self._connects = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._callbacks: list[Callable[[], Awaitable[None] | None]] = []
        self._viewer: Callable[[str, Picture], None] | None = None
        self._executing: str | None = None
        """The prompt last heard executing."""
        self._specs: dict[str, Any] | None = None
        self.engine: Engine | None = None
        """What answers at `url`, learned at every connect; None before the first."""
        self.version: str | None = None
        """ComfyUI's version."""

    @property
    def available(self) -> bool:
        """Whether a run posted now would execute: connected, greeted, its worker alive."""
        return self._ready.is_set() and self._watch.wedged is None

    @property
    def trouble(self) -> str | None:
        """Why it is not available; None when it is."""
        if not self._ready.is_set():
            return "ComfyUI does not answer"
        return self._watch.wedged

    def on_connect(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        """Have `callback` called after every connect, once `engine` is known."""
        self._callbacks.append(callback)

    def on_picture(self, viewer: Callable[[str, Picture], None]) -> None:
        """Have `viewer` called with each preview and the id of its run."""
        self._viewer = viewer

    async def start(self) -> None:
        """Begin to connect; ComfyUI may be away, it is tried until `close`."""
        self._client_id = await self._journal.client_id()
        self._socket = ComfySocket(self._url, self._client_id, self)
        self._socket.start()
        self._spawn(self._watch.run())

    async def close(self) -> None:
        """Disconnect; prompts go on in ComfyUI and are adopted by the next process."""
        self._closed = True
        self._ready.clear()
        if self._socket is not None:
            await self._socket.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()

    async def object_info(self, *, refresh: bool = False) -> dict[str, Any]:
        """Return ComfyUI's node definitions, read once a connection; raises ComfyUnavailable."""
        if self._specs is None or refresh:
            content = await self._http.object_info()
            self._specs = await asyncio.to_thread(_definitions, content)
        return self._specs

    async def upload(
        self, *, name: str, subfolder: str, media_type: str, chunks: AsyncIterator[bytes]
    ) -> str:
        """Stream a file into ComfyUI's input folder; return the name a graph must use for it."""
        return await self._http.upload(
            name=name, subfolder=subfolder, media_type=media_type, chunks=chunks
        )

    def view(self, file: ComfyFile) -> AbstractAsyncContextManager[httpx.Response]:
        """Open a produced file; read it with `aiter_bytes`, whose errors are httpx's own."""
        return self._http.view(filename=file.filename, subfolder=file.subfolder, kind=file.type)

    async def free(self) -> None:
        """Have ComfyUI unload its models, after the prompt that runs."""
        await self._http.free()

    async def forget(self, run_id: str) -> None:
        """Drop a finished run from ComfyUI's history."""
        with contextlib.suppress(ComfyUnavailable):
            await self._http.forget(run_id)

    async def run(
        self, run_id: str, graph: Graph, *, timeout_s: float
    ) -> AsyncGenerator[RunEvent, None]:
        """Run a graph, or adopt the run if ComfyUI has it already; `Finished` comes last.

        Leaving the iteration early leaves the prompt to ComfyUI: `interrupt` stops it.

        Args:
            run_id: a lowercase UUID, ComfyUI's `prompt_id`.
            graph: what to run; ignored when the run is adopted.
            timeout_s: from the start of execution, and for waiting on a ComfyUI that is away.

        Raises:
            RunFailed: with the failure to report.
            RunCancelled: it was interrupted by `interrupt`.
        """
        if (earlier := self._runs.get(run_id)) is not None:
            earlier.abandon()
        run = Followed(run_id, graph, timeout_s)
        self._runs[run_id] = run
        # With nothing open the watch sleeps for good: this run's events may never come.
        self._watch.kick()
        try:
            await self._poster.place(run, self._encode(run_id, graph))
            while True:
                event = await self._next(run)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            run.abandon()
            if self._runs.get(run_id) is run:
                del self._runs[run_id]

    async def interrupt(self, run_id: str) -> None:
        """Stop a run, pending or running, and return when it has ended; finished is no error."""
        run = self._runs.get(run_id)
        if run is not None:
            run.cancel_asked = True
            if not run.sent:
                run.fail(RunCancelled())
        delay = self._patience.interrupt_every_s
        while not self._closed and self._watch.wedged is None:
            if run is not None and run.concluded:
                return
            # Repeated, for an interrupt between two prompts is lost, and a node may not listen.
            with contextlib.suppress(ComfyUnavailable):
                if await self._stop(run_id, run):
                    return
            if run is None or run.over.is_set():
                await asyncio.sleep(delay)
            else:
                await happens(run.over, delay)
            delay = min(2 * delay, 8 * self._patience.interrupt_every_s)

    def _encode(self, run_id: str, graph: Graph) -> bytes:
        try:
            check_graph(graph, self._specs)
        except InvalidGraph as error:
            raise RunFailed("fatal", "invalid_graph", error.message, node=error.node) from None
        return encode(run_id, self._client_id, graph)

    async def _stop(self, run_id: str, run: Followed | None) -> bool:
        """Try once to stop a prompt; True when ComfyUI no longer has it."""
        await self._http.dequeue([run_id])
        queue = await self._http.queue()
        if run_id in queue.running:
            await self._http.interrupt(run_id)
            return False
        if run_id in queue.pending:
            return False
        if run is None or run.over.is_set():
            return True
        if not run.posted:
            return False  # a POST is under way: what it does is seen at the next try
        entry = await self._http.history(run_id)
        if entry is not None:
            await self._conclude(run, entry)
        else:
            run.give_up()
        return True

    async def _give_up(self, run_id: str) -> None:
        """Stop a prompt whose run has failed here, without waiting for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await self.interrupt(run_id)

    async def _next(self, run: Followed) -> RunEvent:
        if run.started_at is None:
            return await run.next()
        try:
            async with asyncio.timeout_at(run.started_at + run.timeout_s):
                return await run.next()
        except TimeoutError:
            if not self._ready.is_set():
                raise ComfyUnavailable from None
            await self._give_up(run.run_id)
            message = f"the execution took longer than the {run.timeout_s:g} s it may"
            raise RunFailed("fatal", "timeout", message) from None

    def opened(self) -> None:
        """Greet ComfyUI (called by the websocket)."""
        self._specs = None
        self._connects += 1
        self._spawn(self._greet(self._connects))

    def closed(self) -> None:
        """Note that the websocket is down (called by the websocket)."""
        self._connects += 1
        self._ready.clear()
        self._watch.disconnected()

    def heard(self, kind: str, data: dict[str, Any]) -> None:
        """Route an event to its run (called by the websocket)."""
        if kind in ("status", "feature_flags"):
            return
        begun = "any" if kind == "progress_state" else data.get("node")
        # Only the `executing` that greets a reconnect has no prompt_id: it tells of the past.
        self._watch.alive(kind, begun, greeting="prompt_id" not in data)
        run = self._runs.get(str(data.get("prompt_id")))
        if kind == "executing":
            self._executing = None if run is None or begun is None else run.run_id
        if run is not None and run.heard(kind, data) and not run.settling:
            run.settling = True
            self._spawn(self._settle(run))

    def pictured(self, frame: bytes) -> None:
        """Pass a preview on to whom it may concern (called by the websocket)."""
        picture = None if self._viewer is None else parse(frame)
        if self._viewer is None or picture is None:
            return
        run_id = picture.run_id or self._executing
        if run_id is not None:
            self._viewer(run_id, picture)

    async def _greet(self, connect: int) -> None:
        """Learn who answers, then let runs through."""
        while True:
            try:
                engine, version = await self._http.engine(), await self._http.version()
                break
            except ComfyUnavailable:
                await asyncio.sleep(_GREET_AGAIN_S)
        if connect != self._connects:
            return  # the socket this was about is gone already
        self.engine, self.version = engine, version
        self._ready.set()
        self._watch.connected()
        for callback in self._callbacks:
            try:
                result = callback()
                if result is not None:
                    await result
            except Exception:  # noqa: BLE001 - a callback's fault must not end the connection
                _log.exception("a callback after connecting to ComfyUI failed")

    async def _settle(self, run: Followed) -> None:
        """Fetch the verdict of a run that ended; the entry may come a little later."""
        delay, until = 0.005, time.monotonic() + self._patience.settle_s
        try:
            while time.monotonic() < until and not run.over.is_set():
                entry = await self._http.history(run.run_id)
                if entry is not None:
                    await self._conclude(run, entry)
                    return
                await asyncio.sleep(delay)
                delay = min(2 * delay, 0.5)
        except ComfyUnavailable:
            _log.info("ComfyUI went away before it told how run %s ended", run.run_id)
        run.settling = False
        self._watch.kick()

    async def _conclude(self, run: Followed, entry: Mapping[str, Any]) -> None:
        """End a run by its history entry; after running out of memory, ComfyUI gives it back."""
        failure = verdict(entry)
        if failure is not None and failure.failure.code == "out_of_memory":
            with contextlib.suppress(ComfyUnavailable):
                await self._http.free()
        run.conclude(entry, failure)

    def _reconnect(self, silent_s: float) -> None:
        """Renew the websocket if it has heard nothing for so long."""
        socket = self._socket
        if socket is not None and time.monotonic() - socket.last_message >= silent_s:
            _log.info("renewing ComfyUI's websocket")
            socket.reconnect()

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _definitions(content: bytes) -> dict[str, Any]:
    try:
        found: object = json.loads(content)
    except ValueError:
        raise ComfyUnavailable("ComfyUI's node definitions are no JSON") from None
    return cast("dict[str, Any]", found)
