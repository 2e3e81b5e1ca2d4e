"""Workers that are killed, sick, unfit or asked for too much: each test has workers of its own."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from tests.support.comfyui import Simulator
from tests.support.recordings import bundled
from tests.support.runpod_double import Runpod, runpod
from tests.support.serverless import Caller, require_sdk, until, working
from tests.support.slots import receiving

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
CUDA = {
    "exception_type": "torch.AcceleratorError",
    "message": "CUDA error: an illegal memory access was encountered",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("trouble")


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


@pytest.fixture
async def caller(double: Runpod) -> AsyncGenerator[Caller]:
    async with Caller(double) as caller:
        yield caller


async def test_a_killed_worker_times_its_job_out_and_another_one_can_do_it(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    job = await caller.submit(SLOW)
    async with working(folder, simulator.url, double) as worker:
        await until(lambda: simulator.queue()[0])
        await asyncio.to_thread(worker.kill)
        double.closing = False
    # with a worker its ComfyUI is gone, too
    await asyncio.to_thread(simulator.kill)
    await asyncio.to_thread(simulator.start)
    double.endpoint.workers["w1"].last -= double.endpoint.lost_after_s
    await until(lambda: job.over)
    assert (await caller.told(job))["status"] == "TIMED_OUT"
    await caller.post(f"/retry/{job.id}")
    double.closing = False
    async with working(folder, simulator.url, double, name="w2"):
        told = await caller.ended(job)
    assert (told["status"], told["workerId"], job.takes) == ("COMPLETED", "w2", 2)
    # what the killed one left behind is cleared
    assert not [*(folder / "tmp").glob("genmedia-worker-*")]


async def test_a_broken_gpu_replaces_the_worker(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    simulator.turn(failing_nodes={"KSampler": CUDA})
    async with working(folder, simulator.url, double):
        told = await caller.run(PICTURE)
        assert told["status"] == "FAILED"
        assert told["output"]["code"] == "gpu_failed"
        assert "illegal" not in str(told)
        assert double.endpoint.workers["w1"].stopped
        simulator.turn(failing_nodes={})
        assert (await caller.submit(PICTURE)).takes == 0


async def test_other_failures_keep_the_worker(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    simulator.turn(failing_nodes={"KSampler": CUDA | {"message": "CUDA error: invalid argument"}})
    async with working(folder, simulator.url, double):
        assert (await caller.run(PICTURE))["output"]["code"] == "execution_failed"
        simulator.turn(failing_nodes={}, out_of_memory=1)
        assert (await caller.run(PICTURE))["output"]["code"] == "out_of_memory"
        assert (await caller.run(PICTURE))["status"] == "COMPLETED"
    assert not double.endpoint.workers["w1"].stopped


async def test_a_result_too_large_says_what_to_configure(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    simulator.turn(output_bytes=200_000)
    async with working(folder, simulator.url, double, RUNPOD_RESULT_MB="0.2"):
        told = await caller.run(PICTURE)
        assert (told["status"], told["output"]["code"]) == ("FAILED", "result_too_large")
        assert "STORAGE_URL" in told["error"]
        simulator.turn(output_bytes=0)
        (image,) = (await caller.run(PICTURE))["output"]["images"]
        assert base64.b64decode(image["data"]).startswith(b"\x89PNG")


async def test_a_result_that_runpod_refuses_is_a_job_without_output(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    double.endpoint.result_bytes = 1000
    async with working(folder, simulator.url, double):
        told = await caller.run(PICTURE)
        double.endpoint.result_bytes = 10_000_000
        assert (told["status"], "output" in told) == ("COMPLETED", False)
        assert "output" in await caller.run(PICTURE)


async def test_several_jobs_run_at_once_where_they_may(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    simulator.turn(step_ms=SLOW_MS)
    async with working(folder, simulator.url, double, MAX_CONCURRENT_TASKS="2"):
        jobs = [await caller.submit(SLOW) for _ in range(2)]
        await until(lambda: len(simulator.queue()[0]) == 1 and len(simulator.queue()[1]) == 1)
        await caller.post(f"/cancel/{jobs[1].id}")
        await until(lambda: len(simulator.queue()[0] | simulator.queue()[1]) == 1)
        simulator.turn(step_ms=5)
        assert (await caller.ended(jobs[0]))["status"] == "COMPLETED"
        assert jobs[1].status == "CANCELLED"


async def test_a_run_handed_out_again_while_it_runs_is_not_run_twice(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    run_id = "01890000-0000-7000-8000-00000000aaaa"
    simulator.turn(step_ms=300)
    async with (
        receiving() as slots,
        working(folder, simulator.url, double, MAX_CONCURRENT_TASKS="2"),
    ):
        asked: dict[str, Any] = {
            "run_id": run_id,
            "workflow": {"name": "checkpoint", "digest": bundled()["checkpoint"].digest},
            "params": {k: v for k, v in PICTURE.items() if k != "workflow"},
            "outputs": slots.slots(run_id),
        }
        asked["params"]["num_inference_steps"] = 20
        first = await caller.submit(asked)
        await until(lambda: first.updates)
        second = await caller.submit(asked)
        told = [await caller.ended(job) for job in (first, second)]
    assert [each["status"] for each in told] == ["COMPLETED", "COMPLETED"]
    assert told[0]["output"] == told[1]["output"]
    assert simulator.executions(run_id) == 1


async def test_a_worker_without_comfyui_gives_itself_up_before_its_first_job(
    folder: Path, double: Runpod, caller: Caller
) -> None:
    job = await caller.submit(PICTURE)
    async with working(folder, "http://127.0.0.1:9", double, COMFYUI_START_S="1") as worker:
        assert await asyncio.to_thread(worker.ended) == 1
        (reported,) = double.endpoint.unhealthy
    assert reported["check"] == "comfyui_and_models"
    assert "ComfyUI does not answer" in reported["reason"]
    assert job.takes == 0


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RUNPOD_TOOL": "upscale"}, ["RUNPOD_TOOL", "upscale", "RealESRGAN"]),
        ({"RUNPOD_WORKFLOWS": "upscale-realesrgan"}, ["RUNPOD_WORKFLOWS", "RealESRGAN"]),
        ({"RUNPOD_WORKFLOWS": "nothing"}, ["RUNPOD_WORKFLOWS", "nothing"]),
        ({"RUNPOD_TOOL": "nothing"}, ["RUNPOD_TOOL", "nothing"]),
    ],
)
async def test_a_worker_whose_models_are_missing_says_which(
    folder: Path, simulator: Simulator, double: Runpod, env: dict[str, str], words: list[str]
) -> None:
    models = [model.name for model in bundled()["upscale-realesrgan"].models]
    simulator.turn(hide=models)
    async with working(folder, simulator.url, double, **env) as worker:
        assert await asyncio.to_thread(worker.ended) == 1
    assert not [word for word in words if word not in worker.log], worker.log
    assert double.endpoint.unhealthy


async def test_an_endpoint_of_one_tool_needs_no_operation_and_takes_no_other(
    folder: Path, simulator: Simulator, double: Runpod, caller: Caller
) -> None:
    async with working(folder, simulator.url, double, RUNPOD_TOOL="generate") as worker:
        asked = {"prompt": "a lighthouse", "width": 256, "height": 256, "num_inference_steps": 2}
        told = await caller.run(asked)
        assert told["output"]["workflow"] == "flux1-dev"
        refused = await caller.run(asked | {"operation": "mask"})
        assert "generate" in refused["error"]
        assert worker.running
