"""Who drives a run, and what survives the end of a gateway."""

import asyncio

import pytest
from sqlalchemy import event

from gateway.db import Database, FolderInUse
from tests.unit.jobs.world import World, finished, new_job, until


async def test_a_clean_stop_gives_runs_back_and_cancels_nothing(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await world.stop(first)

    [run] = world.rows("SELECT owner, state FROM runs")
    assert tuple(run) == (None, "started")
    assert world.rows("SELECT id FROM replicas") == []
    assert world.gpu.cancelled == []
    world.gpu.hold.set()

    second = await world.gateway()
    assert (await finished(second, job.id)).status == "completed"
    assert world.gpu.started == [job.id]


async def test_a_restart_goes_on_with_every_run_where_it_was(world: World) -> None:
    world.gpu.capacity = 2
    world.gpu.hold = asyncio.Event()
    first = await world.gateway()
    submitted = [(await first.submit(new_job()))[0] for _ in range(4)]
    await until(lambda: len(world.gpu.followed) == 2)
    await world.crash(first)
    world.gpu.hold.set()

    second = await world.gateway()

    for job in submitted:
        assert (await finished(second, job.id)).status == "completed"
    assert sorted(world.gpu.started) == sorted(job.id for job in submitted)
    assert world.gpu.most_at_once <= 2


async def test_a_run_whose_start_was_never_answered_is_adopted(world: World) -> None:
    world.gpu.starts = [asyncio.Event()]
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.started == [job.id])
    await world.crash(first)

    second = await world.gateway()

    assert (await finished(second, job.id)).status == "completed"
    assert world.gpu.started == [job.id, job.id]


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
async def test_ten_restarts_under_a_waiting_job_harm_nothing(world: World, *, clean: bool) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    for _ in range(10):
        await (world.stop(jobs) if clean else world.crash(jobs))
        jobs = await world.gateway()
    [run] = world.rows("SELECT state, deaths, failures, attempt FROM runs")
    assert tuple(run) == ("waiting", 0, 0, 0)
    world.gpu.capacity = 1
    assert (await finished(jobs, job.id)).status == "completed"


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
async def test_ten_restarts_under_a_followed_job_harm_nothing(world: World, *, clean: bool) -> None:
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    for n in range(10):
        await until(lambda n=n: len(world.gpu.followed) == n + 1)
        await (world.stop(jobs) if clean else world.crash(jobs))
        jobs = await world.gateway()
    world.gpu.hold.set()
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started == [job.id]
    assert world.rows("SELECT deaths FROM runs")[0]["deaths"] == 0


async def test_the_third_death_of_a_gateway_collecting_a_job_is_poison(world: World) -> None:
    world.storage.away = 1_000_000
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    for n in range(3):
        await until(
            lambda n=n: tuple(world.rows("SELECT state, deaths FROM runs")[0]) == ("produced", n)
        )
        await world.crash(jobs)
        jobs = await world.gateway()

    done = await finished(jobs, job.id)

    assert done.error is not None
    assert (done.status, done.error.code) == ("failed", "poison")
    assert world.gpu.started == [job.id]


async def test_clean_stops_while_collecting_count_nothing(world: World) -> None:
    world.storage.away = 1_000_000
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    for _ in range(5):
        await until(lambda: world.rows("SELECT state FROM runs")[0]["state"] == "produced")
        await world.stop(jobs)
        jobs = await world.gateway()
    world.storage.away = 0
    assert (await finished(jobs, job.id)).status == "completed"


async def test_a_second_gateway_on_the_folder_is_refused_in_words(sqlite_world: World) -> None:
    await sqlite_world.gateway()
    second = Database(sqlite_world.url)
    with pytest.raises(FolderInUse, match="Another gateway already works on the data folder"):
        second.claim()
    await second.close()


async def test_a_gateway_that_lost_its_run_writes_nothing_and_says_nothing(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await world.write("INSERT INTO replicas (id, seen) VALUES ('other', 9223372036854775807)")
    await world.write("UPDATE runs SET owner = 'other', epoch = epoch + 1")
    caplog.clear()
    world.gpu.hold.set()
    await until(lambda: jobs.counts().in_flight == 0)
    [run] = world.rows("SELECT state, owner FROM runs")
    assert tuple(run) == ("started", "other")
    assert caplog.records == []
    waiting = await jobs.get(job.id)
    assert waiting is not None
    assert waiting.status == "processing"


async def test_runs_of_a_replica_that_is_silent_for_a_lease_are_taken_over(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await world.write("INSERT INTO replicas (id, seen) VALUES ('other', 1)")
    await world.write("UPDATE runs SET owner = 'other', epoch = epoch + 1")
    world.gpu.hold.set()
    assert (await finished(jobs, job.id)).status == "completed"
    assert world.rows("SELECT epoch FROM runs")[0]["epoch"] == 2


async def test_jobs_beyond_the_window_wait_without_an_owner_and_are_all_done(
    world: World,
) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway(window=4)
    submitted = [(await jobs.submit(new_job()))[0] for _ in range(6)]
    owned = world.rows("SELECT count(*) AS n FROM runs WHERE owner IS NOT NULL")
    # one caller owns at most a quarter of the window
    assert owned[0]["n"] == 1
    # a heartbeat may just have counted without the last one
    await until(lambda: jobs.counts().waiting == 6)
    world.gpu.capacity = 2
    for job in submitted:
        assert (await finished(jobs, job.id)).status == "completed"


async def test_a_batch_leaves_room_in_its_callers_window_for_ordinary_calls(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway(window=80)
    batch = [(await jobs.submit(new_job(priority=-10)))[0] for _ in range(25)]
    call, _ = await jobs.submit(new_job())
    owned = {row["id"] for row in world.rows("SELECT id FROM runs WHERE owner IS NOT NULL")}
    assert owned == {job.id for job in batch[:19]} | {call.id}
    world.gpu.capacity = 1
    for job in (call, *batch):
        assert (await finished(jobs, job.id)).status == "completed"
    assert world.gpu.started[0] == call.id


async def test_a_backlog_of_callers_without_room_is_not_put_in_order(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway(window=4, lease_s=3600)
    sorted_by: list[str] = []

    def carried_out(_c: object, _cursor: object, statement: str, *_: object) -> None:
        if "row_number()" in statement and "replicas" in statement:
            sorted_by.append(statement)

    event.listen(jobs._db._apart.sync_engine, "before_cursor_execute", carried_out)
    first, second, _ = [(await jobs.submit(new_job()))[0] for _ in range(3)]
    await jobs._ownership.take_over()
    assert sorted_by == []

    await jobs.cancel(first.id)
    owned = "SELECT id FROM runs WHERE owner IS NOT NULL AND state = 'waiting'"
    await until(lambda: [row["id"] for row in world.rows(owned)] == [second.id])
    assert len(sorted_by) == 1


async def test_news_of_more_work_waits_until_a_window_is_worth_filling(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway(window=80, lease_s=3600)
    ownership = jobs._ownership
    mine = [(await jobs.submit(new_job()))[0] for _ in range(19)]
    await until(lambda: not ownership._look.is_set())
    ownership.look("alice")
    assert not ownership._look.is_set()
    ownership.ended(mine[0].id)
    assert ownership._look.is_set()


async def test_a_run_with_a_place_and_no_driver_is_found(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    # as if the answer to the commit that granted it had been lost
    await world.write("UPDATE runs SET state = 'granted', backend = 'gpu'")
    assert (await finished(jobs, job.id)).status == "completed"
