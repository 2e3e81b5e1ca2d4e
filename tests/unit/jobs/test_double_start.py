"""A start that may still be on its way: its run's id is never given another place."""

import asyncio

import pytest

from gateway.backends.base import BackendFull, BackendUnreachable, RunLost
from gateway.job import Job, run_id
from gateway.jobs.engine import Jobs
from tests.unit.jobs.world import ScriptedBackend, World, finished, log_of, new_job, until


async def check_asked_again(world: World, jobs: Jobs, job: Job) -> None:
    """It ran under its own id, at its own place, and nothing was cancelled."""
    done = await finished(jobs, job.id)
    assert done.status == "completed"
    assert world.gpu.started == [job.id] * 3
    rows = world.rows("SELECT state, failures, deaths FROM runs")
    assert [tuple(row) for row in rows] == [("delivered", 0, 0)]
    assert world.gpu.cancelled == []


async def test_a_backend_that_did_not_answer_and_then_is_full_is_asked_again(world: World) -> None:
    world.gpu.starts = [BackendUnreachable("late"), BackendFull("gpu")]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await check_asked_again(world, jobs, job)


async def test_the_other_backend_never_gets_the_id_the_first_one_may_yet_start(
    world: World,
) -> None:
    other = ScriptedBackend(storage=world.storage, name="other", capacity=0)
    world.backends.append(other)

    def refuse() -> None:
        other.capacity = 4
        raise BackendFull("gpu")

    world.gpu.starts = [BackendUnreachable("late"), refuse]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await check_asked_again(world, jobs, job)
    assert other.started == []


async def test_a_backend_that_stays_full_loses_the_run_to_the_next_attempt(world: World) -> None:
    new = new_job()

    def refuse_the_first() -> None:
        if world.gpu.started[-1] == new.id:
            world.gpu.starts.append(refuse_the_first)
            raise BackendFull("gpu")

    world.gpu.starts = [BackendUnreachable("late"), refuse_the_first]
    jobs = await world.gateway(backend_lost_after_s=0.2, reconnect_s=0.02)
    job, _ = await jobs.submit(new)
    assert (await finished(jobs, job.id)).status == "completed"
    following = run_id(job.id, 0, 1)
    assert set(world.gpu.started) == {job.id, following}
    rows = world.rows("SELECT state, failures, deaths FROM runs ORDER BY attempt")
    assert [tuple(row) for row in rows] == [("failed", 0, 0), ("delivered", 0, 0)]
    await until(lambda: world.gpu.cancelled == [job.id])
    retrying = [event for event in await log_of(jobs, job.id) if event.type == "retrying"]
    assert [event.data["code"] for event in retrying] == ["backend_unreachable"]


@pytest.mark.parametrize("how", ["crash", "stop"])
async def test_what_an_earlier_gateway_may_have_started_is_asked_for_until_there_is_room(
    world: World, how: str
) -> None:
    world.gpu.starts = [asyncio.Event(), BackendFull("gpu")]
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.started == [job.id])
    await (world.crash(first) if how == "crash" else world.stop(first))
    assert [tuple(row) for row in world.rows("SELECT state FROM runs")] == [("granted",)]

    second = await world.gateway()

    await check_asked_again(world, second, job)


async def test_what_an_earlier_gateway_may_have_started_is_adopted_when_there_is_room(
    world: World,
) -> None:
    world.gpu.starts = [asyncio.Event()]
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.started == [job.id])
    await world.crash(first)
    second = await world.gateway()
    assert (await finished(second, job.id)).status == "completed"
    assert world.gpu.started == [job.id, job.id]
    assert len(world.rows("SELECT id FROM runs")) == 1


async def test_a_run_that_waited_when_its_gateway_died_keeps_its_id_on_a_full_backend(
    world: World,
) -> None:
    world.gpu.capacity = 0
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await world.crash(first)
    second = await world.gateway()
    # Not before: it would be placed for the dead one, and so change hands with its place.
    await until(lambda: world.rows("SELECT epoch FROM runs")[0]["epoch"] == 1)
    world.gpu.starts = [BackendFull("gpu")]
    world.gpu.capacity = 4
    assert (await finished(second, job.id)).status == "completed"
    assert world.gpu.started == [job.id, job.id]
    assert len(world.rows("SELECT id FROM runs")) == 1


async def test_the_next_attempt_waits_until_the_backend_knows_that_the_last_one_is_over(
    world: World,
) -> None:
    told = asyncio.Event()
    world.gpu.follows = [RunLost("gone", executed=True)]
    # a slow machine gives up waiting for one, and asks again
    world.gpu.cancels = [told] * 100
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: len(world.rows("SELECT id FROM runs")) == 2)
    # rounds of placement pass meanwhile, with room for both
    await asyncio.sleep(2 * world.settings.retry_backoff_max_s)
    other, _ = await jobs.submit(new_job())
    assert (await finished(jobs, other.id)).status == "completed"
    assert world.gpu.started == [job.id, other.id]
    told.set()
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started[-1] == run_id(job.id, 0, 1)


async def test_doubts_are_forgotten_with_their_runs(world: World) -> None:
    world.gpu.starts = [BackendUnreachable("late"), BackendFull("gpu"), BackendUnreachable("late")]
    jobs = await world.gateway()
    for _ in range(2):
        job, _ = await jobs.submit(new_job())
        assert (await finished(jobs, job.id)).status == "completed"
    await until(lambda: jobs._engine.doubtful == set())
