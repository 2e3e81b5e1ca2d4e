"""Work on a pod and on serverless workers: the pod dies, RunPod is unwell, nothing is lost or paid
twice."""

import asyncio
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.comfyui import Simulator
from tests.support.runpod_double import API_KEY, ENDPOINT_ID, Fault, Runpod, runpod
from tests.support.serverless import require_sdk, working
from tests.support.stack import KEY, Stack, wait_ready

JOBS = 200
BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
}
SERVERLESS = f"runpod:{ENDPOINT_ID}"
PATIENCE_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """A gateway, its pod, and an endpoint with its worker."""

    stack: Stack
    double: Runpod
    worker: Simulator
    http: httpx.AsyncClient

    @property
    def pod(self) -> str:
        return f"127.0.0.1:{self.stack.ports['gpu_server']}"

    def rows(self, query: str) -> list[Any]:
        path = self.stack.workspace / "data" / "gateway.sqlite"
        with closing(sqlite3.connect(path, timeout=60)) as database:
            return database.execute(query).fetchall()

    def done(self, backend: str) -> int:
        """Runs delivered there."""
        query = "SELECT backend, count(*) FROM runs WHERE state = 'delivered' GROUP BY backend"
        return dict(self.rows(query)).get(backend, 0)

    async def until(self, true: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(true):  # noqa: ASYNC110 - other processes
                await asyncio.sleep(0.2)


@pytest_asyncio.fixture
async def places(tmp_path: Path) -> AsyncGenerator[Places]:
    require_sdk()
    stack = Stack(tmp_path / "stack", SIM_STEP_MS="20")
    worker = Simulator(tmp_path)
    async with runpod(lost_after_s=600) as double:
        stack.extra_env |= {
            "RUNPOD_API_KEY": API_KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT_ID,
            "RUNPOD_API_URL": double.base_url,
            "RUNPOD_MAX_JOBS": "6",
            "PUBLIC_URL": stack.url,
            "FALLBACK_AFTER_S": "1",
            "BACKEND_LOST_AFTER": "600",
        }
        try:
            await asyncio.to_thread(worker.start)
            # slow, so that work is left when the pod comes back
            await asyncio.to_thread(worker.turn, step_ms=250)
            await asyncio.to_thread(stack.start)
            headers = {"Authorization": f"Bearer {KEY}"}
            async with (
                working(tmp_path, worker.url, double, MAX_CONCURRENT_TASKS="3"),
                httpx.AsyncClient(
                    base_url=stack.url, headers=headers, timeout=120, trust_env=False
                ) as http,
            ):
                with stack.client() as client:
                    await asyncio.to_thread(wait_ready, client, BODY["variant"])
                yield Places(stack=stack, double=double, worker=worker, http=http)
        finally:
            await asyncio.to_thread(stack.stop)
            await asyncio.to_thread(worker.close)


@pytest.mark.timeout(1500)
async def test_200_jobs_end_right_though_the_pod_dies_and_runpod_is_unwell(places: Places) -> None:
    stack, double = places.stack, places.double
    items = [BODY | {"seed": n} for n in range(JOBS)]
    asked = {"tool": "generate", "items": items}
    answer = await places.http.post("/api/batches", json=asked)
    assert answer.status_code == 202, answer.text
    jobs = [job for (job,) in places.rows("SELECT id FROM jobs ORDER BY batch_n")]
    assert len(jobs) == JOBS

    # the first choice works
    await places.until(lambda: places.done(places.pod) >= 10)
    assert double.calls["run"] == 0
    await asyncio.to_thread(stack.kill, "gpu_server", "simulator")
    # so the next one is taken, and is unwell: some submits are taken though it says that they are
    # not, others are not taken, and nothing can be learnt for a while
    await places.until(lambda: places.done(SERVERLESS) >= 5)
    double.faults += [
        Fault(op="run", status=500, after=True, times=2),
        Fault(op="run", status=500, times=2),
        Fault(op="run", status=None, after=True),
        Fault(op="status", status=500, times=15),
        Fault(op="health", status=500),
    ]
    await places.until(lambda: not any(fault.times for fault in double.faults))
    before = places.done(SERVERLESS)
    await places.until(lambda: places.done(SERVERLESS) >= before + 5)
    # and back
    here = places.done(places.pod)
    await asyncio.to_thread(stack.start, "simulator", "gpu_server")
    await places.until(lambda: places.done(places.pod) >= here + 10)

    await places.until(
        lambda: not places.rows("SELECT 1 FROM jobs WHERE finished_at IS NULL LIMIT 1")
    )
    statuses = Counter(status for (status,) in places.rows("SELECT status FROM jobs"))
    assert statuses == {"completed": JOBS}, places.rows(
        "SELECT error_code, error_message FROM jobs WHERE status != 'completed'"
    )
    await nothing_was_paid_twice(places)
    explained(places, jobs)
    await the_pictures_are_there(places, jobs)


async def nothing_was_paid_twice(places: Places) -> None:
    """No job was executed by two serverless jobs, and no result of one was thrown away."""
    executed = Counter((await asyncio.to_thread(places.worker.state))["executed_ids"])
    assert set(executed.values()) == {1}
    of_job = dict(places.rows("SELECT id, job_id FROM runs"))
    paid = Counter(of_job[run] for run in executed)
    assert set(paid.values()) == {1}
    # what was paid for is what was delivered
    query = f"SELECT id FROM runs WHERE state = 'delivered' AND backend = '{SERVERLESS}'"
    assert {run for (run,) in places.rows(query)} == set(executed)


def explained(places: Places, jobs: list[str]) -> None:
    """Each job's log says where it went, and why."""
    query = "SELECT job_id, data FROM job_events WHERE type = 'processing'"
    told: dict[str, list[Any]] = {}
    for job, data in places.rows(query):
        told.setdefault(job, []).append(json.loads(data))
    assert set(told) == set(jobs)
    reasons = {(event["backend"], event["reason"]) for each in told.values() for event in each}
    assert (places.pod, "first choice") in reasons
    fallen_back = {reason for backend, reason in reasons if backend == SERVERLESS}
    assert fallen_back
    assert all(reason.startswith(f"{places.pod} has not answered for") for reason in fallen_back)


async def the_pictures_are_there(places: Places, jobs: list[str]) -> None:
    """Each is served, and says where it was made."""
    backends = Counter[str]()
    for job in jobs:
        told = (await places.http.get(f"/api/generate/{job}")).json()
        backends[told["result"]["backend"]] += 1
        picture = await places.http.get(told["result"]["files"][0]["url"])
        assert picture.status_code == 200
        assert picture.content.startswith(b"\x89PNG")
    assert set(backends) == {places.pod, SERVERLESS}
