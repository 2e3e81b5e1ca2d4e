"""PostgreSQL goes away and comes back."""

import asyncio
from collections.abc import Iterator

import pytest

from gateway.db import DatabaseUnavailable
from gateway.jobs.engine import Jobs
from tests.support.postgres import Databases, NoPostgres, PostgresServer, own_server
from tests.unit.jobs.world import World, finished, new_job, until


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    try:
        with own_server(durable=True) as server:
            yield server
    except NoPostgres as error:
        pytest.skip(str(error))


@pytest.mark.timeout(600)
async def test_a_crash_and_restart_of_the_database_breaks_off_no_job_and_no_waiter(
    own_postgres: PostgresServer,
) -> None:
    world = World(Databases(own_postgres.url).new())
    world.gpu.capacity = 2
    world.gpu.hold = asyncio.Event()
    gateways = [await world.gateway(lease_s=15) for _ in range(2)]
    submitted = [(await gateways[n % 2].submit(new_job()))[0] for n in range(6)]
    waiters = [
        asyncio.create_task(finished(gateways[(n + 1) % 2], job.id))
        for n, job in enumerate(submitted)
    ]
    told: list[str] = []
    watcher = asyncio.create_task(tell(gateways[0], submitted[1].id, told))
    await until(lambda: len(world.gpu.followed) == 2 and bool(told))

    await asyncio.to_thread(own_postgres.stop, "immediate")
    with pytest.raises(DatabaseUnavailable):
        await gateways[0].get(submitted[0].id)
    world.gpu.hold.set()
    await asyncio.to_thread(own_postgres.start)

    assert {job.status for job in await asyncio.gather(*waiters)} == {"completed"}
    await watcher
    assert told[-1] == "completed"
    assert sorted(set(world.gpu.started)) == sorted(job.id for job in submitted)
    assert world.rows("SELECT DISTINCT attempt, deaths FROM runs") == [{"attempt": 0, "deaths": 0}]
    await world.stop()


@pytest.mark.timeout(600)
async def test_a_gateway_knows_within_a_heartbeat_whether_its_database_answers(
    own_postgres: PostgresServer,
) -> None:
    world = World(Databases(own_postgres.url).new())
    jobs = await world.gateway(lease_s=0.3)
    assert jobs.database_answers
    await asyncio.to_thread(own_postgres.stop, "immediate")
    await until(lambda: not jobs.database_answers)
    await asyncio.to_thread(own_postgres.start)
    await until(lambda: jobs.database_answers)
    await world.stop()


async def tell(jobs: Jobs, job_id: str, told: list[str]) -> None:
    async for event in jobs.watch(job_id):
        told.append(event.type)  # noqa: PERF401  # looked at meanwhile
