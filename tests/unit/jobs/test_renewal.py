"""Slots lead to one gateway: whoever goes on with its runs names its own."""

import asyncio

import pytest

from gateway.backends.base import RunLost
from gateway.job import run_id
from gateway.jobs.engine import Jobs
from tests.unit.jobs.world import World, finished, new_job, unreachable, until


async def followed_and_left(world: World, *, clean: bool) -> str:
    """A job whose gateway ends while its run goes on."""
    world.gpu.hold = asyncio.Event()
    jobs: Jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await (world.stop(jobs) if clean else world.crash(jobs))
    world.gpu.hold.set()
    return job.id


async def test_who_starts_a_run_does_not_renew_it(world: World) -> None:
    world.gpu.starts = unreachable(2)
    world.gpu.follows = unreachable(2)
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.renewed == []


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
async def test_who_goes_on_with_a_run_renews_its_slots_once(world: World, *, clean: bool) -> None:
    job_id = await followed_and_left(world, clean=clean)
    world.gpu.follows = unreachable(2)

    second = await world.gateway()

    assert (await finished(second, job_id)).status == "completed"
    assert world.gpu.renewed == [job_id]
    assert world.gpu.started == [job_id]


async def test_a_renewal_without_an_answer_is_asked_for_again(world: World) -> None:
    job_id = await followed_and_left(world, clean=False)
    world.gpu.renews = unreachable(2)

    second = await world.gateway()

    assert (await finished(second, job_id)).status == "completed"
    assert world.gpu.renewed == [job_id] * 3
    assert world.gpu.followed == [job_id] * 2
    assert world.gpu.started == [job_id]


async def test_a_run_that_is_not_known_at_its_renewal_is_begun_anew(world: World) -> None:
    job_id = await followed_and_left(world, clean=False)
    world.gpu.renews = [RunLost()]

    second = await world.gateway()

    assert (await finished(second, job_id)).status == "completed"
    assert world.gpu.renewed == [job_id]
    assert world.gpu.started == [job_id, run_id(job_id, 0, 1)]
