"""Choosing through the whole engine: fallback and back, calls that ask for a place, paid runs."""

import asyncio
from dataclasses import dataclass, field

import pytest

from gateway.backends.base import BackendUnreachable, Order, RunFailed, RunLost
from gateway.job import JobEvent, run_id
from gpu_server.protocol import Failure
from tests.unit.jobs.world import (
    ScriptedBackend,
    World,
    finished,
    log_of,
    new_job,
    unreachable,
    until,
)

TRANSIENT = Failure(kind="transient", code="worker_failed", message="the worker ended")


@dataclass(kw_only=True, eq=False)
class Serverless(ScriptedBackend):
    """A billed one that keeps what each start was told."""

    again: list[bool] = field(default_factory=list[bool])

    async def start(self, order: Order) -> str:
        self.again.append(order.again)
        return await super().start(order)


@pytest.fixture
def runpod(world: World) -> Serverless:
    made = Serverless(storage=world.storage, name="runpod:a", kind="runpod", billed=True)
    world.backends.append(made)
    return made


def reasons(log: list[JobEvent]) -> list[tuple[object, object]]:
    return [(e.data["backend"], e.data["reason"]) for e in log if e.type == "processing"]


async def test_work_goes_to_the_next_choice_and_back_and_its_log_says_why(
    world: World, runpod: Serverless
) -> None:
    jobs = await world.gateway(fallback_after_s=0.3)
    first, _ = await jobs.submit(new_job())
    await finished(jobs, first.id)
    world.gpu.capacity = 0
    second, _ = await jobs.submit(new_job())
    await finished(jobs, second.id)
    world.gpu.capacity = 4
    third, _ = await jobs.submit(new_job())
    await finished(jobs, third.id)
    assert (world.gpu.started, runpod.started) == ([first.id, third.id], [second.id])
    assert reasons(await log_of(jobs, first.id)) == [("gpu", "first choice")]
    fallback = [("runpod:a", "gpu has not answered for 0 s")]
    assert reasons(await log_of(jobs, second.id)) == fallback
    assert [tuple(row) for row in world.rows("SELECT places FROM runs")] == [(None,)] * 3


async def test_a_busy_first_choice_is_waited_for(world: World, runpod: Serverless) -> None:
    world.gpu.capacity, world.gpu.hold = 1, asyncio.Event()
    jobs = await world.gateway(fallback_after_s=0)
    submitted = [(await jobs.submit(new_job()))[0] for _ in range(3)]
    await until(lambda: len(world.gpu.followed) == 1)
    await asyncio.sleep(0.5)
    world.gpu.hold.set()
    for job in submitted:
        await finished(jobs, job.id)
    assert runpod.started == []


async def test_a_call_gets_the_backend_it_asks_for_in_every_attempt(
    world: World, runpod: Serverless
) -> None:
    runpod.follows = [RunFailed(TRANSIENT, executed=True)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(places=("runpod",)))
    assert (await finished(jobs, job.id)).status == "completed"
    assert runpod.started == [job.id, run_id(job.id, 0, 1)]
    assert world.gpu.started == []
    assert reasons(await log_of(jobs, job.id)) == [("runpod:a", "asked for by the call")] * 2


async def test_a_queue_for_a_busy_backend_hides_nothing_that_another_one_can_take(
    world: World, runpod: Serverless
) -> None:
    world.gpu.capacity, world.gpu.hold = 1, asyncio.Event()
    jobs = await world.gateway()
    # more than placement looks at of one caller
    queue = [(await jobs.submit(new_job()))[0] for _ in range(20)]
    await until(lambda: len(world.gpu.followed) == 1)
    asked, _ = await jobs.submit(new_job(places=("runpod:a",)))
    assert (await finished(jobs, asked.id)).status == "completed"
    assert runpod.started == [asked.id]
    world.gpu.hold.set()
    for job in queue:
        await finished(jobs, job.id)


async def test_a_paid_start_that_went_unanswered_is_asked_for_again_and_told_so(
    world: World, runpod: Serverless
) -> None:
    runpod.starts = unreachable(12)
    jobs = await world.gateway(backend_lost_after_s=0.02)
    job, _ = await jobs.submit(new_job(places=("runpod",)))
    assert (await finished(jobs, job.id)).status == "completed"
    assert runpod.started == [job.id] * 13
    assert runpod.again == [False, *[True] * 12]
    assert runpod.cancelled == []


async def test_a_start_of_a_process_that_is_gone_counts_as_an_earlier_one(
    world: World, runpod: Serverless
) -> None:
    asked = asyncio.Event()
    runpod.starts = [lambda: _never(asked)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(places=("runpod",)))
    await asked.wait()
    await world.crash(jobs)
    jobs = await world.gateway()
    assert (await finished(jobs, job.id)).status == "completed"
    assert runpod.again == [False, True]


async def _never(asked: asyncio.Event) -> None:
    asked.set()
    await asyncio.Event().wait()


async def test_a_paid_run_is_not_begun_elsewhere_because_nobody_answers(
    world: World, runpod: Serverless
) -> None:
    runpod.follows = [*unreachable(12)]
    jobs = await world.gateway(backend_lost_after_s=0.02, fallback_after_s=0)
    world.gpu.capacity = 0
    job, _ = await jobs.submit(new_job())
    await until(lambda: len(runpod.followed) > 2)
    world.gpu.capacity = 4
    done = await finished(jobs, job.id)
    assert done.status == "completed"
    assert done.outcome is not None
    assert done.outcome.backend == "runpod:a"
    assert (runpod.started, world.gpu.started) == ([job.id], [])


async def test_silence_of_a_paid_run_ends_with_its_deadline(
    world: World, runpod: Serverless
) -> None:
    runpod.follows = unreachable(1000)
    jobs = await world.gateway(backend_lost_after_s=0.02)
    job, _ = await jobs.submit(new_job(places=("runpod",), deadline_s=3))
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.code == "deadline_exceeded"
    await until(lambda: runpod.cancelled == [job.id])
    assert runpod.started == [job.id]


async def test_a_paid_run_whose_backend_was_taken_out_of_the_settings_waits_for_it(
    world: World, runpod: Serverless
) -> None:
    runpod.hold = asyncio.Event()
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(places=("runpod",)))
    await until(lambda: runpod.followed == [job.id])
    await world.stop(jobs)
    world.backends.remove(runpod)
    jobs = await world.gateway(backend_lost_after_s=0.02)
    await asyncio.sleep(1)
    assert [tuple(row) for row in world.rows("SELECT state FROM runs")] == [("started",)]
    await world.stop(jobs)
    world.backends.append(runpod)
    runpod.hold.set()
    jobs = await world.gateway()
    assert (await finished(jobs, job.id)).status == "completed"
    assert (runpod.started, world.gpu.started) == ([job.id], [])


async def test_the_next_attempt_waits_until_a_silent_paid_backend_knows_of_the_end(
    world: World, runpod: Serverless
) -> None:
    reached = asyncio.Event()

    def lose() -> None:
        world.gpu.capacity, runpod.capacity = 4, 0
        raise RunLost(executed=True)

    async def tell() -> None:
        if not reached.is_set():
            runpod.cancels.append(tell)
            raise BackendUnreachable("away")

    runpod.follows, runpod.cancels = [lose], [tell]
    world.gpu.capacity = 0
    jobs = await world.gateway(fallback_after_s=0, backend_lost_after_s=0.02)
    job, _ = await jobs.submit(new_job())
    retrying = "SELECT 1 FROM job_events WHERE type = 'retrying'"
    await until(lambda: bool(world.rows(retrying)))
    await asyncio.sleep(0.5)
    assert world.gpu.started == []
    reached.set()
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started == [run_id(job.id, 0, 1)]
