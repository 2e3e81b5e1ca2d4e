"""When a job should be done, from what the last ones took and what is ahead of it.

An estimate, not a plan: ageing, loaded models and jobs that come later are left out of it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

from gateway.clock import Clock
from gateway.db.records import micros
from gateway.db.timings import Lane, Measured
from gateway.job import Job, NewJob

FRESH_S = 5.0
"""How long figures are gone by before they are read again."""
SHARE_OF_TIME = 0.05
"""To read a long queue takes long: no more than this share of the time is spent on it."""

Work = tuple[str, str]
"""Tool and variant: what is measured together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a unit of size takes."""

    seconds: float
    jobs: int
    """How many jobs say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job about to be written can expect."""

    seconds: float
    """From now to its end."""
    execution_s: float
    """Of it, its own execution."""
    measured: int
    """How many jobs that was learnt from."""


class History(Protocol):
    """Where the figures come from."""

    async def measured(self, tool: str, variant: str, /) -> Sequence[Measured]:
        """The latest completed jobs of a tool's variant, newest first."""
        ...

    async def queue(self) -> Sequence[Lane]:
        """All open work, summed up."""
        ...


def rate(measured: Sequence[Measured]) -> Rate | None:
    """Median seconds per unit of size; None while nothing was measured.

    Only what ran on the same engine as the newest counts: a simulator says nothing of a GPU.
    """
    alike = [one for one in measured if one.engine == measured[0].engine and one.size > 0]
    if not alike:
        return None
    return Rate(seconds=median(one.seconds / one.size for one in alike), jobs=len(alike))


def wait_s(
    lanes: Sequence[Lane],
    cost_of: Callable[[Lane], float],
    *,
    caller: str,
    priority: int,
    came: int,
    places: int,
) -> float:
    """Seconds until a job of that caller begins that came at that time.

    Ahead of it is what runs, what has a higher priority, what its caller sent before it, and of
    each other caller as many jobs of its priority: they take turns. `cost_of` = seconds of a lane.
    """
    jobs = seconds = before = 0.0
    others: dict[str, list[Lane]] = defaultdict(list)
    for lane in lanes:
        if lane.under_way or lane.priority > priority:
            ahead = 1.0
        elif lane.priority < priority:
            ahead = 0.0
        elif lane.caller != caller:
            others[lane.caller].append(lane)
            continue
        else:
            ahead = _came_before(lane, came)
            before += ahead * lane.jobs
        jobs += ahead * lane.jobs
        seconds += ahead * cost_of(lane)
    for theirs in others.values():
        waiting = sum(lane.jobs for lane in theirs)
        share = min(1.0, (before + 1) / waiting)
        jobs += share * waiting
        seconds += share * sum(cost_of(lane) for lane in theirs)
    return seconds / places if jobs >= places else 0.0


def _came_before(lane: Lane, came: int) -> float:
    """Share of a lane that came before that time, as if they had come evenly."""
    if came > lane.newest:
        return 1.0
    if came < lane.oldest:
        return 0.0
    # it is one of them itself; a batch's came all at once, and it may be any of those
    span = lane.newest - lane.oldest
    share = (came - lane.oldest) / span if span else 0.5
    return share * (lane.jobs - 1) / lane.jobs


class Etas:
    """Estimates from figures kept in memory: most calls ask the database nothing."""

    def __init__(
        self,
        *,
        history: History,
        places: Callable[[str | None], int],
        clock: Clock,
        alike: Callable[[str, str], bool] = lambda _one, _other: True,
    ) -> None:
        self._history = history
        self._places = places
        """Jobs of that tool that execute at the same time at present; None: of any."""
        self._alike = alike
        """Whether jobs of two tools wait for the same places."""
        self._clock = clock
        self._rates: dict[Work, Rate | None] = {}
        self._lanes: list[Lane] = []
        self._old_at = 0.0
        self._reading = asyncio.Lock()

    async def expect(
        self, work: Work, size: float | None, *, caller: str, priority: int
    ) -> Estimate | None:
        """What a job sent now can expect; None while nothing was measured or nothing runs."""
        await self._refresh(work)
        known, wait = self._rates.get(work), None
        if known is not None:
            wait = self._wait(work, caller=caller, priority=priority, came=self._now())
        if known is None or wait is None:
            return None
        execution = known.seconds * _units(size)
        return Estimate(seconds=wait + execution, execution_s=execution, measured=known.jobs)

    async def left(self, job: Job) -> float | None:
        """Seconds until that job should be done; None for an ended one, or while not known."""
        work = (job.tool, job.variant)
        if job.status not in {"pending", "processing"}:
            return None
        await self._refresh(work)
        wait: float | None = 0.0
        if job.status == "pending":
            came = micros(job.created_at)
            wait = self._wait(work, caller=job.caller, priority=job.priority, came=came)
        execution = self.execution(job, job.progress)
        return None if wait is None or execution is None else _shown(wait + execution)

    def execution(self, job: Job, progress: float) -> float | None:
        """Seconds a job that got so far should still execute, as far as known at the moment."""
        known = self._rates.get((job.tool, job.variant))
        return None if known is None else _shown(known.seconds * _units(job.size) * (1 - progress))

    async def one_place_s(self) -> float | None:
        """Seconds in which one of the waiting jobs should begin; None while not known."""
        await self._refresh(None)
        places = self._places(None)
        jobs = sum(lane.jobs for lane in self._lanes)
        costs = [self._cost(lane, None) for lane in self._lanes]
        if not jobs or not places or None in costs:
            return None
        return sum(cost for cost in costs if cost is not None) / jobs / places

    def taken(self, new: NewJob) -> None:
        """Count a job that was just written, until the queue is read again."""
        now = self._now()
        lane = Lane(
            tool=new.tool,
            variant=new.variant,
            caller=new.caller,
            priority=new.priority,
            under_way=False,
            jobs=1,
            size=_units(new.size),
            oldest=now,
            newest=now,
        )
        for n, known in enumerate(self._lanes):
            if _alike(known, lane):
                self._lanes[n] = _together(known, lane)
                return
        self._lanes.append(lane)

    def _wait(self, work: Work, *, caller: str, priority: int, came: int) -> float | None:
        places, own = self._places(work[0]), self._rates.get(work)
        if not places:
            return None
        fallback = own.seconds if own else None
        lanes = [lane for lane in self._lanes if self._alike(lane.tool, work[0])]
        costs = {id(lane): self._cost(lane, fallback) or 0.0 for lane in lanes}
        return wait_s(
            lanes,
            lambda lane: costs[id(lane)],
            caller=caller,
            priority=priority,
            came=came,
            places=places,
        )

    def _cost(self, lane: Lane, fallback: float | None) -> float | None:
        known = self._rates.get((lane.tool, lane.variant))
        seconds = known.seconds if known else fallback
        return None if seconds is None else seconds * lane.size

    async def _refresh(self, work: Work | None) -> None:
        """Read again what is old; who finds somebody reading goes by the old figures."""
        loop = asyncio.get_running_loop()
        lacking = work is not None and work not in self._rates
        if not lacking and (loop.time() < self._old_at or self._reading.locked()):
            return
        async with self._reading:
            if loop.time() >= self._old_at:
                began = loop.time()
                self._lanes = list(await self._history.queue())
                wanted = {*self._rates, *((lane.tool, lane.variant) for lane in self._lanes)}
                for known in sorted(wanted):
                    self._rates[known] = rate(await self._history.measured(*known))
                took = loop.time() - began
                self._old_at = loop.time() + max(FRESH_S, took / SHARE_OF_TIME)
            if work is not None and work not in self._rates:
                self._rates[work] = rate(await self._history.measured(*work))

    def _now(self) -> int:
        return micros(self._clock.now())


def _alike(one: Lane, other: Lane) -> bool:
    alike = ("tool", "variant", "caller", "priority", "under_way")
    return all(getattr(one, name) == getattr(other, name) for name in alike)


def _together(one: Lane, other: Lane) -> Lane:
    return replace(
        one,
        jobs=one.jobs + other.jobs,
        size=one.size + other.size,
        oldest=min(one.oldest, other.oldest),
        newest=max(one.newest, other.newest),
    )


def _units(size: float | None) -> float:
    return 1.0 if size is None else size


def _shown(seconds: float) -> float:
    return round(max(0.0, seconds), 1)
