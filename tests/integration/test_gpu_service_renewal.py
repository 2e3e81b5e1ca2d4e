"""A run asked for again by another gateway: its files go where that one says."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.gpu import PATIENCE_S, Gpu, Json, gpu_stack
from tests.support.slots import Slots
from tests.support.stack import Stack, free_port

NEVER_BEGUN = {"if-match": "*"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with gpu_stack(tmp_path, "simulator", "gpu_server", SIM_STEP_MS="1") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        yield gpu


def nowhere() -> list[Json]:
    """Slots of a gateway that is gone."""
    return list[Json](Slots(url=f"http://127.0.0.1:{free_port()}").slots("a"))


async def renewed(gpu: Gpu, run_id: str, request: Json) -> int:
    answer = await gpu.http.put(f"/runs/{run_id}", json=request, headers=NEVER_BEGUN)
    return answer.status_code


async def test_a_delivery_to_a_dead_address_goes_on_to_the_new_one(gpu: Gpu, slots: Slots) -> None:
    run_id = await gpu.start(gpu.request(nowhere()))
    async with asyncio.timeout(PATIENCE_S):
        # its log has no event
        while "it is tried again" not in gpu.stack.log("gpu_server"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    assert await renewed(gpu, run_id, gpu.request(slots.slots("b"))) == 200

    status = await gpu.end(run_id)
    assert status["state"] == "completed"
    assert slots.taken["/b/images/0"].sha256 == status["outputs"][0]["sha256"]
    assert gpu.sim()["executions"] == 1


async def test_the_new_address_outlives_the_service(gpu: Gpu, slots: Slots) -> None:
    gpu.sim(step_ms=100)
    run_id = await gpu.start(gpu.request(nowhere(), num_inference_steps=60))
    await gpu.stepping(run_id)
    fresh = gpu.request(slots.slots("b"), num_inference_steps=60)
    assert await renewed(gpu, run_id, fresh) == 200

    gpu.stack.kill("gpu_server")
    gpu.stack.start("gpu_server")
    gpu.sim(step_ms=1)

    assert (await gpu.end(run_id))["state"] == "completed"
    assert list(slots.taken) == ["/b/images/0"]
    assert gpu.sim()["executions"] == 1


async def test_a_renewal_begins_nothing(gpu: Gpu, slots: Slots) -> None:
    run_id = str(uuid.uuid4())
    request = gpu.request(slots.slots("a"))
    answer = await gpu.http.put(f"/runs/{run_id}", json=request, headers=NEVER_BEGUN)
    assert (answer.status_code, answer.json()["code"]) == (404, "run_not_found")
    assert gpu.sim()["executions"] == 0
    # nor does it stand in the way of a start
    await gpu.start(request, run_id)
    end = await gpu.end(run_id)
    again = await gpu.http.put(f"/runs/{run_id}", json=request, headers=NEVER_BEGUN)
    assert (again.status_code, again.json()) == (200, end)
