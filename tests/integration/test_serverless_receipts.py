"""Receipts: what the real SDK's worker writes down of a run, and what it does not do twice."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from gpu_server.protocol import Failure, ReceiptNote, RunStatus
from tests.integration.test_gpu_service_tools import request as of_tool
from tests.support.comfyui import Simulator
from tests.support.note_store import NoteStore, keeping
from tests.support.recordings import bundled
from tests.support.runpod_double import Runpod, runpod
from tests.support.runpod_jobs import Json
from tests.support.serverless import Caller, WorkerProcess, require_sdk, until, working
from tests.support.slots import Slots, receiving

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")

SLOW_MS = 2000
"""Left to itself, a picture takes longer than any test waits."""
CUDA = {
    "exception_type": "torch.AcceleratorError",
    "message": "CUDA error: an illegal memory access was encountered",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("receipts")


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


@pytest_asyncio.fixture(loop_scope="module")
async def store() -> AsyncGenerator[NoteStore]:
    async with keeping() as store:
        yield store


@pytest_asyncio.fixture(loop_scope="module")
async def slots() -> AsyncGenerator[Slots]:
    async with receiving() as slots:
        yield slots


def asked(store: NoteStore, slots: Slots, **params: Any) -> tuple[str, Json]:
    """A run, and the request for it as the gateway makes one."""
    run_id = str(uuid.uuid4())
    values = {"checkpoint": "tiny-sd15.ckpt", "prompt": "a lighthouse", "width": 64, "height": 64}
    return run_id, {
        "run_id": run_id,
        "workflow": {"name": "checkpoint", "digest": bundled()["checkpoint"].digest},
        "params": values | {"num_inference_steps": 2, "seed": 3} | params,
        "outputs": slots.slots(run_id),
        "receipt": store.receipt(run_id),
        "details": True,
    }


def failure(told: Json) -> tuple[str, str]:
    """Kind and code of why a job failed."""
    assert told["status"] == "FAILED", told
    read = Failure.model_validate_json(told["error"])
    return read.kind, read.code


async def test_a_run_is_taken_before_anything_is_executed_and_its_end_is_written_down(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    run_id, request = asked(store, slots)
    store.gate = asyncio.Event()
    job = await caller.submit(request)
    await until(lambda: store.asked == ["GET", "PUT"])
    assert simulator.executions(run_id) == 0
    store.gate.set()
    told = await caller.ended(job)
    assert told["status"] == "COMPLETED", told
    assert [note for _, note in store.puts] == [
        {"job": job.id},
        {"job": job.id, "status": told["output"]},
    ]
    status = RunStatus.model_validate(told["output"])
    assert ReceiptNote.model_validate(store.note(run_id)).status == status
    assert (status.state, status.executed, len(status.outputs)) == ("completed", True, 1)


@pytest.mark.parametrize("same_job", [True, False])
async def test_a_run_that_is_over_is_answered_again_and_not_executed_again(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots, *, same_job: bool
) -> None:
    run_id, request = asked(store, slots)
    job = await caller.submit(request)
    first = await caller.ended(job)
    if same_job:
        # RunPod thinks that nobody answered it, and hands it out again
        job.status, job.worker, job.output = "IN_QUEUE", None, None
        again = await caller.ended(job)
        assert job.takes == 2
    else:
        again = await caller.run(request)
    assert (again["status"], again["output"]) == ("COMPLETED", first["output"])
    assert (simulator.executions(run_id), len(store.puts), slots.puts) == (1, 2, 1)


async def test_a_cancel_that_was_there_before_the_job_is_obeyed(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    run_id, request = asked(store, slots)
    store.lay(run_id, {"cancelled": True})
    told = await caller.run(request)
    status = RunStatus.model_validate(told["output"])
    assert (status.run_id, status.state, status.executed) == (run_id, "cancelled", False)
    assert (simulator.executions(run_id), store.puts) == (0, [])


async def test_a_run_that_another_job_has_is_left_to_it(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    run_id, request = asked(store, slots)
    store.lay(run_id, {"job": "another-u1"})
    assert failure(await caller.run(request)) == ("transient", "taken_elsewhere")
    assert (simulator.executions(run_id), store.puts) == (0, [])


async def test_a_failed_run_is_written_down_too_and_fails_the_same_way_again(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots, double: Runpod
) -> None:
    run_id, request = asked(store, slots)
    simulator.turn(failing_nodes={"KSampler": CUDA | {"message": "CUDA error: no kernel"}})
    first = await caller.run(request)
    assert failure(first) == ("fatal", "execution_failed")
    status = ReceiptNote.model_validate(store.note(run_id)).status
    assert status is not None
    assert status.failure is not None
    assert (status.state, status.executed) == ("failed", True)
    assert status.failure == Failure.model_validate_json(first["error"])
    simulator.turn(failing_nodes={})
    assert (await caller.run(request))["error"] == first["error"]
    assert simulator.executions(run_id) == 1
    # what broke another worker's GPU is no fault of this one
    broken = status.failure.model_copy(update={"kind": "transient", "code": "gpu_failed"})
    ended = status.model_copy(update={"failure": broken}).model_dump(mode="json")
    store.lay(run_id, {"job": "another-u1", "status": ended})
    assert failure(await caller.run(request)) == ("transient", "gpu_failed")
    assert not double.endpoint.workers["w1"].stopped


async def test_a_receipt_that_cannot_be_read_lets_nothing_begin(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    run_id, request = asked(store, slots)
    store.lay(run_id, "nonsense")
    assert failure(await caller.run(request)) == ("transient", "storage_unavailable")
    assert (simulator.executions(run_id), store.puts) == (0, [])


async def test_storage_that_stumbles_is_asked_again_and_no_address_is_logged(
    caller: Caller, store: NoteStore, slots: Slots, worker: WorkerProcess
) -> None:
    _, request = asked(store, slots)
    store.answers = [503, 500]
    told = await caller.run(request)
    assert told["status"] == "COMPLETED", told
    assert "storage answered 503" in worker.log
    assert "X-Signature" not in worker.log


async def test_a_job_cancelled_while_it_runs_has_taken_the_run_and_no_end(
    caller: Caller, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    run_id, request = asked(store, slots)
    simulator.turn(step_ms=SLOW_MS)
    job = await caller.submit(request)
    await until(lambda: simulator.queue()[0])
    assert store.note(run_id) == {"job": job.id}
    await caller.post(f"/cancel/{job.id}")
    await until(lambda: simulator.queue() == (set(), set()))
    simulator.turn(step_ms=5)
    assert (await caller.run(asked(store, slots)[1]))["status"] == "COMPLETED"
    assert store.note(run_id) == {"job": job.id}


async def test_another_worker_goes_on_where_the_first_was_killed(
    folder: Path, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    simulator.turn(reset=True, step_ms=SLOW_MS)
    run_id, request = asked(store, slots)
    async with runpod() as double, Caller(double) as caller:
        job = await caller.submit(request)
        async with working(folder, simulator.url, double, name="killed") as worker:
            await until(lambda: simulator.queue()[0])
            await asyncio.to_thread(worker.kill)
        # with a worker its ComfyUI is gone, too
        await asyncio.to_thread(simulator.kill)
        await asyncio.to_thread(simulator.start)
        assert store.note(run_id) == {"job": job.id}
        job.status, job.worker = "IN_QUEUE", None
        double.closing = False
        async with working(folder, simulator.url, double, name="next"):
            told = await caller.ended(job)
    assert (told["status"], told["workerId"], job.takes) == ("COMPLETED", "next", 2)
    assert store.note(run_id)["status"] == told["output"]


async def test_a_status_too_large_for_runpod_is_in_the_receipt(
    folder: Path, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    simulator.turn(reset=True, step_ms=5)
    run_id, request = asked(store, slots)
    async with (
        runpod() as double,
        Caller(double) as caller,
        working(folder, simulator.url, double, name="small", RUNPOD_RESULT_MB="0.0001"),
    ):
        answers = [await caller.run(request) for _ in range(2)]
    for told in answers:
        assert (told["status"], told["output"]) == (
            "COMPLETED",
            {"run_id": run_id, "receipt": True},
        )
    assert RunStatus.model_validate(store.note(run_id)["status"]).state == "completed"
    assert simulator.executions(run_id) == 1


async def test_what_a_worker_lacks_is_told_by_its_code(
    folder: Path, simulator: Simulator, store: NoteStore, slots: Slots
) -> None:
    models = [model.name for model in bundled()["upscale-realesrgan"].models]
    simulator.turn(reset=True, hide=models)
    run_id = str(uuid.uuid4())
    request = of_tool(slots, "upscale-realesrgan", run_id)
    request |= {"run_id": run_id, "receipt": store.receipt(run_id)}
    async with (
        runpod() as double,
        Caller(double) as caller,
        working(folder, simulator.url, double, name="lacking"),
    ):
        assert failure(await caller.run(request)) == ("fatal", "missing_model")
    status = ReceiptNote.model_validate(store.note(run_id)).status
    assert status is not None
    assert (status.state, status.executed) == ("failed", False)
