"""Which runs this replica drives: its heartbeat, its window, and taking over what nobody drives."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta

from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable
from gateway.db.owners import Full, OwnerRows
from gateway.jobs.settings import JobSettings

_log = logging.getLogger(__name__)

REFILL = 0.9
"""A window is filled up again once it has fallen to this share."""
BATCHES = 0.95
"""Share of a caller's window for what is below ordinary priority: a call made while a batch waits
must be seen by placement at once. More than `REFILL`, so that it is refilled by several at once."""
LATE = 1.5
"""So many times the usual, and a beat was late."""
JUST_AFTER_S = 0.02
RECOUNT_BEATS = 12
"""So often what is owned here is counted by the rows."""


class Ownership:
    """`taken(run, state)` is called for each run that became this replica's by takeover.

    `driven()` names the runs driven here; `lost(run)` is called for those of them that have become
    another's.
    """

    def __init__(
        self,
        *,
        replica: str,
        db: Database,
        backends: Collection[str],
        settings: JobSettings,
        clock: Clock,
        taken: Callable[[str, str], None],
        driven: Callable[[], Collection[str]],
        lost: Callable[[str], None],
    ) -> None:
        self.replica = replica
        self._db = db
        self._rows = OwnerRows(db, backends)
        self._settings = settings
        self._lease = timedelta(seconds=settings.lease_s)
        self._clock = clock
        self._taken = taken
        self._driven = driven
        self._lost = lost
        self._callers: dict[str, str] = {}
        """Callers of the open jobs owned here; bounds the window, nothing else depends on it."""
        self._owned = Counter[str]()
        self._unowned = 0
        self._look = asyncio.Event()
        self._beats = 0
        self._uncertain = False
        self._held = False
        self._next_death = math.inf
        self.heard = True
        """The database answered the last heartbeat."""

    @property
    def open_jobs(self) -> int:
        """Open jobs owned here, and those nobody owns as of the last heartbeat."""
        return len(self._callers) + self._unowned

    def admit(self, job_id: str, caller: str, priority: int = 0) -> str | None:
        """Owner of a job about to be written: this replica while its window has room."""
        if len(self._callers) >= self._settings.window or self._room_of(caller, priority) <= 0:
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
        if self._unowned and self._refills(caller):
            self._look.set()

    def uncertain(self) -> None:
        """A write about ownership may or may not have gone through: count by the rows again."""
        self._uncertain = True

    def look(self, caller: str = "") -> None:
        """Runs have no owner (of that caller, if named): take over what there is room for."""
        # the backlog is not gone over for each single place that gets free
        if len(self._callers) >= self._settings.window or (caller and not self._refills(caller)):
            self._unowned += 1
        else:
            self._look.set()

    async def enter(self) -> None:
        """Prove or announce ownership, then take over what the dead left. Raises FolderInUse."""
        alone = self._db.claim()
        await self._rows.enter(self.replica, self._clock.now(), self._lease, alone=alone)
        await self.take_over()

    async def living(self) -> Mapping[str, frozenset[str] | None]:
        """Replicas that are heard of regularly, and the backends each reaches (None: not known)."""
        return await self._rows.living(self.replica, self._clock.now(), self._lease / 2)

    async def leave(self) -> None:
        """Give every run back at once."""
        try:
            await self._rows.leave(self.replica)
        except DatabaseUnavailable:
            _log.warning("the database does not answer: our runs go to others after the lease")
        self._db.release()

    async def run(self) -> None:
        """Beat and take over until cancelled."""
        beat_s = self._settings.lease_s / 3
        loop = asyncio.get_running_loop()
        next_beat = loop.time() + beat_s
        while True:
            try:
                async with asyncio.timeout_at(min(next_beat, self._next_death)):
                    await self._look.wait()
            except TimeoutError:
                self._next_death = math.inf
                if loop.time() >= next_beat:
                    next_beat = loop.time() + beat_s
                    await self._safely_beat(beat_s)
            # before the look, not after it: what comes meanwhile is looked at next
            self._look.clear()
            if not self._held:
                await self._safely_take_over()

    async def take_over(self) -> None:
        """Make what nobody drives this replica's, as far as there is room."""
        taken = await self._rows.take_over(
            self.replica,
            self._clock.now(),
            lease=self._lease,
            room=self._settings.window - len(self._callers),
            full=Full(
                callers=[caller for caller in self._owned if self._room_of(caller) <= 0],
                below_ordinary=[caller for caller in self._owned if self._room_of(caller, -1) <= 0],
            ),
            room_of=self._room_of,
        )
        for row in taken:
            self._own(row["job_id"], row["caller"])
            self._taken(row["id"], row["state"])
        self._unowned = await self._rows.unowned()
        if taken:
            _log.info("took over %d runs", len(taken))

    async def _safely_beat(self, beat_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            beat = await self._rows.beat(self.replica, self._clock.now(), self._lease)
            self.heard = True
            silent_s = math.inf if beat.silent_s is None else beat.silent_s
            # after an outage of the database everybody looks dead: let the others speak up first
            self._held = silent_s > LATE * beat_s and not self._held
            if beat.next_death_s is not None and beat.next_death_s < beat_s:
                self._next_death = loop.time() + max(0.0, beat.next_death_s) + JUST_AFTER_S
            self._beats += 1
            dead = silent_s >= self._settings.lease_s
            if dead or self._uncertain or self._beats % RECOUNT_BEATS == 0:
                await self._recount(was_dead=dead)
        except DatabaseUnavailable as error:
            self._uncertain, self.heard = True, False
            _log.warning("heartbeat: the database does not answer (%s)", error)

    async def _safely_take_over(self) -> None:
        try:
            await self.take_over()
            # a run that has a place and no driver here lost it to a write whose answer went missing
            for run_id in await self._rows.under_way(self.replica):
                self._taken(run_id, "granted")
        except DatabaseUnavailable as error:
            self._uncertain = True
            _log.warning("takeover: the database does not answer (%s)", error)

    async def _recount(self, *, was_dead: bool) -> None:
        """Go by the rows: runs may have been taken from this replica while it was silent."""
        driven = frozenset(self._driven()) if was_dead else frozenset[str]()
        rows = await self._rows.open_runs(self.replica)
        self._uncertain = False
        self._callers = {row["job_id"]: row["caller"] for row in rows}
        self._owned = Counter(self._callers.values())
        lost = driven - {row["id"] for row in rows}
        for run_id in sorted(lost):
            self._lost(run_id)
        if was_dead:
            _log.warning("this gateway was silent for its lease; %d runs went to others", len(lost))

    def _own(self, job_id: str, caller: str) -> None:
        if job_id not in self._callers:
            self._callers[job_id] = caller
            self._owned[caller] += 1

    def _refills(self, caller: str) -> bool:
        return self._owned[caller] <= REFILL * self._settings.per_caller

    def _room_of(self, caller: str, priority: int = 0) -> int:
        share = 1 if priority >= 0 else BATCHES
        return math.ceil(share * self._settings.per_caller) - self._owned[caller]
