"""The table of states, and that no sequence of writes leaves it."""

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.db import Database
from gateway.db.jobs import JobRows
from gateway.db.placements import grant
from gateway.db.runs import OwnershipLost, RunRows
from gateway.job import (
    JOB_MOVES,
    JOB_TERMINAL,
    RUN_MOVES,
    RUN_TERMINAL,
    Artifact,
    JobError,
    JobStatus,
    Outcome,
    Produced,
    Run,
    RunState,
    run_id,
)
from tests.unit.jobs.world import new_job, sent

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PRODUCED = Produced(outputs=(sent("images/0"),), params={}, engine="simulator", duration_seconds=1)
OUTCOME = Outcome(params={}, engine="simulator", backend="gpu", duration_seconds=1)
ERROR = JobError(code="oom", message="no memory", kind="transient")


def test_every_state_a_move_leads_to_exists_and_terminal_ones_lead_nowhere() -> None:
    for moves, terminal in ((JOB_MOVES, JOB_TERMINAL), (RUN_MOVES, RUN_TERMINAL)):
        for state, targets in moves.items():
            assert targets <= set(moves)
            assert (state in terminal) == (not targets)
            # an end can be reached from everywhere: nothing hangs
            assert state in terminal or targets & set(terminal)


def test_a_run_id_is_the_jobs_own_at_first_and_differs_for_every_further_one() -> None:
    job = new_job().id
    assert run_id(job, 0, 0) == job
    ids = {run_id(job, stage, attempt) for stage in range(3) for attempt in range(5)}
    assert len(ids) == 15


class Rows:
    """One job and the writes of its driver, some of them late or by a driver that lost it."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.jobs = JobRows(db)
        self.runs = RunRows(db)
        self.job = new_job()
        self.known: list[Run] = []
        """Every state of a run a driver ever saw; it may act on any of them."""

    async def submit(self) -> None:
        await self.jobs.insert(self.job, owner="me", now=NOW)
        await self.look()

    async def look(self) -> None:
        for attempt in range(4):
            run = await self.runs.load(run_id(self.job.id, 0, attempt), "me")
            if run is not None and run not in self.known:
                self.known.append(run)

    async def grant(self, run: Run) -> None:
        await self.db.write(lambda writing: grant(writing, run.id, run.epoch, "gpu", NOW))

    async def put_back(self, run: Run) -> None:
        await self.runs.put_back(run, not_before=NOW)

    async def started(self, run: Run) -> None:
        await self.runs.started(run, "reference", NOW)

    async def progressed(self, run: Run) -> None:
        if run.state == "started":
            await self.runs.progressed(run, 0.5)

    async def produced(self, run: Run) -> None:
        await self.runs.produced(run, PRODUCED)

    async def delivered(self, run: Run) -> None:
        file = Artifact(
            job_id=run.job_id,
            output="images",
            n=0,
            key=run.id,
            filename=run.id,
            media_type="image/png",
            bytes=1,
            sha256="0" * 64,
        )
        await self.runs.delivered(run, OUTCOME, [file], NOW)

    async def failed(self, run: Run) -> None:
        await self.runs.failed(run, ERROR, NOW, tell_backend=True)

    async def again(self, run: Run) -> None:
        await self.runs.next_attempt(
            run, ERROR, failures=1, deaths=0, not_before=NOW, now=NOW, tell_backend=False
        )

    async def cancelled_there(self, run: Run) -> None:
        await self.runs.cancelled(run, NOW)

    async def cancel(self, run: Run) -> None:
        await self.jobs.cancel(run.job_id, NOW + timedelta(seconds=1))

    async def taken_over(self, run: Run) -> None:
        def take() -> None:
            path = self.db._address.partition(":///")[2]
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("UPDATE runs SET epoch = epoch + 1 WHERE id = ?", (run.id,))
            connection.close()

        await asyncio.to_thread(take)


MOVES = (
    "grant",
    "put_back",
    "started",
    "progressed",
    "produced",
    "delivered",
    "failed",
    "again",
    "cancelled_there",
    "cancel",
    "taken_over",
)


def state_of(path: Path) -> tuple[JobStatus, dict[str, RunState]]:
    connection = sqlite3.connect(path)
    [(status,)] = connection.execute("SELECT status FROM jobs").fetchall()
    runs = dict(connection.execute("SELECT id, state FROM runs").fetchall())
    events = [n for (n,) in connection.execute("SELECT n FROM job_events ORDER BY n")]
    assert events == list(range(1, len(events) + 1))
    files = connection.execute("SELECT count(*) FROM artifacts").fetchone()[0]
    assert files == (1 if status == "completed" else 0)
    connection.close()
    return status, runs


def check_move(
    before: tuple[JobStatus, dict[str, RunState]], after: tuple[JobStatus, dict[str, RunState]]
) -> None:
    (old, old_runs), (new, new_runs) = before, after
    assert new == old or new in JOB_MOVES[old]
    for identifier, state in new_runs.items():
        earlier = old_runs.get(identifier)
        if earlier is None:
            assert state == "waiting"
        else:
            assert state == earlier or state in RUN_MOVES[earlier]
    still_open = [state for state in new_runs.values() if state not in RUN_TERMINAL]
    # a job that has not ended has exactly one run that can bring it on; an ended one has none
    assert len(still_open) == (0 if new in JOB_TERMINAL else 1)
    assert (new == "completed") == ("delivered" in new_runs.values())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(st.sampled_from(MOVES), min_size=1, max_size=14), seed=st.integers(0, 2**32))
def test_no_sequence_of_writes_leaves_the_table_of_states(
    empty_database: Path, steps: list[str], seed: int
) -> None:
    asyncio.run(play(empty_database, steps, random.Random(seed)))


async def play(empty_database: Path, steps: list[str], rng: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gateway.db"
        shutil.copy(empty_database, path)
        db = Database(f"sqlite+aiosqlite:///{path}")
        rows = Rows(db)
        await rows.submit()
        before = state_of(path)
        for step in steps:
            # mostly what is known last, at times something long past
            run = rows.known[-1] if rng.random() < 0.8 else rng.choice(rows.known)
            write: Callable[[Run], Awaitable[None]] = getattr(rows, step)
            try:
                await write(run)
            except (OwnershipLost, ValueError):
                assert state_of(path) == before
            after = state_of(path)
            check_move(before, after)
            before = after
            await rows.look()
        await db.close()


async def test_a_write_under_an_older_epoch_matches_no_row(
    empty_database: Path, tmp_path: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "gateway.db")
    db = Database(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    rows = Rows(db)
    await rows.submit()
    [run] = rows.known
    await rows.grant(run)
    await rows.look()
    await rows.taken_over(run)
    for write in (rows.put_back, rows.started, rows.failed, rows.again, rows.cancelled_there):
        with pytest.raises(OwnershipLost):
            await write(rows.known[-1])
    assert state_of(tmp_path / "gateway.db") == ("pending", {run.id: "granted"})
    await db.close()
