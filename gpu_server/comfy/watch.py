"""Looks after runs whose events may have been missed: slow polling behind the websocket.

Runs only while there are runs to look after: every few seconds, and at once after a reconnect. One
look reads `/queue` once and `/history` for each run that is not in it.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpu_server.comfy.failures import ComfyUnavailable, RunFailed
from gpu_server.comfy.http import ComfyHttp, QueueIds
from gpu_server.comfy.run import Followed

_log = logging.getLogger(__name__)

_DEAF_S = 1.0
"""A live socket hears something that long before a run is found finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds."""

    silent_after_s: float = 1800
    """A node runs that long without any event: the worker is dead."""
    settle_s: float = 10
    """After the end of a run its history entry may be that late."""
    confirm_s: float = 1
    """Until a run missing from queue and history is looked for once more."""
    interrupt_every_s: float = 0.5
    """Between two interrupts of a run that won't stop; grows to eight times that."""
    retry_wedged_s: float = 60
    """A worker that took no prompts is given one again after so long with an empty queue."""


class Watch:
    """Reconciles the open runs with ComfyUI's queue and history, and notices a dead worker."""

    def __init__(
        self,
        http: ComfyHttp,
        runs: Mapping[str, Followed],
        patience: Patience,
        *,
        reconcile_s: float,
        wedged_after_s: float,
        conclude: Callable[[Followed, Mapping[str, Any]], Awaitable[None]],
        reconnect: Callable[[float], None],
    ) -> None:
        self._http = http
        self._runs = runs
        self._patience = patience
        self._reconcile_s = reconcile_s
        self._wedged_after_s = wedged_after_s
        self._conclude = conclude
        self._reconnect = reconnect
        self._kicked = asyncio.Event()
        self._idle_since: float | None = None
        self._stuck_id: str | None = None
        self._empty_since: float | None = None
        self.wedged: str | None = None
        """Why the worker is taken for dead; None while it isn't."""
        self.in_node = False
        """The last events said that some node executes."""
        self.away_since: float | None = time.monotonic()
        """Since when the websocket is down, by `time.monotonic`."""

    def kick(self) -> None:
        """Look at once."""
        self._kicked.set()

    def alive(self, kind: str, node: object, *, greeting: bool) -> None:
        """Note an event of the worker: it lives, or lived when it is a greeting."""
        self.in_node = node is not None and kind in ("executing", "progress", "progress_state")
        if greeting:
            return
        self._idle_since = None
        if self.wedged:
            _log.warning("ComfyUI's worker executes again")
            self.wedged = self._stuck_id = None

    def connected(self) -> None:
        """Start afresh: the server may be a new process, and missed events count no silence."""
        self.away_since = None
        self._idle_since = None
        now = time.monotonic()
        for run in self._runs.values():
            run.last_event = now
        if self._stuck_id is None:
            self.wedged = None
        self.kick()

    def disconnected(self) -> None:
        """Note that the websocket is down."""
        self.in_node = False
        if self.away_since is None:
            self.away_since = time.monotonic()

    async def run(self) -> None:
        """Look for ever; ends by cancellation."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                await self._look()
            except ComfyUnavailable:
                for run in self._runs.values():
                    run.misses = 0
                self._give_up_waiting()
            except Exception:  # noqa: BLE001 - logged with its traceback
                # One odd answer must not end the watch over all later runs.
                _log.exception("looking at ComfyUI's queue failed")

    def _pause(self) -> float | None:
        if not self._runs and self.wedged is None:
            return None
        if any(run.misses for run in self._runs.values()):
            return min(self._patience.confirm_s, self._reconcile_s)
        return self._reconcile_s

    async def _look(self) -> None:
        # Chosen before the queue is read: a run posted meanwhile isn't in what was read.
        open_runs = [each for each in self._runs.values() if each.posted and not each.settling]
        self._give_up_waiting()
        if not open_runs and self.wedged is None:
            return
        queue = await self._http.queue()
        for run in open_runs:
            if run.run_id in queue.running:
                run.misses = 0
                run.begin()
            elif run.run_id in queue.pending:
                run.misses = 0
            else:
                await self._find(run)
        self._judge(queue, [run for run in open_runs if not run.over.is_set()])
        if self.wedged:
            await self._clear(queue)

    async def _find(self, run: Followed) -> None:
        entry = await self._http.history(run.run_id)
        if run.over.is_set() or run.settling:
            return
        if entry is not None:
            await self._conclude(run, entry)
            # Its end was not heard: the socket may be one that ComfyUI no longer knows.
            self._reconnect(_DEAF_S)
            return
        run.misses += 1
        if run.misses > 1:
            run.give_up()

    def _give_up_waiting(self) -> None:
        if self.away_since is None:
            return
        away = time.monotonic() - self.away_since
        for run in list(self._runs.values()):
            if away > run.timeout_s:
                run.fail(ComfyUnavailable())

    def _judge(self, queue: QueueIds, runs: list[Followed]) -> None:
        """Decide whether the worker thread is dead: ComfyUI answers as if nothing had happened."""
        now, limit = time.monotonic(), self._wedged_after_s
        if self._stuck_id is not None and self._stuck_id not in queue.running:
            self.wedged = self._stuck_id = None
        if self.wedged and self._stuck_id is None and self._may_live(queue, now):
            _log.warning("ComfyUI's worker is tried again")
            self.wedged = None
        if queue.pending and not queue.running:
            self._idle_since = self._idle_since or now
            if now - self._idle_since >= limit:
                self._give_all_up("its worker takes no more prompts")
            return
        self._idle_since = None
        for run in runs:
            if run.run_id not in queue.running:
                continue
            silent = now - run.last_event
            patient = self.in_node or run.deaf
            if silent >= limit / 2 and not run.probed:
                # A socket ComfyUI no longer knows looks the same: a new one tells.
                run.probed = True
                self._reconnect(0)
            elif silent >= (self._patience.silent_after_s if patient else limit):
                self._stuck_id = run.run_id
                self._give_all_up("its worker stopped in the middle of a prompt")

    def _may_live(self, queue: QueueIds, now: float) -> bool:
        """Whether a worker that took no prompts took one, or deserves another try.

        An empty queue tells nothing of it, not even when it has revived: only a prompt can show.
        """
        if queue.running:
            return True
        self._empty_since = None if queue.pending else self._empty_since or now
        if self._empty_since is None or now - self._empty_since < self._patience.retry_wedged_s:
            return False
        self._idle_since = self._empty_since = None
        return True

    def _give_all_up(self, why: str) -> None:
        if self.wedged is None:
            self._empty_since = None
            self.wedged = f"ComfyUI answers, but {why}: restart it"
            _log.error("%s", self.wedged)
        for run in list(self._runs.values()):
            if run.posted:
                run.fail(wedged_failure())

    async def _clear(self, queue: QueueIds) -> None:
        """Take our prompts back: they run elsewhere, a worker that revives must not repeat them."""
        ours = [each for each in self._runs if each in queue.pending]
        if ours:
            await self._http.dequeue(ours)


def wedged_failure() -> RunFailed:
    """Return what a run fails with whose ComfyUI no longer executes anything."""
    return RunFailed("transient", "comfyui_wedged", "ComfyUI no longer executes anything")
