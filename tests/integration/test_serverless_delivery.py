"""Files out of the worker: into a gateway's slots as the GPU service sends them, into a bucket."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from gpu_server.protocol import RunStatus
from tests.integration.test_gpu_service_tools import request
from tests.support.gpu import Gpu, gpu_stack
from tests.support.recordings import bundled
from tests.support.runpod_double import Runpod, runpod
from tests.support.s3 import S3Server, rclone
from tests.support.serverless import Caller, WorkerProcess, require_sdk, until, working
from tests.support.slots import Slots, receiving
from tests.support.stack import Stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")
EVERY = {workflow.tool: name for name, workflow in sorted(bundled().items())}
"""One workflow of each tool."""
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("delivery")


@pytest.fixture(scope="module")
def stack(folder: Path) -> Generator[Stack]:
    with gpu_stack(folder, "simulator", "gpu_server", SIM_STEP_MS="5") as stack:
        yield stack


@module
async def double() -> AsyncGenerator[Runpod]:
    async with runpod() as double:
        yield double


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with rclone(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@module
async def worker(
    folder: Path, stack: Stack, double: Runpod, bucket: S3Server
) -> AsyncGenerator[WorkerProcess]:
    env = bucket.env() | {"PROJECT_NAME": "shop"}
    async with working(folder, stack.comfyui, double, **env) as worker:
        yield worker


@pytest_asyncio.fixture(loop_scope="module")
async def caller(worker: WorkerProcess, double: Runpod) -> AsyncGenerator[Caller]:
    async with Caller(double) as caller:
        yield caller
    assert worker.running, worker.log


@pytest_asyncio.fixture(loop_scope="module")
async def slots() -> AsyncGenerator[Slots]:
    async with receiving() as slots:
        yield slots


@pytest.mark.parametrize("name", EVERY.values(), ids=EVERY.keys())
async def test_worker_and_gpu_service_deliver_the_same_bytes_for_the_same_request(
    caller: Caller, stack: Stack, slots: Slots, name: str
) -> None:
    here, there = str(uuid.uuid4()), str(uuid.uuid4())
    seed = {"seed": 7} if "seed" in bundled()[name].manifest.params else {}
    of_service, of_worker = (request(slots, name, run_id) for run_id in (here, there))
    for asked in (of_service, of_worker):
        asked["params"] |= seed
        asked["details"] = True
    async with Gpu(stack) as gpu:
        await gpu.connected()
        expected = await gpu.end(await gpu.start(of_service, here))
    told = await caller.run(of_worker | {"run_id": there})
    assert told["status"] == "COMPLETED", told
    status = RunStatus.model_validate(told["output"])
    assert status.run_id == there
    differs = {"run_id", "duration_seconds"}
    assert {k: v for k, v in told["output"].items() if k not in differs} == {
        k: v for k, v in expected.items() if k not in differs
    }
    for output in status.outputs:
        sent, known = (slots.taken[f"/{run_id}/{output.slot}"] for run_id in (there, here))
        assert (sent.sha256, sent.media_type, sent.length) == (
            known.sha256,
            known.media_type,
            known.length,
        )
        assert sent.sha256 == output.sha256
    assert bool(status.outputs) != bool(status.texts)


async def test_a_slot_that_stumbles_gets_the_file_at_the_next_try(
    caller: Caller, slots: Slots
) -> None:
    run_id = str(uuid.uuid4())
    asked = request(slots, "checkpoint", run_id)
    slots.answers = [503, 500]
    told = await caller.run(asked | {"run_id": run_id})
    assert told["status"] == "COMPLETED", told
    assert slots.puts == 3


PICTURE: dict[str, Any] = {
    "workflow": "checkpoint",
    "checkpoint": "tiny-sd15.ckpt",
    "prompt": "a lighthouse",
    "width": 256,
    "height": 256,
    "num_inference_steps": 2,
    "num_images": 2,
}


async def fetched(url: str) -> bytes:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(url)
        assert answer.status_code == 200, answer.text
        return answer.content


async def test_a_plain_calls_files_go_into_the_bucket_and_can_be_the_next_calls_input(
    caller: Caller, bucket: S3Server
) -> None:
    output = (await caller.run(PICTURE))["output"]
    for n, image in enumerate(output["images"]):
        assert "data" not in image
        key = image["address"].removeprefix(f"s3://{bucket.bucket}/")
        assert key.startswith("shop/serverless/")
        assert key.endswith(f"/images-{n}.png")
        content = await fetched(image["url"])
        assert content.startswith(PNG)
        assert len(content) == image["bytes"]
        assert key in await asyncio.to_thread(bucket.keys)
    again = {"operation": "upscale", "image_url": output["images"][0]["address"]}
    (upscaled,) = (await caller.run(again))["output"]["images"]
    assert upscaled["width"] == 512


async def test_other_files_of_the_bucket_are_nobodys_input(
    caller: Caller, bucket: S3Server
) -> None:
    await asyncio.to_thread(
        lambda: bucket.client().put_object(Bucket=bucket.bucket, Key="shop/secret.png", Body=PNG)
    )
    for address in ("shop/secret.png", "shop/serverless/../secret.png"):
        asked = {"operation": "upscale", "image_url": f"s3://{bucket.bucket}/{address}"}
        told = await caller.run(asked)
        assert told["status"] == "FAILED"
        assert "only http and https" in told["error"]


async def test_a_bucket_that_is_away_keeps_no_secret_in_its_errors(
    caller: Caller, bucket: S3Server, worker: WorkerProcess
) -> None:
    await asyncio.to_thread(bucket.stop)
    try:
        job = await caller.submit(PICTURE | {"seed": 11})
        await until(lambda: "it is tried again" in worker.log)
    finally:
        await asyncio.to_thread(bucket.start)
    told = await caller.ended(job)
    # what was made is worth waiting for
    assert told["status"] == "COMPLETED", told
    assert bucket.secret_access_key not in worker.log
    assert "X-Amz-Signature" not in worker.log
