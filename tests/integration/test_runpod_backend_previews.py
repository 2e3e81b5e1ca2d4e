"""Previews of runs on RunPod: from the simulator through the SDK's worker to whoever watches."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.comfyui import Simulator
from tests.support.runpod_double import Fault, Runpod, runpod
from tests.support.serverless import Caller, WorkerProcess, require_sdk, until, working
from tests.support.serverless_gateway import ServedGateway, serverless_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")

STEPS = {"num_inference_steps": 60}
LONGEST_CHUNK = 100_000
Told = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("previews")


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
    async with working(folder, shared.url, double, RUNPOD_PREVIEW_S="0.5") as worker:
        yield worker


@module
async def gateway(
    folder: Path, worker: WorkerProcess, double: Runpod
) -> AsyncGenerator[ServedGateway]:
    assert worker.name
    async with serverless_gateway(folder / "gateway", double) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def simulator(
    shared: Simulator, double: Runpod, worker: WorkerProcess
) -> AsyncGenerator[Simulator]:
    shared.turn(reset=True, step_ms=100, previews=True)
    double.faults.clear()
    double.calls.clear()
    double.stream_repeats, double.chunk_status, double.chunk_takes_s = False, 200, 0
    double.chunks_refused = 0
    yield shared
    assert worker.running, worker.log


async def watched(gateway: ServedGateway, job_id: str, query: str = "?previews=1") -> list[Told]:
    """Every event of a job to its end."""
    found: list[Told] = []
    async with gateway.http.stream("GET", f"/api/jobs/{job_id}/events{query}") as stream:
        kind = ""
        async for line in stream.aiter_lines():
            if line.startswith("event:"):
                kind = line[6:].strip()
            elif line.startswith("data:"):
                found.append((kind, json.loads(line[5:])))
    return found


def pictures(told: list[Told]) -> list[bytes]:
    shown = [data for kind, data in told if kind == "preview"]
    assert {data["media_type"] for data in shown} <= {"image/jpeg"}
    return [base64.b64decode(data["data"], validate=True) for data in shown]


async def test_who_watches_sees_the_picture_grow(gateway: ServedGateway) -> None:
    job_id = await gateway.submit(**STEPS)
    told = await watched(gateway, job_id)
    assert told[-1][0] == "completed"
    shown = pictures(told)
    assert len(shown) > 1
    assert all(picture.startswith(b"\xff\xd8\xff") for picture in shown)
    job = await gateway.at_runpod(job_id)
    sequence = [chunk["output"]["seq"] for chunk in job.chunks]
    assert sequence == list(range(1, len(sequence) + 1))
    assert {chunk["output"]["run_id"] for chunk in job.chunks} == {job_id}
    assert max(len(json.dumps(chunk)) for chunk in job.chunks) < LONGEST_CHUNK
    assert job.late_chunks == 0
    assert job.output["state"] == "completed"
    # they are not kept
    assert pictures(await watched(gateway, job_id)) == []


async def test_nobody_asks_for_previews_that_nobody_watches(gateway: ServedGateway) -> None:
    job_id = await gateway.submit(**STEPS)
    told = await watched(gateway, job_id, "")
    assert told[-1][0] == "completed"
    assert "preview" not in {kind for kind, _ in told}
    job = await gateway.at_runpod(job_id)
    assert job.chunks
    assert gateway.double.calls["stream"] == 0


async def test_a_chunk_that_is_handed_out_again_is_shown_once(gateway: ServedGateway) -> None:
    # so slow that the gateway finds each of them several times
    gateway.double.stream_repeats, gateway.double.chunk_takes_s = True, 3
    job_id = await gateway.submit(num_inference_steps=100)
    told = await watched(gateway, job_id)
    sent = (await gateway.at_runpod(job_id)).chunks
    assert gateway.double.calls["stream"] > len(sent) + 1
    # the simulator's previews of a run all look the same: their number tells
    assert 0 < len(pictures(told)) <= len(sent)


async def test_a_stream_that_takes_nothing_does_not_harm_the_run(
    gateway: ServedGateway, worker: WorkerProcess
) -> None:
    gateway.double.chunk_status = 500
    job_id = await gateway.submit(**STEPS)
    told = await watched(gateway, job_id)
    assert told[-1][0] == "completed"
    assert pictures(told) == []
    # one is tried three times by the SDK; the next one only much later
    assert 0 < gateway.double.chunks_refused <= 9
    assert (await gateway.at_runpod(job_id)).takes == 1
    assert worker.running


async def test_a_stream_that_does_not_answer_us_does_not_harm_the_run(
    gateway: ServedGateway,
) -> None:
    gateway.double.faults.append(Fault(op="stream", status=500, times=2))
    gateway.double.faults.append(Fault(op="stream", status=None, times=1))
    job_id = await gateway.submit(num_inference_steps=100)
    told = await watched(gateway, job_id)
    assert told[-1][0] == "completed"
    assert gateway.double.calls["stream"] > 3
    assert pictures(told)


async def test_the_last_preview_is_never_received_after_the_result(
    gateway: ServedGateway,
) -> None:
    gateway.double.chunk_takes_s = 1
    job_id = await gateway.submit(num_inference_steps=20)
    assert (await gateway.end_of(job_id))["status"] == "completed"
    job = await gateway.at_runpod(job_id)
    # whatever is under way has arrived by the time another job is done
    assert (await gateway.end_of(await gateway.submit()))["status"] == "completed"
    assert job.chunks
    assert job.late_chunks == 0


async def test_a_job_is_cancelled_while_it_is_watched(
    gateway: ServedGateway, simulator: Simulator
) -> None:
    simulator.turn(step_ms=1000)
    job_id = await gateway.submit(num_inference_steps=100)
    watching = asyncio.create_task(watched(gateway, job_id))
    there = await gateway.at_runpod(job_id)
    await until(lambda: there.chunks_given)
    await gateway.http.post(f"/api/jobs/{job_id}/cancel")
    told = await watching
    assert told[-1][0] == "cancelled"
    await until(lambda: simulator.queue() == (set(), set()))


async def test_without_the_setting_there_are_none(
    folder: Path, gateway: ServedGateway, double: Runpod
) -> None:
    assert gateway.backend.capacity
    async with serverless_gateway(folder / "without", double, runpod_previews=False) as other:
        job_id = await other.submit(**STEPS)
        told = await watched(other, job_id)
        assert told[-1][0] == "completed"
        job = await other.at_runpod(job_id)
        assert "previews" not in job.input
        assert job.chunks == []
        assert double.calls["stream"] == 0


async def test_a_plain_call_sends_none(double: Runpod) -> None:
    async with Caller(double) as caller:
        asked = {"workflow": "checkpoint", "checkpoint": "tiny-sd15.ckpt", "prompt": "a lighthouse"}
        job = await caller.submit(asked | {"width": 64, "height": 64, **STEPS})
        assert (await caller.ended(job))["status"] == "COMPLETED"
        assert job.chunks == []
