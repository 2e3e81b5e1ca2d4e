"""Storage is away while a job waits for nothing else: it executes once, and its end says so."""

import asyncio
from dataclasses import replace

import pytest

from gateway.backends.base import BackendUnreachable, Progressed
from gateway.job import Produced
from tests.unit.jobs.world import World, finished, log_of, md5_of, new_job, until

FOREVER = 10**9
DEADLINE_S = 5.0
"""Time for a slow machine to get as far as storage."""
WAITS = Progressed(fraction=0.9, waits_for="storage")


async def code_of(world: World) -> str:
    """What a job fails with whose deadline is near."""
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job(deadline_s=DEADLINE_S))
    done = await finished(jobs, job.id)
    assert done.status == "failed"
    assert done.error is not None
    last = (await log_of(jobs, job.id))[-1]
    assert (last.type, last.data["code"]) == ("failed", done.error.code)
    assert world.gpu.started == [job.id], "nothing is executed again because storage is away"
    return done.error.code


async def test_a_delivery_that_storage_does_not_take_names_storage_at_the_deadline(
    world: World,
) -> None:
    world.gpu.follows, world.gpu.hold = [WAITS], asyncio.Event()
    assert await code_of(world) == "storage_unavailable"
    # its slots are closed there, too
    await until(lambda: len(world.gpu.cancelled) == 1)


async def test_a_file_that_cannot_be_looked_at_names_storage_at_the_deadline(world: World) -> None:
    world.storage.away = FOREVER
    assert await code_of(world) == "storage_unavailable"


@pytest.mark.parametrize(
    "then", [Progressed(fraction=0.95), BackendUnreachable("away")], ids=["goes on", "away"]
)
async def test_storage_is_not_named_for_what_came_after_it_was_well_again(
    world: World, then: Progressed | Exception
) -> None:
    world.gpu.follows, world.gpu.hold = [WAITS, then], asyncio.Event()
    assert await code_of(world) == "deadline_exceeded"


async def test_a_gateway_that_finds_a_delivered_run_overdue_names_storage(world: World) -> None:
    world.storage.away = FOREVER
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.rows("SELECT state FROM runs")[0]["state"] == "produced")
    await world.crash(first)
    await world.write("UPDATE runs SET deadline_at = 1")
    done = await finished(await world.gateway(), job.id)
    assert done.error is not None
    assert done.error.code == "storage_unavailable"
    assert done.error.kind == "transient"


def hand_over(world: World, md5: str | None) -> Produced:
    produced = world.gpu.produce(world.gpu.started[-1])
    [file] = produced.outputs
    return replace(produced, outputs=(file.model_copy(update={"md5": md5}),))


@pytest.mark.parametrize(
    ("told", "attempts"),
    [(md5_of(b"other"), 2), (None, 1), (md5_of(b"pixels"), 1)],
    ids=["other", "not told", "the same"],
)
async def test_where_both_sides_know_the_md5_it_must_be_the_same(
    world: World, told: str | None, attempts: int
) -> None:
    world.storage.wants_length = world.storage.wants_md5 = True
    world.gpu.follows = [lambda: world.gpu.follows.append(hand_over(world, told))]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    assert (await finished(jobs, job.id)).status == "completed"
    assert len(world.gpu.started) == attempts
    (slot,) = world.gpu.orders[job.id].slots
    assert (slot.sized, slot.content_md5) == (True, True)


async def test_slots_of_a_store_that_wants_nothing_bear_no_newer_field(world: World) -> None:
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await finished(jobs, job.id)
    (slot,) = world.gpu.orders[job.id].slots
    assert slot.model_fields_set == {"name", "url"}
