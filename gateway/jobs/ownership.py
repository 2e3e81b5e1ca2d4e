"""Which runs this replica drives: its heartbeat, its window, and taking over what nobody drives."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable
from gateway.db.owners import OwnerRows
from gateway.jobs.settings import JobSettings

_log = logging.getLogger(__name__)

REFILL = 0.9
"""A window is filled up again once it has fallen to this share."""


class Ownership:
    """`taken(run, state)` is called for each run that became this replica's by takeover."""

    def __init__(
        self,
        *,
        replica: str,
        db: Database,
        settings: JobSettings,
        clock: Clock,
        taken: Callable[[str, str], None],
    ) -> None:
        self.replica = replica
        self._db = db
        self._rows = OwnerRows(db)
        self._settings = settings
        self._clock = clock
        self._taken = taken
        self._callers: dict[str, str] = {}
        """Callers of the open jobs owned here; bounds the window, nothing else depends on it."""
        self._owned = Counter[str]()
        self._unowned = 0
        self._room_made = asyncio.Event()

    @property
    def open_jobs(self) -> int:
        """Open jobs owned here, and those nobody owns as of the last heartbeat."""
        return len(self._callers) + self._unowned

    def admit(self, job_id: str, caller: str) -> str | None:
        """Owner of a job about to be written: this replica while its window has room."""
        if len(self._callers) >= self._settings.window or self._room_of(caller) <= 0:
            self._unowned += 1
            return None
        self._own(job_id, caller)
        return self.replica

    def ended(self, job_id: str) -> None:
        """A job has ended, or was never written."""
        caller = self._callers.pop(job_id, None)
        if caller is None:
            return
        self._owned[caller] -= 1
        if not self._owned[caller]:
            del self._owned[caller]
        if self._unowned and self._owned[caller] <= REFILL * self._settings.per_caller:
            self._room_made.set()

    async def enter(self) -> None:
        """Prove or announce ownership, then take over what the dead left. Raises FolderInUse."""
        alone = self._db.claim()
        await self._rows.enter(self.replica, self._clock.now(), alone=alone)
        await self.take_over()

    async def leave(self) -> None:
        """Give every run back at once."""
        await self._rows.leave(self.replica)
        self._db.release()

    async def run(self) -> None:
        """Beat and take over until cancelled."""
        beat_s = self._settings.lease_s / 3
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + beat_s
        while True:
            self._room_made.clear()
            try:
                async with asyncio.timeout_at(next_beat):
                    await self._room_made.wait()
            except TimeoutError:
                next_beat = loop.time() + beat_s
                await self._safely_beat()
            await self._safely_take_over()

    async def take_over(self) -> None:
        """Make what nobody drives this replica's, as far as there is room."""
        taken = await self._rows.take_over(
            self.replica,
            dead_since=self._clock.now() - timedelta(seconds=self._settings.lease_s),
            room=self._settings.window - len(self._callers),
            room_of=self._room_of,
        )
        for row in taken:
            self._own(row["job_id"], row["caller"])
            self._taken(row["id"], row["state"])
        self._unowned = await self._rows.unowned()
        if taken:
            _log.info("took over %d runs", len(taken))

    async def _safely_beat(self) -> None:
        try:
            await self._rows.beat(self.replica, self._clock.now())
        except DatabaseUnavailable:
            _log.warning("heartbeat: the database does not answer", exc_info=True)

    async def _safely_take_over(self) -> None:
        try:
            await self.take_over()
            # a run that has a place and no driver here lost it to a write whose answer went missing
            for run_id in await self._rows.under_way(self.replica):
                self._taken(run_id, "granted")
        except DatabaseUnavailable:
            _log.warning("takeover: the database does not answer", exc_info=True)

    def _own(self, job_id: str, caller: str) -> None:
        if job_id not in self._callers:
            self._callers[job_id] = caller
            self._owned[caller] += 1

    def _room_of(self, caller: str) -> int:
        return self._settings.per_caller - self._owned[caller]
