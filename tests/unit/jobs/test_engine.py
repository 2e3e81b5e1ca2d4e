"""What callers of the engine rely on: waiting, watching, cancelling, keys, lists."""

import asyncio
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from gateway.backends.base import Progressed
from gateway.errors import Conflict, IdempotencyKeyReused, InvalidParameters
from gateway.job import JobEvent, JobQuery, new_job_id
from gateway.storage.base import StorageError
from tests.unit.jobs.world import World, finished, log_of, new_job, unreachable, until


async def test_a_wait_ends_with_the_job_and_not_with_its_time(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    # a waiter that is not woken would look by itself only long after this test has given up
    jobs = await world.gateway(poll_s=3600)
    job, _ = await jobs.submit(new_job())
    waiting = asyncio.create_task(jobs.wait(job.id, 3600))
    await until(lambda: world.gpu.followed == [job.id])
    world.gpu.hold.set()
    done = await asyncio.wait_for(waiting, 30)
    assert done is not None
    assert done.status == "completed"


async def test_a_wait_that_runs_out_shows_the_job_as_it_is(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    waited = await jobs.wait(job.id, 0.01)
    assert waited is not None
    assert waited.status == "pending"


async def test_a_job_nobody_knows_is_none(world: World) -> None:
    jobs = await world.gateway()
    unknown = new_job_id()
    assert await jobs.get(unknown) is None
    assert await jobs.wait(unknown, 10) is None
    assert await jobs.cancel(unknown) is None
    assert await jobs.delete(unknown) is False
    assert await jobs.file("unknown.png") is None
    assert await log_of(jobs, unknown) == []


async def test_watchers_see_progress_live_and_replay_the_log_from_any_entry(world: World) -> None:
    moving, ending = asyncio.Event(), asyncio.Event()
    world.gpu.follows = [moving, Progressed(fraction=0.5, step=2, steps=4), ending]
    jobs = await world.gateway(progress_write_s=3600)
    job, _ = await jobs.submit(new_job())
    seen: list[JobEvent] = []
    async for event in jobs.watch(job.id):
        seen.append(event)
        if event.type == "processing":
            moving.set()
        if event.type == "progress":
            now = await jobs.get(job.id)
            assert now is not None
            assert (now.status, now.progress) == ("processing", 0.5)
            ending.set()

    assert [event.type for event in seen] == ["pending", "processing", "progress", "completed"]
    assert [event.n for event in seen] == [1, 2, 2, 3]
    assert seen[2].data == {"fraction": 0.5, "node": None, "step": 2, "steps": 4}
    # progress was told without having been written
    assert world.rows("SELECT executed FROM runs")[0]["executed"] == 0
    assert [event.n async for event in jobs.watch(job.id, after=1)] == [2, 3]
    assert [event.n async for event in jobs.watch(job.id, after=3)] == []


async def test_progress_is_stored_for_who_asks_later(world: World) -> None:
    ending = asyncio.Event()
    world.gpu.follows = [Progressed(fraction=0.25), ending]
    jobs = await world.gateway(progress_write_s=0)
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.rows("SELECT progress FROM jobs")[0]["progress"] == 0.25)
    assert world.rows("SELECT executed FROM runs")[0]["executed"] == 1
    ending.set()
    await finished(jobs, job.id)


async def test_progress_never_goes_back_though_a_backend_knows_less_after_it_was_away(
    world: World,
) -> None:
    told, ending = asyncio.Event(), asyncio.Event()
    world.gpu.follows = [
        Progressed(fraction=0.5),
        told,
        *unreachable(1),
        Progressed(fraction=0.25, step=1),
        ending,
    ]
    jobs = await world.gateway(progress_write_s=0)
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.rows("SELECT progress FROM jobs")[0]["progress"] == 0.5)
    told.set()
    await until(lambda: len(world.gpu.followed) == 2 and not world.gpu.follows)
    now = await jobs.get(job.id)
    assert now is not None
    assert now.progress == 0.5
    ending.set()
    assert (await finished(jobs, job.id)).status == "completed"


async def test_cancelling_a_running_job_tells_waiters_first_and_the_backend_until_it_hears(
    world: World,
) -> None:
    world.gpu.hold = asyncio.Event()
    hears = asyncio.Event()
    world.gpu.cancels = [hears, *unreachable(2)]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    waiting = asyncio.create_task(jobs.wait(job.id, 3600))

    cancelled = await jobs.cancel(job.id)

    assert cancelled is not None
    assert cancelled.status == "cancelled"
    told = await asyncio.wait_for(waiting, 30)
    assert told is not None
    assert told.status == "cancelled"
    assert world.gpu.cancelled == []
    hears.set()
    await until(lambda: world.gpu.cancelled == [job.id])
    assert [event.type for event in await log_of(jobs, job.id)][-1] == "cancelled"


async def test_a_cancel_waits_for_the_start_it_would_overtake(world: World) -> None:
    starting = asyncio.Event()
    world.gpu.starts = [starting]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.started == [job.id])
    await jobs.cancel(job.id)
    # several sweeps go by
    await asyncio.sleep(0.5)
    assert world.gpu.cancelled == []
    starting.set()
    await until(lambda: world.gpu.cancelled == [job.id])
    assert world.gpu.followed == []


async def test_a_backend_not_told_of_a_cancel_is_told_by_the_next_gateway(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    world.gpu.cancels = [asyncio.Event()]
    first = await world.gateway()
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await first.cancel(job.id)
    # it is being told, and never answers
    await until(lambda: world.gpu.cancels == [])
    await world.crash(first)
    assert world.gpu.cancelled == []

    await world.gateway()

    await until(lambda: world.gpu.cancelled == [job.id])


async def test_a_run_not_yet_cancelled_where_it_runs_still_takes_its_place(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    world.gpu.capacity = 1
    hears = asyncio.Event()
    world.gpu.cancels = [hears]
    jobs = await world.gateway()
    first, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [first.id])
    second, _ = await jobs.submit(new_job())
    await jobs.cancel(first.id)
    await asyncio.sleep(0.5)
    assert world.gpu.started == [first.id]
    hears.set()
    await until(lambda: world.gpu.started == [first.id, second.id])


async def test_cancelling_a_waiting_job_tells_nobody(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    cancelled = await jobs.cancel(job.id)
    assert cancelled is not None
    assert cancelled.status == "cancelled"
    assert world.rows("SELECT id FROM runs WHERE cancel_pending") == []


async def test_cancelling_a_finished_job_changes_nothing(world: World) -> None:
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    done = await finished(jobs, job.id)
    assert await jobs.cancel(job.id) == done


async def test_the_first_terminal_state_wins_between_cancel_and_completion(world: World) -> None:
    jobs = await world.gateway()
    submitted = [(await jobs.submit(new_job()))[0] for _ in range(10)]
    await asyncio.gather(*(jobs.cancel(job.id) for job in submitted))
    for job in submitted:
        done = await finished(jobs, job.id)
        terminal = [
            e.type for e in await log_of(jobs, job.id) if e.type in {"completed", "cancelled"}
        ]
        assert terminal == [done.status]
        assert bool(done.artifacts) == (done.status == "completed")


async def test_deleting_removes_files_rows_and_key(world: World) -> None:
    jobs = await world.gateway()
    new = new_job(idempotency_key="k", request_hash="h")
    job, _ = await jobs.submit(new)
    done = await finished(jobs, job.id)
    assert world.storage.files

    assert await jobs.delete(job.id) is True

    assert world.storage.files == {}
    assert await jobs.get(job.id) is None
    assert await jobs.file(done.artifacts[0].filename) is None
    for table in ("runs", "artifacts", "job_events", "idempotency"):
        assert world.rows(f"SELECT * FROM {table}") == []
    again, existed = await jobs.submit(replace(new, id=new_job_id()))
    assert not existed
    await finished(jobs, again.id)


async def test_deleting_a_job_removes_what_its_failed_attempts_left(world: World) -> None:
    jobs = await world.gateway()
    job = new_job()

    def spoil() -> None:
        produced = world.gpu.produce(job.id)
        [file] = produced.outputs
        spoilt = file.model_copy(update={"bytes": 1})
        world.gpu.follows.append(replace(produced, outputs=(spoilt,)))

    world.gpu.follows = [spoil]
    await jobs.submit(job)
    await finished(jobs, job.id)
    assert len(world.storage.files) == 2
    await jobs.delete(job.id)
    assert world.storage.files == {}


async def test_a_delete_that_breaks_off_leaves_a_job_that_says_its_files_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks_off(key: str) -> None:
        raise StorageError(f"away: {key}")

    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await finished(jobs, job.id)
    with monkeypatch.context() as patched:
        patched.setattr(world.storage, "delete", breaks_off)
        with pytest.raises(StorageError):
            await jobs.delete(job.id)

    [left] = (await finished(jobs, job.id)).artifacts
    assert left.removed_at is not None
    assert [event.type for event in await log_of(jobs, job.id)][-1] == "files_removed"
    assert await jobs.delete(job.id) is True
    assert world.storage.files == {}
    assert world.rows("SELECT id FROM jobs") == []


async def test_an_unfinished_job_is_not_deleted(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    with pytest.raises(Conflict, match="cancel it first"):
        await jobs.delete(job.id)


async def test_a_cancelled_job_is_deleted_once_its_backend_knows(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    hears = asyncio.Event()
    world.gpu.cancels = [hears]
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await jobs.cancel(job.id)
    deleting = asyncio.create_task(jobs.delete(job.id))
    await asyncio.sleep(0.2)
    assert not deleting.done()
    hears.set()
    assert await deleting is True


async def test_the_same_key_and_request_is_the_same_job_even_at_once(world: World) -> None:
    jobs = await world.gateway()
    same = new_job(idempotency_key="key-1", request_hash="hash")
    answers = await asyncio.gather(*(jobs.submit(replace(same, id=new_job_id())) for _ in range(8)))
    assert len({job.id for job, _ in answers}) == 1
    assert sorted(existed for _, existed in answers) == [False] + [True] * 7
    job, _ = answers[0]
    done = await finished(jobs, job.id)
    later, existed = await jobs.submit(replace(same, id=new_job_id()))
    assert (later, existed) == (done, True)
    assert len(world.gpu.started) == 1


async def test_a_key_is_known_after_a_restart(world: World) -> None:
    first = await world.gateway()
    same = new_job(idempotency_key="key-1", request_hash="hash")
    job, _ = await first.submit(same)
    await world.crash(first)
    second = await world.gateway()
    again, existed = await second.submit(replace(same, id=new_job_id()))
    assert (again.id, existed) == (job.id, True)


async def test_the_same_key_with_another_request_is_refused(world: World) -> None:
    jobs = await world.gateway()
    await jobs.submit(new_job(idempotency_key="k", request_hash="one"))
    with pytest.raises(IdempotencyKeyReused):
        await jobs.submit(new_job(idempotency_key="k", request_hash="two"))
    other, existed = await jobs.submit(
        new_job(caller="bob", idempotency_key="k", request_hash="two")
    )
    assert not existed
    await finished(jobs, other.id)


async def test_a_list_is_walked_newest_first_without_gap_or_repetition(world: World) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    submitted = [(await jobs.submit(new_job()))[0].id for _ in range(7)]
    # jobs of one microsecond are told apart by id
    await world.write("UPDATE jobs SET created_at = (SELECT min(created_at) FROM jobs)")
    walked: list[str] = []
    cursor = None
    while True:
        page = await jobs.list(JobQuery(limit=3, cursor=cursor))
        walked += [job.id for job in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert walked == sorted(submitted, reverse=True)


async def test_a_list_is_narrowed_by_caller_tool_status_and_time(world: World) -> None:
    jobs = await world.gateway()
    mine, _ = await jobs.submit(new_job())
    await finished(jobs, mine.id)
    world.gpu.capacity = 0
    theirs, _ = await jobs.submit(new_job(caller="bob"))
    other, _ = await jobs.submit(new_job(tool="upscale"))

    async def ids(query: JobQuery) -> set[str]:
        return {job.id for job in (await jobs.list(query)).items}

    assert await ids(JobQuery(caller="bob")) == {theirs.id}
    assert await ids(JobQuery(tool="upscale")) == {other.id}
    assert await ids(JobQuery(status="completed")) == {mine.id}
    assert await ids(JobQuery(since=datetime.now(UTC) + timedelta(hours=1))) == set()
    assert await ids(JobQuery(since=theirs.created_at)) == {theirs.id, other.id}
    [done] = (await jobs.list(JobQuery(status="completed"))).items
    assert len(done.artifacts) == 1


@pytest.mark.parametrize("cursor", ["rubbish", "%%%", "", "MTIz", "äö"])
async def test_a_foreign_cursor_is_refused_by_name(world: World, cursor: str) -> None:
    jobs = await world.gateway()
    with pytest.raises(InvalidParameters, match="cursor"):
        await jobs.list(JobQuery(cursor=cursor))


async def test_counts_tell_waiting_from_in_flight(world: World) -> None:
    world.gpu.capacity = 1
    world.gpu.hold = asyncio.Event()
    jobs = await world.gateway()
    submitted = [(await jobs.submit(new_job()))[0] for _ in range(3)]
    await until(lambda: len(world.gpu.followed) == 1)
    assert (jobs.counts().waiting, jobs.counts().in_flight) == (2, 1)
    world.gpu.hold.set()
    for job in submitted:
        await finished(jobs, job.id)
    await until(lambda: (jobs.counts().waiting, jobs.counts().in_flight) == (0, 0))


async def test_a_database_locked_by_somebody_else_delays_jobs_and_loses_none(
    sqlite_world: World,
) -> None:
    world = sqlite_world
    jobs = await world.gateway()
    intruder = sqlite3.connect(world.url.partition(":///")[2], isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    submitting = asyncio.create_task(jobs.submit(new_job()))
    await asyncio.sleep(0.3)
    assert not submitting.done()
    intruder.execute("COMMIT")
    intruder.close()
    job, _ = await submitting
    assert (await finished(jobs, job.id)).status == "completed"
