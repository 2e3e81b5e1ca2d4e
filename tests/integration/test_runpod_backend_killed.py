"""Workers and gateways that are killed while a job runs at RunPod: one run is paid for."""

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.comfyui import Simulator
from tests.support.runpod_double import Fault, Runpod, runpod
from tests.support.runpod_jobs import Job
from tests.support.serverless import require_sdk, until, working
from tests.support.serverless_gateway import BODY, endpoint_env, serverless_gateway
from tests.support.stack import Stack

SLOW_MS = 2000
PATIENCE_S = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Generator[Simulator]:
    simulator = Simulator(folder)
    simulator.start()
    yield simulator
    simulator.close()


@pytest.fixture
def simulator(shared: Simulator) -> Simulator:
    shared.turn(reset=True, step_ms=5)
    return shared


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod() as double:
        yield double


@asynccontextmanager
async def gateway_process(folder: Path, double: Runpod) -> AsyncGenerator[Stack]:
    """A gateway of its own process, which can be killed."""
    env = {key.upper(): value for key, value in endpoint_env(double).items()}
    env["BACKENDS"] = "runpod"
    stack = Stack(folder, **env)
    try:
        await asyncio.to_thread(stack.start, "gateway")
        yield stack
    finally:
        await asyncio.to_thread(stack.stop)


async def submitted(http: httpx.AsyncClient, **changes: Any) -> str:
    answer = await http.post("/api/generate/async", json=BODY | changes)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def end_of(http: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            job = (await http.get(f"/api/generate/{job_id}", params={"wait": 10})).json()
            if job["status"] in {"completed", "failed", "cancelled"}:
                return job


def client(stack: Stack) -> httpx.AsyncClient:
    headers = dict(stack.client().headers)
    return httpx.AsyncClient(
        base_url=stack.url, headers=headers, trust_env=False, timeout=PATIENCE_S
    )


def only(double: Runpod) -> Job:
    (job,) = double.endpoint.jobs.values()
    return job


async def restarted(stack: Stack) -> None:
    await asyncio.to_thread(stack.kill, "gateway")
    await asyncio.to_thread(stack.start, "gateway")


@pytest.mark.timeout(900)
async def test_a_gateway_killed_while_a_job_runs_goes_on_with_it(
    tmp_path: Path, folder: Path, simulator: Simulator, double: Runpod
) -> None:
    simulator.turn(step_ms=150)
    async with (
        working(folder, simulator.url, double),
        gateway_process(tmp_path, double) as stack,
        client(stack) as http,
    ):
        job_id = await submitted(http, num_inference_steps=30)
        await until(lambda: simulator.queue()[0])
        await restarted(stack)
        job = await end_of(http, job_id)
    assert job["status"] == "completed", job
    assert (only(double).takes, simulator.executions(job_id)) == (1, 1)


@pytest.mark.timeout(900)
async def test_a_gateway_killed_before_it_knew_the_jobs_id_finds_it_by_the_receipt(
    tmp_path: Path, folder: Path, simulator: Simulator, double: Runpod
) -> None:
    simulator.turn(step_ms=150)
    double.faults.append(Fault(op="run", status=500, after=True))
    async with (
        gateway_process(tmp_path, double) as stack,
        client(stack) as http,
    ):
        job_id = await submitted(http, num_inference_steps=30)
        await until(lambda: double.endpoint.jobs)
        await restarted(stack)
        async with working(folder, simulator.url, double):
            job = await end_of(http, job_id)
    assert job["status"] == "completed", job
    assert (only(double).takes, simulator.executions(job_id)) == (1, 1)
    assert double.calls["run"] == 1


@pytest.mark.timeout(900)
async def test_a_gateway_away_for_longer_than_runpod_remembers_has_the_result_all_the_same(
    tmp_path: Path, folder: Path, simulator: Simulator, double: Runpod
) -> None:
    simulator.turn(step_ms=150)
    async with (
        working(folder, simulator.url, double),
        gateway_process(tmp_path, double) as stack,
        client(stack) as http,
    ):
        job_id = await submitted(http, num_inference_steps=30)
        await until(lambda: simulator.queue()[0])
        # it takes in what the worker sends, and hears nothing of RunPod any more
        double.faults.append(Fault(op="status", status=500, times=10_000))
        await until(lambda: only(double).over)
        assert only(double).status == "COMPLETED"
        await asyncio.to_thread(stack.kill, "gateway")
        double.endpoint.advance(double.endpoint.retention_s + 1)
        double.faults.clear()
        await asyncio.to_thread(stack.start, "gateway")
        job = await end_of(http, job_id)
    assert job["status"] == "completed", job
    assert (only(double).takes, simulator.executions(job_id)) == (1, 1)


@pytest.mark.timeout(900)
async def test_a_run_whose_worker_is_killed_is_done_by_the_next_one(
    tmp_path: Path, folder: Path, simulator: Simulator, double: Runpod
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    async with serverless_gateway(tmp_path, double) as gateway:
        async with working(folder, simulator.url, double) as worker:
            job_id = await gateway.submit(num_inference_steps=100)
            await until(lambda: simulator.queue()[0])
            await asyncio.to_thread(worker.kill)
        double.closing = False
        # with a worker its ComfyUI is gone, too
        await asyncio.to_thread(simulator.kill)
        await asyncio.to_thread(simulator.start)
        simulator.turn(step_ms=5)
        first = only(double)
        double.endpoint.workers["w1"].last -= double.endpoint.lost_after_s
        await until(lambda: first.over)
        assert first.status == "TIMED_OUT"
        async with working(folder, simulator.url, double, name="w2"):
            job = await gateway.end_of(job_id)
        assert job["status"] == "completed", job
        log = "\n".join(await gateway.events(job_id))
    assert "run_lost" in log
    # a known loss: the second job is another attempt, and each was taken once
    assert [job.takes for job in double.endpoint.jobs.values()] == [1, 1]


@pytest.mark.timeout(900)
async def test_a_key_that_stops_working_holds_jobs_up_until_it_does_again(
    tmp_path: Path, folder: Path, simulator: Simulator, double: Runpod
) -> None:
    simulator.turn(step_ms=150)
    async with (
        working(folder, simulator.url, double),
        serverless_gateway(tmp_path, double) as gateway,
    ):
        job_id = await gateway.submit(num_inference_steps=30)
        await until(lambda: simulator.queue()[0])
        double.faults += [
            Fault(op=op, status=401, times=10_000) for op in ("run", "status", "health", "cancel")
        ]
        await until(lambda: gateway.backend.capacity == 0)
        waiting = await gateway.submit()
        health = (await gateway.http.get("/health")).json()
        assert health["backends"][0]["status"] == "unreachable"
        assert "RUNPOD_API_KEY" in health["backends"][0]["detail"]
        await until(lambda: only(double).over)
        double.faults.clear()
        for each in (job_id, waiting):
            assert (await gateway.end_of(each))["status"] == "completed"
    assert [job.takes for job in double.endpoint.jobs.values()] == [1, 1]


def test_the_gateway_starts_without_importing_runpods_sdk(tmp_path: Path) -> None:
    settings = {
        "runpod_api_key": "rpa_x",
        "runpod_endpoint_id": "ep0",
        "workspace": str(tmp_path),
        "runpod_api_url": "http://127.0.0.1:9",
    }
    code = (
        "import sys\nfrom gateway.main import create_app\nfrom gateway.settings import Settings\n"
        f"create_app(Settings.model_validate({settings!r}))\n"
        "assert 'gateway.backends.runpod' in sys.modules\nassert 'runpod' not in sys.modules"
    )
    stack = Stack(tmp_path)
    subprocess.run([stack.command("gateway")[0], "-c", code], check=True, env=stack.env())
