"""A run that is taken back before a worker has begun it."""

import pytest

from gateway.backends.base import RunFailed
from gpu_server.protocol import Failure
from tests.unit.jobs.world import World, finished, new_job


def taken_back(*, executed: bool) -> RunFailed:
    failure = Failure(kind="transient", code="not_taken_up", message="Nobody took it up.")
    return RunFailed(failure, executed=executed)


async def test_what_never_began_waits_again_and_uses_no_attempt_up(world: World) -> None:
    world.gpu.follows = [taken_back(executed=False) for _ in range(5)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "completed"
    assert len(world.gpu.started) == 6
    assert world.rows("SELECT max(deaths) AS d, max(failures) AS f FROM runs")[0]["f"] == 0


@pytest.mark.parametrize("times", [3, 5])
async def test_what_had_begun_uses_its_attempts_up(world: World, times: int) -> None:
    world.gpu.follows = [taken_back(executed=True) for _ in range(times)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())

    assert (await finished(jobs, job.id)).status == "failed"
    assert len(world.gpu.started) == 3
