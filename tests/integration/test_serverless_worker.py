"""RunPod's own SDK, its real worker loop, running our handler over the simulator."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from gpu_server.protocol import Failure
from tests.support.comfyui import Simulator
from tests.support.recordings import bundled, files
from tests.support.runpod_double import Runpod, runpod
from tests.support.serverless import Caller, WorkerProcess, require_sdk, until, working

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")

PICTURE: dict[str, Any] = {
    "workflow": "checkpoint",
    "checkpoint": "tiny-sd15.ckpt",
    "prompt": "a lighthouse",
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
}
SLOW = PICTURE | {"num_inference_steps": 150}
SLOW_MS = 2000
"""Left to itself, such a picture takes five minutes: longer than any test waits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("serverless")


@pytest.fixture(scope="module")
def simulator(folder: Path) -> Generator[Simulator]:
    simulator = Simulator(folder)
    simulator.start()
    yield simulator
    simulator.close()


@module
async def double() -> AsyncGenerator[Runpod]:
    async with runpod() as double:
        yield double


@module
async def worker(
    folder: Path, simulator: Simulator, double: Runpod
) -> AsyncGenerator[WorkerProcess]:
    async with working(folder, simulator.url, double) as worker:
        yield worker


@pytest_asyncio.fixture(loop_scope="module")
async def caller(
    worker: WorkerProcess, simulator: Simulator, double: Runpod
) -> AsyncGenerator[Caller]:
    simulator.turn(reset=True, step_ms=5)
    async with Caller(double) as caller:
        yield caller
    assert worker.running, worker.log


async def test_a_plain_call_is_answered_with_its_picture_and_every_value_used(
    caller: Caller,
) -> None:
    told = await caller.run(PICTURE | {"num_images": 2})
    assert told["status"] == "COMPLETED", told
    output = told["output"]
    assert output["engine"] == "simulator"
    assert output["workflow"] == "checkpoint"
    assert isinstance(output["params"]["seed"], int)
    assert output["params"]["guidance_scale"] == 7.0
    assert output["duration_seconds"] > 0
    assert [image["name"] for image in output["images"]] == ["images/0", "images/1"]
    for image in output["images"]:
        content = base64.b64decode(image["data"])
        assert content.startswith(b"\x89PNG")
        assert (len(content), hashlib.sha256(content).hexdigest()) == (
            image["bytes"],
            image["sha256"],
        )
        assert (image["width"], image["height"]) == (64, 64)


async def test_files_are_handed_over_as_asked(caller: Caller) -> None:
    output = (await caller.run(PICTURE | {"output_format": "webp"}))["output"]
    (image,) = output["images"]
    assert image["media_type"] == "image/webp"
    assert base64.b64decode(image["data"])[8:12] == b"WEBP"


async def test_progress_is_told_in_order_and_never_after_the_end(
    caller: Caller, simulator: Simulator
) -> None:
    simulator.turn(step_ms=100)
    # the first update would be overtaken by the next, the last one by the result
    caller.double.updates_take_s = [1.5, 0, 4, 4]
    job = await caller.submit(PICTURE | {"num_inference_steps": 60})
    await until(lambda: job.updates)
    told = await caller.told(job)
    assert told["status"] == "IN_PROGRESS"
    assert told["output"]["seq"] >= 1
    assert (await caller.ended(job))["status"] == "COMPLETED"
    sequence = [update["seq"] for update in job.updates]
    fractions = [update["progress"]["fraction"] for update in job.updates]
    assert sequence == list(range(1, len(sequence) + 1))
    assert fractions == sorted(fractions)
    assert len({update["run_id"] for update in job.updates}) == 1
    assert len(sequence) > 2
    # whatever was sent has been received by the time another job is done
    assert (await caller.run(PICTURE))["status"] == "COMPLETED"
    await until(lambda: caller.double.updates_under_way == 0)
    assert job.late == 0


async def test_a_cancelled_job_stops_comfyui_and_the_worker_takes_the_next(
    caller: Caller, simulator: Simulator
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    job = await caller.submit(SLOW)
    await until(lambda: simulator.queue()[0])
    assert (await caller.post(f"/cancel/{job.id}"))["status"] == "CANCELLED"
    await until(lambda: simulator.queue() == (set(), set()))
    simulator.turn(step_ms=5)
    assert (await caller.run(PICTURE))["status"] == "COMPLETED"
    assert (await caller.told(job))["status"] == "CANCELLED"


async def test_a_job_cancelled_in_the_queue_reaches_no_worker(
    caller: Caller, simulator: Simulator
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    first, second = await caller.submit(SLOW), await caller.submit(SLOW)
    await until(lambda: simulator.queue()[0])
    before = simulator.state()["counts"]["prompts"]
    for job in (second, first):
        await caller.post(f"/cancel/{job.id}")
    await until(lambda: simulator.queue() == (set(), set()))
    simulator.turn(step_ms=5)
    assert (await caller.run(PICTURE))["status"] == "COMPLETED"
    assert (first.takes, second.takes) == (1, 0)
    assert simulator.state()["counts"]["prompts"] == before + 1


async def test_an_execution_timeout_stops_comfyui_too(caller: Caller, simulator: Simulator) -> None:
    simulator.turn(step_ms=SLOW_MS)
    job = await caller.submit(SLOW, policy={"executionTimeout": 60_000})
    await until(lambda: simulator.queue()[0])
    caller.double.endpoint.advance(61)
    assert (await caller.told(job))["status"] == "TIMED_OUT"
    await until(lambda: simulator.queue() == (set(), set()))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, ["operation", "generate", "mask"]),
        ({"operation": "clothes"}, ["operation", "'clothes'"]),
        ({"operation": 3}, ["operation", "string"]),
        ({"operation": "rescale_model", "model_url": "https://x/y.glb"}, ["scale_factor"]),
        ({"workflow": "none"}, ["workflow", "'none'", "checkpoint"]),
        ({"operation": "generate", "variant": "none"}, ["variant", "flux1-dev"]),
        (PICTURE | {"colour": "red"}, ["colour", "prompt"]),
        (PICTURE | {"width": 833}, ["width"]),
        (PICTURE | {"output_format": "bmp"}, ["output_format"]),
        (PICTURE | {"checkpoint": "/etc/passwd"}, ["not installed"]),
        ({"operation": "mask", "image_url": 3, "object_name": "x"}, ["image_url", "address"]),
        (
            {"operation": "mask", "image_url": "http://127.0.0.1:1/x.png", "object_name": "x"},
            ["image_url", "127.0.0.1", "public"],
        ),
        (
            {"operation": "mask", "image_url": "file:///etc/passwd", "object_name": "x"},
            ["image_url", "http"],
        ),
        (
            {"operation": "mask", "image_url": "data:image/png;base64,!", "object_name": "x"},
            ["image_url", "base64"],
        ),
    ],
)
async def test_a_call_that_does_not_fit_is_told_what_is_wrong(
    caller: Caller, asked: dict[str, Any], words: list[str]
) -> None:
    told = await caller.run(asked)
    assert told["status"] == "FAILED"
    assert isinstance(told["error"], str)
    assert not [word for word in words if word not in told["error"]], told["error"]
    assert (told["output"]["kind"], "data" in told) == ("usage", False)
    assert "Traceback" not in str(told)


async def test_a_node_that_fails_fails_the_job_without_comfyuis_words(
    caller: Caller, simulator: Simulator
) -> None:
    failing = {"KSampler": {"exception_type": "KeyError", "message": "/secret/path"}}
    simulator.turn(failing_nodes=failing)
    told = await caller.run(PICTURE)
    assert told["status"] == "FAILED"
    assert "KSampler" in told["error"]
    assert "secret" not in str(told)


async def test_a_thing_that_is_not_in_the_picture_is_no_black_mask(caller: Caller) -> None:
    white = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(white, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(white.getvalue()).decode()}"
    told = await caller.run({"operation": "mask", "image_url": url, "object_name": "nothing"})
    assert (told["status"], told["output"]["code"]) == ("FAILED", "object_not_found")


async def test_nothing_stays_of_a_job(caller: Caller, simulator: Simulator, folder: Path) -> None:
    assert (await caller.run(PICTURE))["status"] == "COMPLETED"
    assert not [*(folder / "simulator").glob("*/jobs/*")]
    history = await asyncio.to_thread(httpx.get, f"{simulator.url}/history", trust_env=False)
    assert history.json() == {}
    assert not [*(folder / "tmp").rglob("finish-*")]


async def test_a_gateways_request_that_fails_says_so_in_the_words_of_the_wire(
    caller: Caller,
) -> None:
    ref = {"name": "checkpoint", "digest": bundled()["checkpoint"].digest}
    params = {"checkpoint": "tiny-sd15.ckpt", "prompt": "x", "width": 833}
    told = await caller.run({"workflow": ref, "params": params})
    failure = Failure.model_validate_json(told["error"])
    assert (failure.kind, failure.code) == ("usage", "invalid_param")
    old = {"workflow": ref | {"digest": "0" * 64}, "params": params}
    failure = Failure.model_validate_json((await caller.run(old))["error"])
    assert (failure.kind, failure.code) == ("fatal", "workflow_mismatch")
    closed = {"workflow": ref, "params": params, "colour": "red"}
    failure = Failure.model_validate_json((await caller.run(closed))["error"])
    assert (failure.kind, failure.code) == ("usage", "invalid_request")
    assert "colour" in failure.message


async def test_a_gateways_request_may_bring_graph_and_manifest(caller: Caller) -> None:
    graph, manifest = files("caption-qwen3-vl")
    told = await caller.run({"graph": graph, "manifest": manifest, "params": {}})
    assert Failure.model_validate_json(told["error"]).code == "missing_param"
