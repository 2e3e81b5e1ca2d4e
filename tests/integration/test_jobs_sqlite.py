"""The job engine as a real process on a real file, killed at random moments."""

import asyncio
import random
import signal
import sqlite3
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from gateway.db import migrate
from tests.integration.killable_gateway import content

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "integration" / "killable_gateway.py"
KILLS = 10
JOBS = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("gpu", "files"):
        (tmp_path / name).mkdir()
    migrate(f"sqlite+aiosqlite:///{tmp_path / 'gateway.db'}")
    return tmp_path


async def start(folder: Path, submit: int = 0) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        str(folder),
        str(submit),
        stdout=PIPE,
        stderr=PIPE,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )


async def said(process: Process) -> str:
    assert process.stdout is not None
    assert process.stderr is not None
    line = await asyncio.wait_for(process.stdout.readline(), 60)
    if not line:
        raise AssertionError((await process.stderr.read()).decode())
    return line.decode().strip()


async def kill(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGKILL)
    await process.communicate()


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder / "gateway.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.mark.timeout(300)
async def test_ten_kills_at_random_moments_leave_one_result_a_job_and_one_execution(
    folder: Path,
) -> None:
    rng = random.Random(20)
    process = await start(folder, JOBS)
    try:
        assert await said(process) == "ready"
        submitted = [await said(process) for _ in range(JOBS)]
        for _ in range(KILLS):
            await asyncio.sleep(rng.uniform(0, 0.3))
            await kill(process)
            process = await start(folder)
            assert await said(process) == "ready"
        assert await said(process) == "done"
    finally:
        await kill(process)

    waiting, *ended = submitted
    assert rows(folder, "SELECT id FROM jobs WHERE status = 'completed' ORDER BY id") == [
        (job,) for job in sorted(ended)
    ]
    # every run is its job's first: nothing was tried again, nothing executed twice
    assert sorted(rows(folder, "SELECT id, attempt FROM runs")) == [
        (job, 0) for job in sorted(submitted)
    ]
    executed = {path.name for path in (folder / "gpu").iterdir() if not path.suffix}
    assert executed == set(ended)
    assert rows(folder, "SELECT job_id FROM artifacts ORDER BY job_id") == [
        (job,) for job in sorted(ended)
    ]
    assert sorted(path.read_bytes() for path in (folder / "files").iterdir()) == sorted(
        content(job) for job in ended
    )
    assert (
        rows(folder, "SELECT job_id, n FROM job_events GROUP BY job_id, n HAVING count(*) > 1")
        == []
    )
    # ten unclean restarts under a job that waits
    [run] = rows(
        folder, f"SELECT state, attempt, failures, deaths FROM runs WHERE id = '{waiting}'"
    )
    assert run == ("waiting", 0, 0, 0)
    why = "SELECT count(*) FROM job_events WHERE type = 'waiting'"
    assert rows(folder, why) == [(1,)]


@pytest.mark.timeout(600)
async def test_a_second_process_on_the_folder_is_refused_until_the_first_is_killed(
    folder: Path,
) -> None:
    first = await start(folder)
    try:
        assert await said(first) == "ready"
        second = await start(folder)
        _, errors = await asyncio.wait_for(second.communicate(), 60)
        assert second.returncode == 1
        assert b"FolderInUse: Another gateway already works on the data folder" in errors
    finally:
        await kill(first)
    third = await start(folder)
    try:
        assert await said(third) == "ready"
    finally:
        await kill(third)
