"""Several gateways on one PostgreSQL, in one process: what they tell one another, and outages.

Most of them run with hour-long intervals: what happens then happens because it was told.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from gateway.backends.base import Progressed, RunFailed
from gateway.clock import SystemClock
from gateway.db import Database, DatabaseUnavailable, Transaction
from gateway.db.jobs import JobRows
from gateway.db.owners import Full, OwnerRows
from gateway.job import Job, JobQuery, NewJob
from gateway.jobs.engine import Jobs
from gpu_server.protocol import Failure
from tests.unit.jobs.world import PATIENT, ScriptedBackend, World, finished, new_job, until

CALM: dict[str, Any] = {
    "poll_s": 3600,
    "quiet_poll_s": 3600,
    "sweep_s": 3600,
    "lease_s": 3600,
    "backend_watch_s": 3600,
}
LISTENERS = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
)


@pytest.fixture
async def world(postgres_url: str) -> AsyncIterator[World]:
    world = World(postgres_url)
    yield world
    await world.stop()


async def replica(world: World, **settings: Any) -> Jobs:
    """A gateway that hears the others."""
    jobs = await world.gateway(**{**CALM, **settings})
    assert jobs._db.notices is not None
    await asyncio.wait_for(jobs._db.notices.listening.wait(), PATIENT)
    return jobs


async def test_a_waiter_on_another_gateway_is_told_of_the_end(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    driver, other = await replica(world), await replica(world)
    job, _ = await driver.submit(new_job())
    waiting = asyncio.create_task(finished(other, job.id))
    await until(lambda: world.gpu.followed == [job.id])
    world.gpu.hold.set()
    assert (await waiting).status == "completed"


async def test_a_cancel_on_another_gateway_stops_the_driver_and_the_backend(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    driver, other = await replica(world), await replica(world)
    job, _ = await driver.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])

    await other.cancel(job.id)

    await until(lambda: driver.counts().in_flight == 0)
    await until(lambda: world.gpu.cancelled == [job.id])
    assert driver.counts().waiting == 0


async def test_a_run_gets_no_place_that_its_owner_cannot_reach(world: World) -> None:
    old, new = world.gpu, ScriptedBackend(storage=world.storage, name="new")
    old.capacity = 0
    knows_old = await replica(world)
    world.backends = [old, new]
    knows_both = await replica(world, sweep_s=0.2)
    job, _ = await knows_old.submit(new_job())
    others, _ = await knows_both.submit(new_job())
    assert (await finished(knows_both, others.id)).status == "completed"
    await asyncio.sleep(1)
    assert new.started == [others.id]
    old.capacity = 1
    knows_old.look_again()
    assert (await finished(knows_old, job.id)).status == "completed"
    assert old.started == [job.id]


async def test_a_run_under_way_is_left_to_a_gateway_that_reaches_its_backend(world: World) -> None:
    old, new = world.gpu, ScriptedBackend(storage=world.storage, name="new")
    new.hold = asyncio.Event()
    short: dict[str, Any] = {"lease_s": 1.0, "sweep_s": 0.2}
    knows_old = await replica(world, **short)
    world.backends = [old, new]
    old.capacity = 0
    dies, lives = await replica(world, **short), await replica(world, **short)
    job, _ = await dies.submit(new_job())
    await until(lambda: new.followed == [job.id])
    await world.crash(dies)
    await until(lambda: new.followed == [job.id, job.id])
    new.hold.set()
    assert (await finished(knows_old, job.id)).status == "completed"
    assert lives.counts().in_flight <= 1
    assert [tuple(row) for row in world.rows("SELECT attempt, state FROM runs")] == [
        (0, "delivered")
    ]


async def test_a_run_is_driven_by_its_owner_whichever_gateway_placed_it(world: World) -> None:
    world.gpu.capacity = 0
    owner, other = await replica(world), await replica(world)
    job, _ = await owner.submit(new_job())
    await until(lambda: owner._placement._idle is False)
    world.gpu.capacity = 1
    other.look_again()
    done = await finished(owner, job.id)
    assert done.status == "completed"
    assert world.rows("SELECT epoch FROM runs")[0]["epoch"] == 0


async def test_room_on_a_backend_is_told_to_the_gateway_that_waits_for_it(world: World) -> None:
    world.gpu.capacity = 1
    world.gpu.hold = asyncio.Event()
    first, second = await replica(world), await replica(world)
    job, _ = await first.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    waiting, _ = await second.submit(new_job())
    world.gpu.hold.set()
    assert (await finished(second, waiting.id)).status == "completed"


async def test_a_clean_stop_hands_runs_over_at_once(world: World) -> None:
    world.gpu.capacity = 1
    world.gpu.hold = asyncio.Event()
    first, second = await replica(world), await replica(world)
    submitted = [(await first.submit(new_job()))[0] for _ in range(3)]
    await until(lambda: len(world.gpu.followed) == 1)

    await world.stop(first)
    await until(lambda: len(world.gpu.followed) == 2)
    world.gpu.hold.set()

    for job in submitted:
        assert (await finished(second, job.id)).status == "completed"
    assert sorted(world.gpu.started) == sorted(job.id for job in submitted)


async def test_what_one_gateway_has_no_window_for_another_takes_at_once(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    full, free = await replica(world, window=4), await replica(world)
    submitted = [(await full.submit(new_job()))[0] for _ in range(4)]
    await until(lambda: len(world.gpu.followed) == 4)
    owners = world.rows("SELECT owner, count(*) AS n FROM runs GROUP BY owner ORDER BY n")
    assert [row["n"] for row in owners] == [1, 3]
    world.gpu.hold.set()
    for job in submitted:
        assert (await finished(free, job.id)).status == "completed"


async def test_progress_reaches_watchers_on_another_gateway(world: World) -> None:
    seen, hold = asyncio.Event(), asyncio.Event()
    driver, other = await replica(world), await replica(world)
    world.gpu.follows = [seen, Progressed(fraction=0.25), hold]
    job, _ = await driver.submit(new_job())
    told: list[float] = []
    async for event in other.watch(job.id):
        if event.type == "processing":
            seen.set()
        elif event.type == "progress":
            told.append(event.data["fraction"])  # type: ignore[arg-type]
            hold.set()
    assert told == [0.25]


async def test_progress_nobody_told_of_is_found_in_the_row(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    driver, other = await replica(world), await replica(world, poll_s=0.02)
    job, _ = await driver.submit(new_job())
    await until(lambda: world.gpu.followed == [job.id])
    await world.write("UPDATE jobs SET progress = 0.5")
    async for event in other.watch(job.id):
        if event.type == "progress":
            assert event.data["fraction"] == 0.5
            world.gpu.hold.set()
    assert world.gpu.hold.is_set()


async def test_a_lost_listen_connection_is_made_anew_and_what_was_missed_is_read(
    world: World,
) -> None:
    world.gpu.hold = asyncio.Event()
    driver, other = await replica(world), await replica(world)
    jobs = [(await driver.submit(new_job()))[0] for _ in range(2)]
    await until(lambda: len(world.gpu.followed) == 2)
    waiting = [asyncio.create_task(finished(other, job.id)) for job in jobs]
    for _ in range(2):
        await until(lambda: len(world.rows(LISTENERS)) == 2)
        await world.write(f"SELECT pg_terminate_backend(pid) FROM ({LISTENERS}) AS l")
    world.gpu.hold.set()
    assert [job.status for job in await asyncio.gather(*waiting)] == ["completed", "completed"]


async def test_three_gateways_never_give_a_backend_more_than_it_takes(world: World) -> None:
    world.gpu.capacity = 3
    gateways = [await replica(world, sweep_s=0.5, lease_s=30) for _ in range(3)]
    submitted = await asyncio.gather(
        *(gateways[n % 3].submit(new_job(caller=f"c{n % 7}")) for n in range(60))
    )
    for n, (job, _) in enumerate(submitted):
        assert (await finished(gateways[(n + 1) % 3], job.id)).status == "completed"
    assert sorted(world.gpu.started) == sorted(job.id for job, _ in submitted)
    assert world.gpu.most_at_once <= 3
    assert world.rows("SELECT DISTINCT attempt, epoch, deaths FROM runs") == [
        {"attempt": 0, "epoch": 0, "deaths": 0}
    ]


class Tomorrow(SystemClock):
    """The clock of a machine that is a day ahead."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=20)


async def test_who_is_alive_is_told_by_the_databases_clock(world: World) -> None:
    world.gpu.hold = asyncio.Event()
    first = await replica(world, lease_s=15)
    job, _ = await first.submit(new_job(deadline_s=7 * 86_400))
    await until(lambda: world.gpu.followed == [job.id])
    db = Database(world.url)
    ahead = Jobs(
        db=db,
        backends=world.backends,
        storage=world.storage,
        names=first._engine.files._names,
        settings=replace(first._settings, lease_s=15),
        clock=Tomorrow(),
    )
    await ahead.start()
    await ahead._ownership.take_over()
    assert world.rows("SELECT epoch FROM runs") == [{"epoch": 0}]
    await ahead.stop()
    await db.close()
    world.gpu.hold.set()
    assert (await finished(first, job.id)).status == "completed"


async def test_a_submit_whose_commit_was_not_answered_finds_its_own_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = JobRows.insert
    answers = [False, True]

    async def unanswered(self: JobRows, new: NewJob, **options: Any) -> Job:
        job = await insert(self, new, **options)
        if answers.pop(0):
            return job
        raise DatabaseUnavailable("the connection broke at the commit")

    jobs = await replica(world)
    monkeypatch.setattr(JobRows, "insert", unanswered)
    new = new_job(idempotency_key="k", request_hash="h")
    job, made_before = await jobs.submit(new)
    assert (job.id, made_before) == (new.id, False)
    assert (await finished(jobs, job.id)).status == "completed"
    assert len(world.rows("SELECT id FROM runs")) == 1


async def test_a_gateway_whose_connections_are_all_taken_says_that_it_is_alive(
    postgres_url: str,
) -> None:
    db = Database(postgres_url, connections=2)
    taken, release = asyncio.Semaphore(0), asyncio.Event()

    async def held(reading: Transaction) -> None:
        await reading.rows(text("SELECT 1"))
        taken.release()
        await release.wait()

    requests = [asyncio.create_task(db.read(held)) for _ in range(2)]
    for _ in requests:
        await taken.acquire()
    rows, now, lease = OwnerRows(db, ()), SystemClock().now(), timedelta(seconds=60)
    none_full = Full(callers=(), below_ordinary=())
    # sooner than a pool gives up by itself
    async with asyncio.timeout(PATIENT / 2):
        await rows.enter("r", now, lease, alone=False)
        assert (await rows.beat("r", now, lease)).silent_s is not None
        await rows.take_over(
            "r", now, lease=lease, room=1, full=none_full, room_of=lambda _caller, _priority: 1
        )
        assert await rows.open_runs("r") == []
    release.set()
    await asyncio.gather(*requests)
    await db.close()


@pytest.mark.parametrize(
    "obstacle",
    [
        "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$",
        "DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40P01'; END $$",
        "SELECT pg_terminate_backend(pg_backend_pid())",
    ],
    ids=["serialization", "deadlock", "connection"],
)
async def test_a_transaction_others_kept_from_going_through_is_begun_anew(
    postgres_url: str, obstacle: str
) -> None:
    db = Database(postgres_url)
    tries = 0

    async def work(writing: Transaction) -> int:
        nonlocal tries
        tries += 1
        await writing.execute(text("INSERT INTO replicas (id, seen) VALUES ('r', 1)"))
        if tries == 1:
            await writing.execute(text(obstacle))
        return tries

    assert await db.write(work) == 2
    seen = await db.read(lambda reading: reading.rows(text("SELECT id FROM replicas")))
    assert [row["id"] for row in seen] == ["r"]
    await db.close()


async def test_an_older_version_works_beside_a_newer_one(world: World) -> None:
    await world.write("UPDATE alembic_version SET version_num = '9999'")
    await world.write("ALTER TABLE jobs ADD COLUMN of_tomorrow TEXT DEFAULT 'x' NOT NULL")
    await world.write("ALTER TABLE runs ADD COLUMN of_tomorrow TEXT DEFAULT 'x' NOT NULL")
    jobs = await replica(world)
    await jobs._db.check_schema()
    job, _ = await jobs.submit(new_job())
    assert (await finished(jobs, job.id)).status == "completed"


async def test_texts_no_row_can_hold_are_found_nowhere_and_end_a_job_all_the_same(
    world: World,
) -> None:
    jobs = await replica(world)
    assert await jobs.file("a\0b.png") is None
    assert await jobs.find("alice", "a\0b", None) is None
    assert (await jobs.list(JobQuery(tool="a\0\ud800b"))).items == ()
    failure = Failure(kind="fatal", code="x", message="a\0b")
    world.gpu.follows = [RunFailed(failure, executed=True)]
    job, _ = await jobs.submit(new_job(params={"prompt": "a\0b\ud800"}))
    done = await finished(jobs, job.id)
    assert done.error is not None
    assert done.error.message == "a\ufffdb"
    assert done.params == {"prompt": "a\0b\ud800"}
