"""The gateway over the double, which drives RunPod's own SDK with our worker and the simulator."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.comfyui import Simulator
from tests.support.runpod_double import API_KEY, Fault, Runpod, runpod
from tests.support.serverless import WorkerProcess, require_sdk, until, working
from tests.support.serverless_gateway import ServedGateway, serverless_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")

SLOW_MS = 2000
"""Left to itself, a slow picture takes longer than any test waits."""
SLOW = {"num_inference_steps": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("runpod")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Generator[Simulator]:
    simulator = Simulator(folder)
    simulator.start()
    yield simulator
    simulator.close()


@module
async def double() -> AsyncGenerator[Runpod]:
    async with runpod() as double:
        yield double


@module
async def worker(folder: Path, shared: Simulator, double: Runpod) -> AsyncGenerator[WorkerProcess]:
    async with working(folder, shared.url, double) as worker:
        yield worker


@module
async def gateway(
    folder: Path, worker: WorkerProcess, double: Runpod
) -> AsyncGenerator[ServedGateway]:
    assert worker.name
    async with serverless_gateway(folder / "gateway", double) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def simulator(shared: Simulator, double: Runpod, worker: WorkerProcess) -> Simulator:
    shared.turn(reset=True, step_ms=5)
    double.faults.clear()
    double.endpoint.webhooks, double.endpoint.result_bytes = "sent", 10_000_000
    assert worker.running, worker.log
    return shared


async def test_a_picture_is_made_there_and_lies_here(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    job_id = await gateway.submit()
    job = await gateway.end_of(job_id)
    assert job["status"] == "completed", job
    assert job["result"]["backend"] == gateway.backend.name
    assert job["result"]["engine"] == "simulator"
    (file,) = job["result"]["files"]
    answer = await gateway.http.get(file["url"])
    assert answer.content.startswith(b"\x89PNG")
    assert simulator.executions(job_id) == 1
    there = await gateway.at_runpod(job_id)
    assert there.takes == 1
    # by its webhook, which was answered
    await gateway.double.endpoint.posted()
    assert there.attempts == [200]


async def test_progress_gets_here_and_never_goes_back(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=200)
    job_id = await gateway.submit(num_inference_steps=40)
    seen: list[float] = []
    while (job := await gateway.job(job_id))["status"] != "completed":
        assert job["status"] in {"pending", "processing"}, job
        seen.append(job["progress"])
        await asyncio.sleep(0.2)
    assert seen == sorted(seen)
    assert len({fraction for fraction in seen if 0 < fraction < 1}) > 2


async def test_a_running_job_is_stopped_and_the_worker_takes_the_next(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    job_id = await gateway.submit(**SLOW)
    await until(lambda: simulator.queue()[0])
    answer = await gateway.http.post(f"/api/jobs/{job_id}/cancel")
    assert answer.status_code == 200, answer.text
    await until(lambda: simulator.queue() == (set(), set()))
    assert (await gateway.at_runpod(job_id)).status == "CANCELLED"
    simulator.turn(step_ms=5)
    assert (await gateway.end_of(await gateway.submit()))["status"] == "completed"


async def test_a_job_that_waits_there_is_cancelled_and_never_begins(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    first = await gateway.submit(**SLOW)
    await until(lambda: simulator.queue()[0])
    second = await gateway.submit()
    there = await gateway.at_runpod(second)
    for job_id in (second, first):
        await gateway.http.post(f"/api/jobs/{job_id}/cancel")
    await until(lambda: there.over)
    assert (there.status, there.takes) == ("CANCELLED", 0)
    await until(lambda: simulator.queue() == (set(), set()))
    assert simulator.executions(second) == 0


async def test_a_failure_is_told_in_our_words(gateway: ServedGateway, simulator: Simulator) -> None:
    simulator.turn(
        failing_nodes={
            "KSampler": {"exception_type": "ValueError", "message": "/secret/place/of.py"}
        }
    )
    job_id = await gateway.submit()
    job = await gateway.end_of(job_id)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "execution_failed"
    assert "secret" not in str(job)
    assert (await gateway.at_runpod(job_id)).takes == 1


async def test_a_result_that_runpod_drops_is_not_lost(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    gateway.double.endpoint.result_bytes = 300
    job_id = await gateway.submit()
    job = await gateway.end_of(job_id)
    assert job["status"] == "completed", job
    assert (await gateway.at_runpod(job_id)).output is None
    assert simulator.executions(job_id) == 1


async def test_a_submit_that_was_taken_but_answered_500_is_paid_for_once(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    gateway.double.faults.append(Fault(op="run", status=500, after=True))
    before = gateway.double.calls["run"]
    job_id = await gateway.submit()
    assert (await gateway.end_of(job_id))["status"] == "completed"
    assert gateway.double.calls["run"] == before + 1
    assert simulator.executions(job_id) == 1


async def test_a_spell_of_500_holds_a_job_up_and_does_not_end_it(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=100)
    job_id = await gateway.submit(num_inference_steps=20)
    await until(lambda: simulator.queue()[0])
    gateway.double.faults.append(Fault(op="status", status=500, times=3))
    assert (await gateway.end_of(job_id))["status"] == "completed"
    assert simulator.executions(job_id) == 1


@pytest.mark.parametrize("webhooks", ["lost", "twice"])
async def test_a_job_ends_whatever_becomes_of_its_webhook(
    gateway: ServedGateway, simulator: Simulator, webhooks: str
) -> None:
    gateway.double.endpoint.webhooks = webhooks  # pyright: ignore[reportAttributeAccessIssue]  # one of its words
    job_id = await gateway.submit()
    assert (await gateway.end_of(job_id))["status"] == "completed"
    await gateway.double.endpoint.posted()
    there = await gateway.at_runpod(job_id)
    assert there.attempts == ([] if webhooks == "lost" else [200, 200])
    assert simulator.executions(job_id) == 1


async def test_a_forged_webhook_is_not_believed(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    job_id = await gateway.submit(**SLOW)
    await until(lambda: simulator.queue()[0])
    there = await gateway.at_runpod(job_id)
    assert there.webhook is not None
    said: dict[str, Any] = {"id": there.id, "status": "COMPLETED", "output": {"images": []}}
    # a right address with a wrong word, too: it makes the gateway look, and no more
    answer = await gateway.http.post(there.webhook, json=said, headers={"Authorization": ""})
    assert answer.status_code == 200
    wrong = there.webhook[:-1] + ("0" if there.webhook[-1] != "0" else "1")
    for url in (wrong, there.webhook.rpartition("/")[0] + "/x", there.webhook + "0"):
        assert (await gateway.http.post(url, json=said)).status_code == 404
    assert (await gateway.job(job_id))["status"] == "processing"
    await gateway.http.post(f"/api/jobs/{job_id}/cancel")
    await until(lambda: simulator.queue() == (set(), set()))


async def test_workers_and_jobs_are_in_health_and_the_key_is_not(
    gateway: ServedGateway, simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await gateway.end_of(await gateway.submit())
        await gateway.backend.look()
        health = (await gateway.http.get("/health")).json()
    (backend,) = health["backends"]
    assert (backend["name"], backend["kind"]) == (gateway.backend.name, "runpod")
    assert (backend["status"], backend["capacity"]) == ("healthy", 3)
    assert {"idle", "running"} <= backend["workers"].keys()
    assert {"inQueue", "inProgress"} <= backend["jobs"].keys()
    assert API_KEY not in str(health) + caplog.text
    assert simulator.queue() == (set(), set())
