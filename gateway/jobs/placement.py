"""Giving waiting runs their places: one transaction over the rows of all replicas."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from gateway.backends.base import Backend
from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable, Row, Transaction, placements
from gateway.db.records import micros, to_places
from gateway.jobs.choosing import Choosing, Standing, Work
from gateway.jobs.scoring import Candidate, Grant, Place, choose
from gateway.jobs.settings import JobSettings

_log = logging.getLogger(__name__)

HEADS_PER_CALLER = 16
EXPLAINED_AT_ONCE = 100
LIVING_S = 1.0
"""How often it is looked who lives, at most."""
FURTHER_S = 0.25
FURTHER_SHARE = 0.05
"""To look past many runs takes long: how often at most, and what share of the time is spent so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What one transaction did."""

    grants: Sequence[Grant]
    stuck: Mapping[str, Work]
    """What waits, by key, and no backend can carry out to which it may go."""
    why: Mapping[str, str]
    """By key, what the stuck ones wait for as of this look; none where it did not look."""
    held: Sequence[str] = ()
    """Runs whose callers have as many under way as may be."""
    left: bool
    """Something waits still."""
    full: bool
    """No backend has room for another one, of those that work goes to at present."""


@dataclass(slots=True, kw_only=True)
class _Heads:
    """The runs of one round, and where they may go."""

    replica: str
    reached: Mapping[str, frozenset[str] | None]
    rows: int = 0
    candidates: Sequence[Candidate] = ()
    standings: dict[str, Standing] = field(default_factory=dict[str, Standing])
    """By the key of the work."""
    stuck: dict[str, Work] = field(default_factory=dict[str, Work])
    more: bool = False
    """Runs were left out that wait still."""
    further: bool = False
    """It was looked past runs that only have to wait for room."""

    def may_go(self, backend: str, candidate: Candidate) -> bool:
        """Whether a run may be given that backend now.

        The place for what is to weigh more than health. A budget closes billed backends to a
        caller here; spill-over by predicted wait opens the next choice while the first is only
        busy. Both have a reason to give, as `Standing.reason` is, for the job's log.
        """
        standing = self.standings[candidate.work]
        # that its first choice is away, its owner must find: it is who would have to reach it
        if standing.fallback and candidate.owner != self.replica:
            return False
        reached = self.reached.get(candidate.owner)
        # its owner may have been told of other backends than we were
        reaches = reached is None or backend in reached
        return reaches and backend in standing.open


class Placement:
    """The loop that grants; `granted(run, owner)` is called once a grant is committed."""

    def __init__(
        self,
        *,
        replica: str,
        db: Database,
        backends: Mapping[str, Backend],
        settings: JobSettings,
        clock: Clock,
        granted: Callable[[str, str], None],
        living: Callable[[], Awaitable[Mapping[str, frozenset[str] | None]]],
    ) -> None:
        self._replica = replica
        self._db = db
        self._backends = backends
        self._settings = settings
        self._clock = clock
        self._granted = granted
        self._ask_living = living
        self._living: Mapping[str, frozenset[str] | None] = {}
        self._living_at = -math.inf
        self._woken = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()
        # what follows saves work or improves a choice; nothing depends on it to be right
        self._warm: dict[str, frozenset[str]] = {}
        self._full_until: dict[str, float] = {}
        self._further_at = -math.inf
        self._stuck: Mapping[str, Work] = {}
        self._choosing = Choosing(backends, settings)
        self._idle = False
        self._full = False

    def wake(self, *, queued: bool = False, room: bool = False) -> None:
        """Look again: something was queued, room was made, or both may be."""
        if queued:
            self._idle = False
        if room:
            self._full = False
        self._woken.set()

    def wake_in(self, seconds: float) -> None:
        """Look again later: something is queued that may not begin before."""

        def wake() -> None:
            self._timers.discard(timer)
            self.wake(queued=True, room=True)

        timer = asyncio.get_running_loop().call_later(max(0.0, seconds), wake)
        self._timers.add(timer)
        # the place it had is free for another one already
        self.wake(room=True)

    def pause(self, backend: str) -> None:
        """It refused a run for lack of room: grant it none for a moment."""
        seconds = self._settings.backend_full_pause_s
        self._full_until[backend] = asyncio.get_running_loop().time() + seconds
        self.wake_in(seconds)

    async def run(self) -> None:
        """Place until cancelled."""
        loop, swept_at = asyncio.get_running_loop(), -math.inf
        seen = self._look()
        try:
            while True:
                self._woken.clear()
                before, seen = seen, self._look()
                if seen != before:
                    # whatever woke us came at the same time as this, and may say less
                    self._idle = self._full = False
                # however often it is woken: a wake-up may have been lost among others that came
                swept = loop.time() >= swept_at + self._settings.sweep_s
                swept_at = loop.time() if swept else swept_at
                try:
                    await self.place(swept=swept)
                except DatabaseUnavailable as error:
                    _log.warning("placement: the database does not answer (%s)", error)
                await self._wait_for_cause(seen, until=swept_at + self._settings.sweep_s)
        finally:
            for timer in self._timers:
                timer.cancel()

    async def place(self, *, swept: bool) -> None:
        """One round; `swept` = look at everything, whatever seems to be known."""
        if (self._idle or self._full) and not swept:
            return
        now = self._clock.now()
        # set before the rows are read: what happens from here on unsets them again
        self._idle = self._full = True
        try:
            await self._look_who_lives()
            done = await self._db.write(lambda writing: self._round(writing, now, swept=swept))
        except DatabaseUnavailable:
            self._idle = self._full = False
            raise
        self._idle = self._idle and not done.left
        self._full = self._full and done.full
        self._stuck = done.stuck
        for grant in done.grants:
            self._warm[grant.backend] = grant.candidate.needs
            self._granted(grant.candidate.run_id, grant.candidate.owner)
        for work, why in done.why.items():
            await self._explain(work, why, now)
        # not in every round: most of them wait for a moment only
        if swept and done.held:
            await self._explain_held(done.held, now)

    async def _look_who_lives(self) -> None:
        """Learn who drives what is granted, and which backends they reach; now and then."""
        clock = asyncio.get_running_loop().time()
        if clock >= self._living_at + min(LIVING_S, self._settings.lease_s / 15):
            self._living = await self._ask_living()
            self._living_at = clock

    async def _round(self, writing: Transaction, now: datetime, *, swept: bool) -> _Round:
        await placements.one_at_a_time(writing)
        busy = await placements.under_way(writing)
        places = self._places(busy)
        if not any(place.room > 0 for place in places) and not swept:
            return _Round(grants=(), stuck=self._stuck, why={}, left=True, full=True)
        seen = await self._heads(writing, now, busy, places)
        running = Counter[str](row["caller"] for row in busy)
        grants = choose(seen.candidates, places, running, seen.may_go, self._settings)
        # in one order everywhere: who locks several runs must not wait for who waits for him
        grants.sort(key=lambda grant: grant.candidate.run_id)
        given = [grant for grant in grants if await self._give(writing, grant, seen, now)]
        return _Round(
            grants=given,
            stuck=seen.stuck,
            why={key: self._choosing.waits_for(work) for key, work in seen.stuck.items()},
            held=self._held(seen.candidates, given, running),
            left=seen.more or len(given) < seen.rows,
            full=self._filled(places, given),
        )

    async def _heads(
        self, writing: Transaction, now: datetime, busy: Sequence[Row], places: Sequence[Place]
    ) -> "_Heads":
        """The runs to choose among, and where each kind of them may go."""
        untold = self._untold(busy)
        room = [place.backend for place in places if place.room > 0]
        seen = _Heads(replica=self._replica, reached=self._living)
        passed: set[str] = set()
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            rows = await placements.heads(
                writing,
                now,
                owners=self._living,
                per_caller=HEADS_PER_CALLER,
                without=sorted(passed),
            )
            seen.rows = len(rows)
            seen.candidates = [_candidate(row, now) for row in rows if row["job_id"] not in untold]
            for candidate in seen.candidates:
                if candidate.work not in seen.standings:
                    standing = self._choosing.standing(_work(candidate))
                    seen.standings[candidate.work] = standing
            # looked at again without those: they must not hide runs that can be placed
            hopeless = {
                c.work: _work(c) for c in seen.candidates if not seen.standings[c.work].able
            }
            seen.stuck |= hopeless
            in_the_way = set[str]()
            if began >= self._further_at:
                in_the_way = self._in_the_way(seen, rows, room)
            seen.further = seen.further or bool(in_the_way)
            if not (hidden := hopeless.keys() | in_the_way):
                break
            seen.more = True
            passed |= hidden
        if seen.further:
            took = clock() - began
            self._further_at = clock() + max(FURTHER_S, took / FURTHER_SHARE)
        return seen

    def _in_the_way(self, seen: "_Heads", rows: Sequence[Row], room: Sequence[str]) -> set[str]:
        """Work that no backend with room may take, while it may hide work that one may."""
        each = Counter[str](row["caller"] for row in rows)
        crowded = len(rows) >= placements.HEADS or HEADS_PER_CALLER in each.values()
        if not room or not crowded:
            return set()
        taken = {c.work for c in seen.candidates if any(seen.may_go(name, c) for name in room)}
        return {c.work for c in seen.candidates} - taken

    def _filled(self, places: Sequence[Place], given: Sequence[Grant]) -> bool:
        """Whether nothing can be given until room is made or another choice comes up."""
        room = {place.backend: place.room for place in places if place.room > 0}
        for grant in given:
            room[grant.backend] -= 1
        left = {name for name, more in room.items() if more > 0}
        return not left or not left & self._choosing.in_use()

    def _untold(self, busy: Sequence[Row]) -> frozenset[str]:
        """Jobs whose attempt before may execute still: the next one waits until that is told.

        A start that went unanswered may take effect at any time before its cancel arrives.
        A backend that does not answer was waited for long enough already, unless its runs are paid
        for: none of those is begun elsewhere before it is known to be over.
        """
        told = {
            name
            for name, backend in self._backends.items()
            if backend.capacity > 0 or backend.billed
        }
        return frozenset(
            row["job_id"] for row in busy if row["cancel_pending"] and row["backend"] in told
        )

    def _held(
        self, candidates: Sequence[Candidate], given: Sequence[Grant], running: Counter[str]
    ) -> Sequence[str]:
        most = self._settings.max_running_per_caller
        if not most:
            return ()
        placed = {grant.candidate.run_id for grant in given}
        now_running = running + Counter(grant.candidate.caller for grant in given)
        return [
            waiting.run_id
            for waiting in candidates
            if waiting.run_id not in placed and now_running[waiting.caller] >= most
        ]

    async def _give(
        self, writing: Transaction, grant: Grant, seen: "_Heads", now: datetime
    ) -> bool:
        candidate = grant.candidate
        given = await placements.grant(
            writing,
            candidate.run_id,
            candidate.epoch,
            grant.backend,
            now,
            choice=seen.standings[candidate.work].reason,
        )
        if given and candidate.owner != self._replica:
            writing.tell("granted", candidate.run_id, candidate.owner)
        return given

    def _places(self, busy: Sequence[Row]) -> list[Place]:
        clock = asyncio.get_running_loop().time()
        places: list[Place] = []
        for name, backend in self._backends.items():
            here = [row for row in busy if row["backend"] == name]
            loaded = frozenset(need for row in here for need in (row["models"] or (row["digest"],)))
            paused = self._full_until.get(name, 0) > clock
            places.append(
                Place(
                    backend=name,
                    room=0 if paused else backend.capacity - len(here),
                    load=len(here),
                    warm=loaded or self._warm.get(name, frozenset()),
                )
            )
        return places

    async def _explain(self, work: str, why: str, now: datetime) -> None:
        await self._db.write(
            lambda writing: placements.explain(writing, work, why, now, limit=EXPLAINED_AT_ONCE)
        )

    async def _explain_held(self, held: Sequence[str], now: datetime) -> None:
        most = self._settings.max_running_per_caller
        why = f"its caller has {most} running, as many as may at once"
        await self._db.write(
            lambda writing: placements.explain_runs(writing, held[:EXPLAINED_AT_ONCE], why, now)
        )

    def _look(self) -> tuple[object, ...]:
        self._choosing.look(asyncio.get_running_loop().time())
        states = (
            (
                backend.capacity,
                *(backend.readiness(one.workflow, one.digest) for one in self._stuck.values()),
            )
            for backend in self._backends.values()
        )
        return (self._choosing.turns(), *states)

    async def _wait_for_cause(self, seen: tuple[object, ...], until: float) -> None:
        """Return when there is reason to place, or at that time."""
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            try:
                async with asyncio.timeout(
                    min(until - loop.time(), self._settings.backend_watch_s)
                ):
                    await self._woken.wait()
            except TimeoutError:
                if self._look() != seen:
                    self._idle = self._full = False
                    return
            else:
                return


def _candidate(row: Row, now: datetime) -> Candidate:
    return Candidate(
        run_id=row["id"],
        owner=row["owner"],
        epoch=row["epoch"],
        caller=row["caller"],
        priority=row["priority"],
        workflow=row["workflow"],
        digest=row["digest"],
        models=frozenset(row["models"]),
        waited_s=max(0, micros(now) - row["created_at"]) / 1e6,
        created_at=row["created_at"],
        turn=row["turn"] or 0,
        places=to_places(row["places"]),
        work=row["work"],
    )


def _work(candidate: Candidate) -> Work:
    return Work(workflow=candidate.workflow, digest=candidate.digest, places=candidate.places)
