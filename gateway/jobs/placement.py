"""Giving waiting runs their places: one transaction over the rows of all replicas."""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.backends.base import Backend
from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable, Row, Transaction, placements
from gateway.db.records import micros
from gateway.jobs.scoring import Candidate, Grant, Place, choose
from gateway.jobs.settings import JobSettings

_log = logging.getLogger(__name__)

HEADS_PER_CALLER = 16
EXPLAINED_AT_ONCE = 100
LIVING_S = 1.0
"""How often it is looked who lives, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Round:
    """What one transaction did."""

    grants: Sequence[Grant]
    stuck: Mapping[str, str]
    """Workflows by digest that wait and that no backend can carry out."""
    why: Mapping[str, str]
    """By digest, what the stuck ones wait for as of this look; none where it did not look."""
    held: Sequence[str] = ()
    """Runs whose callers have as many under way as may be."""
    left: bool
    """Something waits still."""
    full: bool
    """No backend has room for another one."""


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
        self._stuck: Mapping[str, str] = {}
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
        try:
            while True:
                self._woken.clear()
                seen = self._look()
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
        for digest, why in done.why.items():
            await self._explain(digest, why, now)
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
        untold = self._untold(busy)
        stuck: dict[str, str] = {}
        why: dict[str, str] = {}
        while True:
            rows = await placements.heads(
                writing,
                now,
                owners=self._living,
                per_caller=HEADS_PER_CALLER,
                without=sorted(stuck),
            )
            candidates = [_candidate(row, now) for row in rows if row["job_id"] not in untold]
            # looked at again without those: they must not hide runs that can be placed
            hopeless = {c.digest: c.workflow for c in candidates if not self._anywhere(c)}
            if not hopeless:
                break
            stuck |= hopeless
            why |= {digest: self._why(name, digest) for digest, name in hopeless.items()}
        running = Counter[str](row["caller"] for row in busy)
        grants = choose(candidates, places, running, self._ready, self._settings)
        # in one order everywhere: who locks several runs must not wait for who waits for him
        grants.sort(key=lambda grant: grant.candidate.run_id)
        given = [grant for grant in grants if await self._give(writing, grant, now)]
        left = bool(stuck) or len(given) < len(rows)
        held = self._held(candidates, given, running)
        full = len(given) >= sum(max(0, place.room) for place in places)
        return _Round(grants=given, stuck=stuck, why=why, held=held, left=left, full=full)

    def _untold(self, busy: Sequence[Row]) -> frozenset[str]:
        """Jobs whose attempt before may execute still: the next one waits until that is told.

        A start that went unanswered may take effect at any time before its cancel arrives.
        A backend that does not answer was waited for long enough already.
        """
        answering = {name for name, backend in self._backends.items() if backend.capacity > 0}
        return frozenset(
            row["job_id"] for row in busy if row["cancel_pending"] and row["backend"] in answering
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

    async def _give(self, writing: Transaction, grant: Grant, now: datetime) -> bool:
        candidate = grant.candidate
        given = await placements.grant(
            writing, candidate.run_id, candidate.epoch, grant.backend, now
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

    def _ready(self, backend: str, candidate: Candidate) -> bool:
        reached = self._living.get(candidate.owner)
        # its owner may have been told of other backends than we were
        reaches = reached is None or backend in reached
        return reaches and self._carries_out(backend, candidate)

    def _anywhere(self, candidate: Candidate) -> bool:
        return any(self._carries_out(name, candidate) for name in self._backends)

    def _carries_out(self, backend: str, candidate: Candidate) -> bool:
        known = self._backends[backend].readiness(candidate.workflow, candidate.digest)
        return known is not None and known.readiness == "ready"

    async def _explain(self, digest: str, why: str, now: datetime) -> None:
        await self._db.write(
            lambda writing: placements.explain(writing, digest, why, now, limit=EXPLAINED_AT_ONCE)
        )

    async def _explain_held(self, held: Sequence[str], now: datetime) -> None:
        most = self._settings.max_running_per_caller
        why = f"its caller has {most} running, as many as may at once"
        await self._db.write(
            lambda writing: placements.explain_runs(writing, held[:EXPLAINED_AT_ONCE], why, now)
        )

    def _why(self, workflow: str, digest: str) -> str:
        asked = [backend.readiness(workflow, digest) for backend in self._backends.values()]
        known = [one for one in asked if one is not None]
        lacking = [thing.name for one in known for thing in one.missing]
        if known and all(one.readiness == "missing" for one in known):
            return f"missing on every GPU service: {', '.join(dict.fromkeys(lacking))}"
        return "no GPU service that can carry it out answers at present"

    def _look(self) -> tuple[object, ...]:
        return tuple(
            (
                backend.capacity,
                *(backend.readiness(name, digest) for digest, name in self._stuck.items()),
            )
            for backend in self._backends.values()
        )

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
    )
