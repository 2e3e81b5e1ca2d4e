"""How a run gets into ComfyUI exactly once: adopt it if it may be there, else POST it."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from gpu_server.comfy.failures import ComfyUnavailable, RunCancelled, RunFailed, rejected
from gpu_server.comfy.http import Answer, ComfyHttp, NotSent
from gpu_server.comfy.run import Followed
from gpu_server.comfy.watch import Watch, wedged_failure
from gpu_server.graph_check import Graph
from gpu_server.journal import Journal

_AGAIN_S = 0.25


class Poster:
    """Places runs in one ComfyUI, with the journal as memory of what may have been sent."""

    def __init__(
        self,
        http: ComfyHttp,
        journal: Journal,
        watch: Watch,
        *,
        ready: asyncio.Event,
        stop: Callable[[str], Awaitable[None]],
        posting_grace_s: float,
    ) -> None:
        """Args: `ready` is set while ComfyUI is connected; `stop` ends a prompt there."""
        self._http = http
        self._journal = journal
        self._watch = watch
        self._ready = ready
        self._stop = stop
        self._posting_grace_s = posting_grace_s

    async def place(self, run: Followed, body: bytes) -> None:
        """Return once ComfyUI has the run, or the run is over; raise what it refuses it for."""
        before = await self._journal.claim(run.run_id)
        if before == "cancelled":
            run.fail(RunCancelled())
            return
        if before not in (None, "accepted", "posting"):
            run.sent = run.posted = True
            self._watch.kick()
            return
        if before == "posting":
            run.sent = True
            if await self._search(run):
                await self._adopt(run)
                return
        # Without its row nobody knows that it was never sent: the journal may have been lost while
        # ComfyUI went on, or be another service's. Two small questions, 2 ms before each prompt,
        # which is cheaper than to know for sure when they are needless.
        elif await self._is_there(run):
            # Its events go to the clientId of whoever sent it.
            run.deaf = True
            await self._adopt(run)
            return
        await self._post(run, body)

    async def _post(self, run: Followed, body: bytes) -> None:
        while await self._reachable(run):
            if run.posted:
                # Its events came: the journal is younger than the prompt.
                await self._adopt(run)
                return
            run.sent = True
            try:
                answer = await self._http.prompt(body)
            except NotSent:
                run.sent = False
                await happens(run.over, _AGAIN_S)
            except ComfyUnavailable:
                # It may have arrived all the same. If not, the next attempt has an id of its own.
                if not await self._search(run):
                    run.fail(RunCancelled() if run.cancel_asked else ComfyUnavailable())
                    return
                await self._adopt(run)
                return
            else:
                await self._answered(run, answer)
                return
            if run.cancel_asked:
                run.fail(RunCancelled())

    async def _answered(self, run: Followed, answer: Answer) -> None:
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise RunFailed("usage", "too_large", "the workflow is larger than ComfyUI accepts")
        if answer.status == HTTPStatus.BAD_REQUEST:
            raise rejected(answer.body, run.graph)
        if answer.status != HTTPStatus.OK:
            raise RunFailed("fatal", "workflow_rejected", "ComfyUI refused the workflow")
        taken_as = str(answer.body.get("prompt_id"))
        if taken_as != run.run_id:
            await self._stop(taken_as)
            raise RunFailed("fatal", "comfyui_too_old", "ComfyUI takes no ids from its clients")
        run.posted = True
        if answer.body.get("node_errors"):
            # ComfyUI runs the part of the graph it understood: not what was asked for.
            await self._stop(run.run_id)
            raise rejected(answer.body, run.graph)
        await self._journal.move(run.run_id, "posted")

    async def _adopt(self, run: Followed) -> None:
        run.posted = True
        await self._journal.move(run.run_id, "posted")
        self._watch.kick()

    async def _search(self, run: Followed) -> bool:
        """Look for a run that may have been POSTed; False: ComfyUI has it not, or it is over."""
        deadline = None
        while await self._reachable(run):
            with contextlib.suppress(ComfyUnavailable):
                if run.posted or await self._has(run.run_id):
                    return True
                deadline = deadline or time.monotonic() + self._posting_grace_s
                if time.monotonic() >= deadline:
                    return False
            await happens(run.over, _AGAIN_S)
        return False

    async def _is_there(self, run: Followed) -> bool:
        """Look once for a run that should not be there; False as well when it is over before."""
        while await self._reachable(run):
            with contextlib.suppress(ComfyUnavailable):
                return await self._has(run.run_id)
            await happens(run.over, _AGAIN_S)
        return False

    async def _has(self, run_id: str) -> bool:
        # In this order: a prompt that ends in between is in the history when that is read.
        queue = await self._http.queue()
        known = run_id in queue.running or run_id in queue.pending
        return known or await self._http.history(run_id) is not None

    async def _reachable(self, run: Followed) -> bool:
        """Wait until ComfyUI can take the run; False when the run is over before."""
        while not self._ready.is_set() and not run.over.is_set():
            await _either(self._ready, run.over)
        if self._watch.wedged is not None:
            run.fail(wedged_failure())
        return not run.over.is_set()


def encode(run_id: str, client_id: str, graph: Graph) -> bytes:
    """Return the body of POST /prompt; raises `RunFailed` for what JSON can't carry."""
    body = {"prompt": graph, "prompt_id": run_id, "client_id": client_id}
    try:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError):
        raise RunFailed("fatal", "invalid_graph", "the graph is no JSON") from None


async def happens(event: asyncio.Event, within_s: float) -> None:
    """Wait for an event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(each.wait()) for each in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
