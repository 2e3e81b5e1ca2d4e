"""When a job should be done: the sum itself, and how seldom the database is asked."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.db.records import micros
from gateway.db.timings import Lane, Measured
from gateway.job import Job
from gateway.jobs import eta
from gateway.jobs.eta import Etas, rate, wait_s
from tests.unit.jobs.world import new_job

NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def fresh_for_the_whole_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eta, "FRESH_S", 1000)


WORK = ("generate", "flux1-dev")


def measured(seconds: float, size: float = 1, engine: str = "comfyui") -> Measured:
    return Measured(seconds=seconds, size=size, engine=engine)


def lane(caller: str = "alice", jobs: int = 1, **changes: object) -> Lane:
    plain = Lane(
        tool="generate",
        variant="flux1-dev",
        caller=caller,
        priority=0,
        under_way=False,
        jobs=jobs,
        size=float(jobs),
        oldest=0,
        newest=100,
    )
    return replace(plain, **changes)


def waits(
    lanes: list[Lane], caller: str = "alice", *, priority: int = 0, came: int = 101, places: int = 1
) -> float:
    return wait_s(
        lanes,
        lambda one: one.size,
        caller=caller,
        priority=priority,
        came=came,
        places=places,
    )


class KnownHistory:
    """Answers what a test says, and counts how often it was asked."""

    def __init__(self, *took: Measured, lanes: Sequence[Lane] = ()) -> None:
        self.took = took
        self.lanes = lanes
        self.asked = 0

    async def measured(self, tool: str, variant: str, /) -> Sequence[Measured]:
        self.asked += 1
        return self.took if (tool, variant) == WORK else ()

    async def queue(self) -> Sequence[Lane]:
        self.asked += 1
        return self.lanes


class StillClock:
    def now(self) -> datetime:
        return NOW


def etas(history: KnownHistory, *, places: int = 1) -> Etas:
    return Etas(history=history, places=lambda _: places, clock=StillClock())


def job(**changes: object) -> Job:
    new = new_job()
    plain = Job(
        id=new.id,
        tool=new.tool,
        variant=new.variant,
        caller=new.caller,
        status="pending",
        progress=0,
        params=new.params,
        call=new.call,
        outcome=None,
        error=None,
        artifacts=(),
        created_at=NOW,
        started_at=None,
        finished_at=None,
        deadline_at=NOW + timedelta(hours=1),
        size=2,
    )
    return replace(plain, **changes)


def test_the_rate_is_the_median_per_unit_of_size() -> None:
    found = rate([measured(10, 5), measured(90, 30), measured(1000, 10)])
    assert found is not None
    assert (found.seconds, found.jobs) == (3, 3)


def test_what_a_simulator_took_says_nothing_of_a_gpu() -> None:
    found = rate([measured(10), measured(0.1, engine="simulator"), measured(12)])
    assert found is not None
    assert (found.seconds, found.jobs) == (11, 2)


def test_nothing_measured_is_no_rate() -> None:
    assert rate([]) is None


def test_what_runs_is_ahead_of_everything() -> None:
    assert waits([lane("bob", jobs=2, under_way=True, priority=-10)], priority=100) == 2


def test_a_place_that_is_free_is_not_waited_for() -> None:
    assert waits([lane("bob", under_way=True)], places=2) == 0


def test_several_places_share_the_work() -> None:
    assert waits([lane(jobs=10)], places=2) == 5


def test_a_higher_priority_is_ahead_and_a_lower_one_is_not() -> None:
    lanes = [lane("bob", jobs=7, priority=5), lane("alice", jobs=100, priority=-10)]
    assert waits(lanes) == 7


def test_another_callers_ten_thousand_jobs_delay_by_one() -> None:
    assert waits([lane("bob", jobs=10_000)]) == 1


def test_callers_take_turns_with_those_who_wait_as_they_do() -> None:
    lanes = [lane("alice", jobs=4), lane("bob", jobs=10_000), lane("carol", jobs=2)]
    assert waits(lanes) == 4 + 5 + 2


def test_a_job_in_the_middle_of_its_callers_queue_waits_for_half_of_it() -> None:
    assert waits([lane(jobs=11)], came=50) == 5
    assert waits([lane(jobs=11)], came=0) == 0


def test_the_only_job_of_its_lane_waits_for_none_of_it() -> None:
    assert waits([lane(jobs=1, oldest=5, newest=5)], came=5) == 0


async def test_an_estimate_is_the_wait_and_the_execution() -> None:
    history = KnownHistory(measured(3), lanes=[lane(jobs=10)])
    estimate = await etas(history).expect(WORK, 2, caller="alice", priority=0)
    assert estimate is not None
    assert (estimate.seconds, estimate.execution_s, estimate.measured) == (36, 6, 1)


async def test_there_is_no_estimate_while_nothing_was_measured() -> None:
    assert await etas(KnownHistory()).expect(WORK, 2, caller="alice", priority=0) is None


async def test_there_is_no_estimate_while_no_gpu_service_is_there() -> None:
    history = KnownHistory(measured(3))
    assert await etas(history, places=0).expect(WORK, 2, caller="alice", priority=0) is None


async def test_work_nobody_measured_counts_as_work_like_the_jobs_own() -> None:
    history = KnownHistory(measured(3), lanes=[lane(jobs=2, variant="new")])
    estimate = await etas(history).expect(WORK, 1, caller="alice", priority=0)
    assert estimate is not None
    assert estimate.seconds == 9


async def test_a_thousand_submits_ask_the_database_as_often_as_one() -> None:
    history = KnownHistory(measured(3))
    known = etas(history)
    await known.expect(WORK, 1, caller="alice", priority=0)
    asked = history.asked
    for _ in range(1000):
        await known.expect(WORK, 1, caller="alice", priority=0)
        known.taken(new_job(size=1.0))
    assert history.asked == asked


async def test_jobs_taken_since_the_queue_was_read_are_ahead() -> None:
    known = etas(KnownHistory(measured(3)))
    for _ in range(4):
        known.taken(new_job(caller="alice", size=2.0))
    await known.expect(WORK, 1, caller="alice", priority=0)
    for _ in range(4):
        known.taken(new_job(caller="alice", size=2.0))
    estimate = await known.expect(WORK, 1, caller="bob", priority=0)
    assert estimate is not None
    assert estimate.seconds == 2 * 3 + 3


async def test_old_figures_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eta, "FRESH_S", 0)
    monkeypatch.setattr(eta, "SHARE_OF_TIME", math.inf)
    history = KnownHistory(measured(3))
    known = etas(history)
    await known.expect(WORK, 1, caller="alice", priority=0)
    history.took = (measured(5),)
    estimate = await known.expect(WORK, 1, caller="alice", priority=0)
    assert estimate is not None
    assert estimate.seconds == 5


async def test_a_waiting_job_is_told_what_is_left() -> None:
    came = micros(NOW)
    history = KnownHistory(
        measured(3), lanes=[lane("alice", jobs=11, oldest=came - 50, newest=came + 50)]
    )
    assert await etas(history).left(job()) == 5 * 3 + 6


async def test_a_running_job_is_told_what_is_left_of_it() -> None:
    history = KnownHistory(measured(3), lanes=[lane("bob", jobs=100)])
    assert await etas(history).left(job(status="processing", progress=0.75)) == 1.5


async def test_an_ended_job_has_no_estimate() -> None:
    history = KnownHistory(measured(3))
    assert await etas(history).left(job(status="completed")) is None
    assert history.asked == 0


async def test_what_waits_for_other_places_is_not_ahead() -> None:
    queue = [lane("bob", jobs=50, under_way=True), lane("bob", jobs=3, under_way=True)]
    queue = [queue[0], replace(queue[1], tool="other")]
    figures = Etas(
        history=KnownHistory(measured(10), lanes=queue),
        places=lambda tool: 1 if tool == WORK[0] else 0,
        clock=StillClock(),
        alike=lambda one, other: one == other,
    )
    found = await figures.expect(WORK, 1, caller="alice", priority=0)
    assert found is not None
    known = await etas(KnownHistory(measured(10), lanes=queue[:1])).expect(
        WORK, 1, caller="alice", priority=0
    )
    assert found == known
    assert await figures.expect(("other", "x"), 1, caller="alice", priority=0) is None
