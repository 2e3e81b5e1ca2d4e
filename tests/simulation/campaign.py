"""Many seeds, on several cores: what was run, what went wrong, and how to see it again."""

import gc
import logging
import multiprocessing
import re
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from tests.simulation.plan import Plan, draw
from tests.simulation.planted import BUGS
from tests.simulation.world import Report, run_plan

CHUNK = 20
"""Seeds handed to a worker at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a campaign looks for."""

    start: int = 0
    seeds: int = 1000
    seconds: float | None = None
    workers: int = 1
    faults: frozenset[str] | None = None
    """Only these may strike, instead of those each seed draws."""
    sweep: bool = False
    """Die once at every single turn of each seed."""
    plant: str | None = None
    keep_going: bool = False
    until: str = ""
    """Only breaches that match this count."""
    ignore: str | None = None
    """Breaches that match this are passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One world in which a rule was broken."""

    seed: int
    crash_at: int | None
    breaches: tuple[str, ...]

    def told(self, plant: str | None, faults: frozenset[str] | None) -> str:
        """What happened, and the command that shows it again."""
        options = f" --crash-at {self.crash_at}" if self.crash_at is not None else ""
        options += f" --plant {plant}" if plant else ""
        options += f" --faults {','.join(sorted(faults))}" if faults is not None else ""
        return "\n  ".join(
            [
                f"seed {self.seed}:",
                *self.breaches[:5],
                f"replay: python -m tests.simulation --seed {self.seed} --trace{options}",
            ]
        )


@dataclass(slots=True)
class Tally:
    """What a number of worlds came to."""

    total: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failures: list[Failure] = field(default_factory=list[Failure])

    def add(self, other: "Tally") -> None:
        """Count another one's worlds too."""
        self.total.update(other.total)
        self.faults.update(other.faults)
        self.outcomes.update(other.outcomes)
        self.failures += other.failures


def plan_of(seed: int, crash_at: int | None, faults: frozenset[str] | None = None) -> Plan:
    """A seed's plan, or the same with other faults, or one death as its only fault."""
    plan = draw(seed)
    if crash_at is None:
        return plan if faults is None else replace(plan, faults=faults)
    crashes = tuple((crash_at,) if seat == 0 and crash_at else () for seat in range(plan.replicas))
    # the sweep looks at one death at a time, with the faults that never kill taken out
    return replace(plan, faults=frozenset({"crash"}), crashes=crashes, pauses=((),) * plan.replicas)


@contextmanager
def planted(bug: str | None) -> Generator[None]:
    """With a bug put in, if one is named."""
    with BUGS[bug]() if bug else nullcontext():
        yield


def prepare() -> None:
    """What a process needs before its first world."""
    logging.getLogger("gateway").setLevel(logging.CRITICAL)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    # programs that die leave coroutines and connections behind: that is what is simulated
    warnings.simplefilter("ignore")
    gc.collect()
    gc.freeze()


def run(options: Options) -> Tally:
    """Live through every seed, until one fails unless told to keep going."""
    tally = Tally()
    began = time.perf_counter()
    for part in _parts(options):
        tally.add(part)
        if tally.failures and not options.keep_going:
            break
        if options.seconds and time.perf_counter() - began > options.seconds:
            break
    return tally


def _parts(options: Options) -> Iterator[Tally]:
    end = options.start + options.seeds
    chunks = [
        (options, range(first, min(first + CHUNK, end)))
        for first in range(options.start, end, CHUNK)
    ]
    if options.workers == 1:
        prepare()
        yield from map(_chunk, chunks)
        return
    # each worker begins from nothing, as a run of one seed does
    with multiprocessing.get_context("spawn").Pool(options.workers, prepare) as pool:
        yield from pool.imap(_chunk, chunks)


def _chunk(work: tuple[Options, range]) -> Tally:
    options, seeds = work
    tally = Tally()
    with planted(options.plant):
        for seed in seeds:
            for crash_at, report in _worlds(seed, options):
                _count(tally, report)
                breaches = _counting(report, options)
                if breaches:
                    tally.failures.append(
                        Failure(seed=seed, crash_at=crash_at, breaches=tuple(breaches))
                    )
                    if not options.keep_going:
                        return tally
            tally.total["seeds"] += 1
    gc.collect()
    return tally


def _worlds(seed: int, options: Options) -> Iterator[tuple[int | None, Report]]:
    if not options.sweep:
        yield None, run_plan(plan_of(seed, None, options.faults))
        return
    undisturbed = run_plan(plan_of(seed, 0))
    yield 0, undisturbed
    for turn in range(1, undisturbed.turns + 1):
        yield turn, run_plan(plan_of(seed, turn))


def _count(tally: Tally, report: Report) -> None:
    tally.faults.update(report.faults)
    tally.outcomes.update(report.outcomes)
    tally.total.update(
        worlds=1,
        steps=report.steps,
        database_operations=report.operations,
        jobs=report.jobs,
        executions=report.executions,
        incarnations=report.incarnations,
        virtual_s=int(report.virtual_s),
    )


def _counting(report: Report, options: Options) -> list[str]:
    return [
        breach
        for breach in report.breaches
        if re.search(options.until, breach)
        and not (options.ignore and re.search(options.ignore, breach))
    ]
