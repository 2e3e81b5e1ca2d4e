"""Jobs of several stages: gateways over one PostgreSQL, and a backend that each has by itself."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from gateway.backends.base import BackendUnreachable, Order, Progressed, RunLost, WorkflowReadiness
from gateway.job import Call, NewJob, Produced, Source, run_id
from gateway.jobs.engine import Jobs
from tests.unit.jobs.world import PATIENT, ScriptedBackend, World, finished, new_job, until

SHORT: dict[str, Any] = {"lease_s": 1.0, "sweep_s": 0.2}
READ = {"model": (Source(slot="images/0", media_type="image/png"),)}


class OwnBackend(ScriptedBackend):
    """One of the same name on every gateway, which knows the runs of its own process alone."""

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:
        return super().readiness(workflow, digest) if workflow == "clean" else None

    async def renew(self, order: Order) -> None:
        if order.run_id not in self.orders:
            raise RunLost(executed=True)

    async def follow(
        self, run_id: str, reference: str
    ) -> AsyncGenerator[Progressed | Produced, None]:
        if run_id not in self.orders:
            raise RunLost(executed=True)
        async for event in super().follow(run_id, reference):
            yield event


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    world = World(postgres_url)
    world.gpu.states = {"clean": "unknown"}
    yield world
    await world.stop()


async def replica(world: World, **settings: Any) -> tuple[Jobs, OwnBackend]:
    own = OwnBackend(storage=world.storage, name="cpu")
    world.backends = [world.gpu, own]
    jobs = await world.gateway(**{**SHORT, **settings})
    assert jobs._db.notices is not None
    await asyncio.wait_for(jobs._db.notices.listening.wait(), PATIENT)
    return jobs, own


def two_stages() -> NewJob:
    gpu = new_job().call
    clean = Call(
        workflow="clean",
        digest="c" * 64,
        params={},
        outputs=("models/0",),
        prefix="meshes",
        inputs=READ,
    )
    return new_job(call=dataclasses.replace(gpu, then=clean, ends_at=0.9))


def runs(world: World) -> list[tuple[Any, ...]]:
    columns = "stage, attempt, state, deaths"
    return [tuple(row) for row in world.rows(f"SELECT {columns} FROM runs ORDER BY stage, attempt")]


async def test_a_stage_that_dies_with_its_gateway_is_done_again_on_another_one(
    world: World,
) -> None:
    dies, first = await replica(world)
    lives, second = await replica(world)
    first.hold = asyncio.Event()
    job, _ = await dies.submit(two_stages())
    await until(lambda: first.followed == [run_id(job.id, 1, 0)])
    await world.crash(dies)

    assert (await finished(lives, job.id)).status == "completed"
    assert runs(world) == [(0, 0, "delivered", 0), (1, 0, "failed", 0), (1, 1, "delivered", 1)]
    # what the GPU has done stays done
    assert world.gpu.started == [job.id]
    assert second.started == [run_id(job.id, 1, 1)]


async def test_a_gateway_that_dies_between_two_stages_leaves_the_next_one_to_another(
    world: World,
) -> None:
    dies, first = await replica(world)
    lives, second = await replica(world)
    first.capacity = second.capacity = 0
    job, _ = await dies.submit(two_stages())
    await until(lambda: len(runs(world)) == 2)
    await world.crash(dies)
    second.capacity = 1

    done = await finished(lives, job.id)
    assert done.status == "completed"
    assert runs(world) == [(0, 0, "delivered", 0), (1, 0, "delivered", 0)]
    assert (first.started, second.started) == ([], [run_id(job.id, 1, 0)])


async def test_a_waiter_elsewhere_sees_the_stages_and_the_end(world: World) -> None:
    driver, _ = await replica(world)
    other, _ = await replica(world)
    job, _ = await driver.submit(two_stages())
    seen = [event.type async for event in other.watch(job.id) if event.type != "progress"]
    assert seen == ["pending", "processing", "stage", "processing", "completed"]


async def test_a_cancel_on_another_gateway_stops_the_stage_where_it_is(world: World) -> None:
    driver, own = await replica(world)
    other, _ = await replica(world)
    own.hold = asyncio.Event()
    job, _ = await driver.submit(two_stages())
    await until(lambda: own.followed == [run_id(job.id, 1, 0)])
    await other.cancel(job.id)
    # the other one's backend knows nothing of it: it is stopped by being followed no more
    await until(lambda: own._at_once == 0)
    assert [run[2] for run in runs(world)] == ["delivered", "cancelled"]


async def test_the_third_death_of_a_stage_fails_the_job(world: World) -> None:
    for death in range(3):
        dies, own = await replica(world)
        own.hold = asyncio.Event()
        if death == 0:
            job, _ = await dies.submit(two_stages())
        await until(lambda own=own: len(own.followed) == 1)
        await world.crash(dies)
    lives, _ = await replica(world)
    done = await finished(lives, job.id)
    assert done.error is not None
    assert done.error.code == "poison"
    assert world.gpu.started == [job.id]


async def test_a_clean_stop_of_the_backend_gives_the_stage_back_without_a_death(
    world: World,
) -> None:
    stops, own = await replica(world)
    stopping = asyncio.Event()

    async def stopped() -> None:
        await stopping.wait()
        raise RunLost(executed=False)

    own.follows = [stopped]
    job, _ = await stops.submit(two_stages())
    await until(lambda: len(own.followed) == 1)
    own.starts = [BackendUnreachable("this gateway stops")] * 10
    stopping.set()
    # the row says so before the jobs stop
    await until(lambda: own.cancelled == [run_id(job.id, 1, 0)])
    await world.stop(stops)
    lives, _ = await replica(world)
    assert (await finished(lives, job.id)).status == "completed"
    assert [run[3] for run in runs(world)] == [0, 0, 0]
