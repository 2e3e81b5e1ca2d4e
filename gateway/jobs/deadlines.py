"""Ending jobs that wait beyond their deadline; those under way see to it themselves."""

import asyncio
import logging

from gateway.clock import Clock
from gateway.db import DatabaseUnavailable
from gateway.db.runs import OwnershipLost, RunRows
from gateway.jobs.endings import deadline_exceeded

_log = logging.getLogger(__name__)

AT_ONCE = 100
JUST_AFTER_S = 0.01


class Deadlines:
    """Looks once a sweep, and when the earliest deadline has come."""

    def __init__(self, *, owner: str, rows: RunRows, clock: Clock, sweep_s: float) -> None:
        self._owner = owner
        self._rows = rows
        self._clock = clock
        self._sweep_s = sweep_s
        self._near = asyncio.Event()

    def added(self, deadline_s: float) -> None:
        """A job was submitted that has so long."""
        if deadline_s < self._sweep_s:
            self._near.set()

    async def run(self) -> None:
        """End what is overdue until cancelled."""
        while True:
            self._near.clear()
            wait_s = self._sweep_s
            try:
                wait_s = await self._look()
            except DatabaseUnavailable as error:
                _log.warning("deadlines: the database does not answer (%s)", error)
            try:
                async with asyncio.timeout(wait_s):
                    await self._near.wait()
            except TimeoutError:
                continue

    async def _look(self) -> float:
        """End what is overdue; seconds until there is reason to look again."""
        now = self._clock.now()
        earliest = await self._rows.next_deadline(self._owner)
        if earliest is None:
            return self._sweep_s
        if earliest > now:
            left_s = (earliest - now).total_seconds() + JUST_AFTER_S
            return min(left_s, self._sweep_s)
        for run in await self._rows.overdue(self._owner, now, AT_ONCE):
            try:
                await self._rows.failed(run, deadline_exceeded(), now, tell_backend=False)
            except OwnershipLost:
                # placed, cancelled or ended by another gateway meanwhile
                continue
        return JUST_AFTER_S
