"""The job engine without HTTP: submit rate, submit to start, end to waiter."""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg

from benchmarks.double import Double
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.job import Call, NewJob, new_job_id
from gateway.jobs.engine import Jobs
from gateway.jobs.settings import JobSettings
from gateway.security.signing import SignedFileNames, Signer
from gateway.storage.local import LocalStorage

AT_ONCE = 16
WARM_UP = 20


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One engine and its backend."""

    jobs: Jobs
    double: Double


@asynccontextmanager
async def replica(
    url: str, folder: Path, *, capacity: int, run_s: float = 0.0
) -> AsyncGenerator[Replica]:
    """An engine at work on a database."""
    signer = Signer(b"s" * 32)
    storage = LocalStorage(folder / "files", signer, "http://127.0.0.1:1")
    double = Double(capacity=capacity, run_s=run_s)
    double.storage = storage
    db = Database(url)
    jobs = Jobs(
        db=db,
        backends=[double],
        storage=storage,
        names=SignedFileNames(signer),
        settings=JobSettings(slot_lifetime=timedelta(hours=1)),
        clock=SystemClock(),
    )
    await jobs.start()
    try:
        yield Replica(jobs=jobs, double=double)
    finally:
        await jobs.stop()
        await db.close()


def new_job() -> NewJob:
    call = Call(
        workflow="checkpoint",
        digest="d" * 64,
        params={"prompt": "bench", "seed": 1, "width": 256, "height": 256},
        outputs=("images/0",),
        prefix="generated",
        models=("checkpoints/tiny-sd15.ckpt",),
    )
    return NewJob(
        id=new_job_id(),
        tool="generate",
        variant="checkpoint",
        caller="bench",
        params={"prompt": "bench"},
        call=call,
        deadline_s=3600,
        idempotency_key=str(uuid.uuid4()),
        request_hash="h" * 64,
    )


async def submit_rate(url: str, folder: Path, count: int) -> float:
    """Jobs written a second, 16 callers at once, nothing that could carry them out."""
    async with replica(url, folder, capacity=0) as one:
        new = iter([new_job() for _ in range(count)])

        async def caller() -> None:
            for each in new:
                await one.jobs.submit(each)

        begin = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        return count / (time.perf_counter() - begin)


async def starts(url: str, folder: Path, count: int) -> list[float]:
    """Milliseconds from the call of `submit` until the backend is asked, with room to run."""
    async with replica(url, folder, capacity=10_000) as one:
        asked: dict[str, asyncio.Future[float]] = {}

        def started(run: str) -> None:
            asked[run].set_result(time.perf_counter())

        one.double.started = started
        found: list[float] = []
        for _ in range(count + WARM_UP):
            new = new_job()
            asked[new.id] = asyncio.get_running_loop().create_future()
            begin = time.perf_counter()
            await one.jobs.submit(new)
            found.append((await asked[new.id] - begin) * 1000)
            await one.jobs.wait(new.id, 60)
            await asyncio.sleep(0.01)
        return found[WARM_UP:]


async def results(url: str, folder: Path, count: int, *, elsewhere: bool) -> list[float]:
    """Milliseconds from the backend's end until a waiter has the job, here or `elsewhere`."""
    async with replica(url, folder, capacity=10_000, run_s=0.05) as one:
        if not elsewhere:
            return await _results(one, one.jobs, count)
        async with replica(url, folder, capacity=0) as other:
            return await _results(one, other.jobs, count)


async def _results(one: Replica, waits: Jobs, count: int) -> list[float]:
    ended: dict[str, float] = {}

    def note(run: str) -> None:
        ended[run] = time.perf_counter()

    one.double.ended = note
    found: list[float] = []
    for _ in range(count + WARM_UP):
        job, _ = await one.jobs.submit(new_job())
        waiting = await waits.wait(job.id, 60)
        answered = time.perf_counter()
        assert waiting is not None
        assert waiting.status == "completed", waiting.error
        found.append((answered - ended[job.id]) * 1000)
        await asyncio.sleep(0.01)
    return found[WARM_UP:]


async def commits(url: str, count: int) -> list[float]:
    """Milliseconds of one bare commit of one row: what nothing can be faster than."""
    if not url.startswith("sqlite"):
        return await _commits_postgres(url, count)
    return await asyncio.to_thread(_commits_sqlite, Path(url.partition("///")[2]), count)


async def _commits_postgres(url: str, count: int) -> list[float]:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE floor (id text PRIMARY KEY)")
    found: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        await connection.execute("INSERT INTO floor VALUES ($1)", str(uuid.uuid4()))
        found.append((time.perf_counter() - begin) * 1000)
    await connection.execute("DROP TABLE floor")
    await connection.close()
    return found


def _commits_sqlite(path: Path, count: int) -> list[float]:
    connection = sqlite3.connect(path.with_name("floor.sqlite"), isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE floor (id text PRIMARY KEY)")
    found: list[float] = []
    for _ in range(count):
        begin = time.perf_counter()
        connection.execute("INSERT INTO floor VALUES (?)", (str(uuid.uuid4()),))
        found.append((time.perf_counter() - begin) * 1000)
    connection.close()
    return found
