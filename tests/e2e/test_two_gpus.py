"""Two GPU services behind one gateway: work is spread, and moves when one of them fails."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, running, wait_ready

BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
}
STEPS, SLOW_MS, QUICK_MS = 100, 3000, 1
"""At the slow pace a job outlives the test."""
SECONDS = 120


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path, gpus=2, SIM_STEP_MS=str(SLOW_MS), BACKEND_LOST_AFTER="3") as stack:
        with stack.client() as client:
            wait_ready(client, BODY["variant"])
            until(lambda: all(each["capacity"] for each in health(client).values()))
        yield stack


def until(true: Callable[[], object]) -> None:
    """Return once something holds that only looking can show."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.1)


def health(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in client.get("/health").json()["backends"]}


def submit(client: httpx.Client) -> str:
    answer = client.post("/api/generate/async", json=BODY | {"num_inference_steps": STEPS})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def executes(stack: Stack, simulator: str) -> bool:
    return bool(stack.simulator(simulator)["queue_remaining"])


def next_busy(stack: Stack) -> str:
    """The simulator that something was given to."""
    until(lambda: any(executes(stack, each) for each in stack.simulators))
    return next(each for each in stack.simulators if executes(stack, each))


def name(stack: Stack, service: str) -> str:
    return f"127.0.0.1:{stack.ports[service]}"


def moved(stack: Stack, job_id: str) -> bool:
    """The job's first run is over and its second one is under way."""
    with sqlite3.connect(stack.workspace / "data" / "gateway.sqlite") as database:
        found = database.execute(
            "SELECT state FROM runs WHERE job_id = ? ORDER BY attempt", (job_id,)
        )
        states = [row[0] for row in found]
    database.close()
    return states[:1] == ["failed"] and states[-1] in {"started", "delivered"}


def untold(stack: Stack) -> int:
    """Runs that have ended whose GPU service does not know it yet."""
    with sqlite3.connect(stack.workspace / "data" / "gateway.sqlite") as database:
        (count,) = database.execute("SELECT count(*) FROM runs WHERE cancel_pending").fetchone()
    database.close()
    return int(count)


@pytest.mark.timeout(400)
def test_jobs_at_once_are_spread_over_both_and_health_lists_each(stack: Stack) -> None:
    with stack.client() as client:
        assert {each["status"] for each in health(client).values()} == {"healthy"}
        assert set(health(client)) == {name(stack, s) for s in stack.gpu_servers}
        # Two run and two wait in ComfyUI: one alone may follow the loaded model.
        jobs = [submit(client) for _ in range(4)]
        until(lambda: all(executes(stack, s) for s in stack.simulators))
        for job_id in jobs:
            client.post(f"/api/jobs/{job_id}/cancel")
        until(lambda: not any(executes(stack, s) for s in stack.simulators))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_the_work_of_one_that_fails_moves_and_stops_there_when_it_returns(
    stack: Stack, how: str
) -> None:
    with stack.client() as client:
        jobs = [submit(client)]
        simulator = next_busy(stack)
        failing = stack.gpu_servers[stack.simulators.index(simulator)]
        [job_id] = jobs
        until(lambda: stack.simulator(simulator)["executed_ids"] == [job_id])
        stack.kill(failing) if how == "kill" else stack.freeze(failing)
        until(lambda: moved(stack, job_id))
        assert health(client)[name(stack, failing)]["status"] == "unreachable"
        assert health(client)[name(stack, failing)]["capacity"] == 0
        # Its ComfyUI goes on with what nobody can stop now.
        assert executes(stack, simulator)

        stack.start(failing) if how == "kill" else stack.thaw(failing)
        until(lambda: not executes(stack, simulator))
        until(lambda: untold(stack) == 0)
        until(lambda: health(client)[name(stack, failing)]["status"] == "healthy")
        assert stack.simulator(simulator)["executed_ids"] == [job_id]
        # It is given work again.
        for each in jobs:
            client.post(f"/api/jobs/{each}/cancel")
        for each in stack.simulators:
            stack.simulator(each, step_ms=QUICK_MS)
        ended = [submit(client) for _ in range(6)]
        for each in ended:
            job = client.get(f"/api/jobs/{each}", params={"wait": 90}).json()
            assert job["status"] == "completed", job
        assert stack.simulator(simulator)["counts"]["executions"] > 1
