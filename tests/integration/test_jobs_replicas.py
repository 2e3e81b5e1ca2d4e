"""Gateways as processes of their own on one PostgreSQL: killed, stopped and frozen."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import rows
from tests.unit.jobs.world import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "integration" / "replica_process.py"
SAY_S = 60.0


class Replica:
    """A gateway process and what it says."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def said(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), SAY_S)
        if not line:
            raise AssertionError((await self.process.stderr.read()).decode())
        return line.decode().strip()

    async def ask(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n".encode())
        return await self.said()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


class Fleet:
    """Gateways on one database and one folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.replicas: list[Replica] = []
        for name in ("gpu", "files"):
            (folder / name).mkdir()

    async def start(self, **settings: Any) -> Replica:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(SCRIPT),
            str(self.folder),
            self.url,
            json.dumps(settings),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT)},
        )
        replica = Replica(process)
        self.replicas.append(replica)
        assert await replica.said() == "ready"
        return replica

    def release(self) -> None:
        """Let the runs end."""
        (self.folder / "gpu" / "release").touch()

    def executed(self) -> list[str]:
        """Runs that were begun, each once."""
        files = (self.folder / "gpu").iterdir()
        return sorted(f.name for f in files if not f.suffix and f.name != "release")

    async def end(self) -> None:
        for replica in self.replicas:
            if replica.process.returncode is None:
                replica.signal(signal.SIGCONT)
                replica.process.kill()
            await replica.process.communicate()


@asynccontextmanager
async def fleet_on(folder: Path, url: str) -> AsyncGenerator[Fleet]:
    fleet = Fleet(folder, url)
    try:
        yield fleet
    finally:
        await fleet.end()


async def submitted(replica: Replica, fleet: Fleet, count: int) -> list[str]:
    """Jobs that this replica drives: all have begun."""
    jobs = [await replica.ask("submit flux") for _ in range(count)]
    await until(lambda: states(fleet) == {"started"})
    return jobs


def states(fleet: Fleet) -> set[str]:
    return {row["state"] for row in rows(fleet.url, "SELECT state FROM runs")}


def once_each(fleet: Fleet, jobs: list[str]) -> None:
    """Every job is completed, was executed once, and its result is stored once."""
    assert fleet.executed() == sorted(jobs)
    done = rows(fleet.url, "SELECT id, status FROM jobs ORDER BY id")
    assert done == [{"id": job, "status": "completed"} for job in sorted(jobs)]
    kept = rows(fleet.url, "SELECT job_id FROM artifacts ORDER BY job_id")
    assert [row["job_id"] for row in kept] == sorted(jobs)
    ends = "SELECT job_id FROM job_events WHERE type = 'completed' ORDER BY job_id"
    assert [row["job_id"] for row in rows(fleet.url, ends)] == sorted(jobs)
    assert rows(fleet.url, "SELECT DISTINCT attempt, deaths FROM runs") == [
        {"attempt": 0, "deaths": 0}
    ]


@pytest.mark.timeout(600)
async def test_the_runs_of_a_killed_gateway_go_to_another_within_its_lease(
    tmp_path: Path, postgres_url: str
) -> None:
    async with fleet_on(tmp_path, postgres_url) as fleet:
        first, second = await fleet.start(lease_s=2), await fleet.start(lease_s=2)
        jobs = await submitted(first, fleet, 3)
        first.signal(signal.SIGKILL)
        await first.process.wait()
        fleet.release()
        assert [await second.ask(f"wait {job}") for job in jobs] == ["completed"] * 3
        once_each(fleet, jobs)


@pytest.mark.timeout(600)
async def test_the_runs_of_a_stopped_gateway_go_to_another_at_once(
    tmp_path: Path, postgres_url: str
) -> None:
    async with fleet_on(tmp_path, postgres_url) as fleet:
        # no lease ends within this test
        first, second = await fleet.start(lease_s=3600), await fleet.start(lease_s=3600)
        jobs = await submitted(first, fleet, 3)
        first.signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(first.process.communicate(), SAY_S)
        assert first.process.returncode == 0, errors.decode()
        fleet.release()
        assert [await second.ask(f"wait {job}") for job in jobs] == ["completed"] * 3
        once_each(fleet, jobs)


@pytest.mark.timeout(600)
async def test_a_gateway_frozen_beyond_its_lease_writes_nothing_and_works_on_afterwards(
    tmp_path: Path, postgres_url: str
) -> None:
    async with fleet_on(tmp_path, postgres_url) as fleet:
        zombie, other = await fleet.start(lease_s=2), await fleet.start(lease_s=2)
        jobs = await submitted(zombie, fleet, 3)
        zombie.signal(signal.SIGSTOP)
        await until(lambda: epochs(fleet) == {1})

        zombie.signal(signal.SIGCONT)

        # it notices, lets go of what is another's, and has written nothing
        await until_driving(zombie, 0)
        assert await other.ask("driving") == "3"
        assert (states(fleet), epochs(fleet)) == ({"started"}, {1})
        fleet.release()
        assert [await other.ask(f"wait {job}") for job in jobs] == ["completed"] * 3
        once_each(fleet, jobs)
        alive = await zombie.ask("submit flux")
        assert await zombie.ask(f"wait {alive}") == "completed"
        once_each(fleet, [*jobs, alive])


def epochs(fleet: Fleet) -> set[int]:
    return {row["epoch"] for row in rows(fleet.url, "SELECT epoch FROM runs")}


async def until_driving(replica: Replica, count: int) -> None:
    async with asyncio.timeout(SAY_S):
        while await replica.ask("driving") != str(count):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.05)
