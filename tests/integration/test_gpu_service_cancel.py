"""A cancel holds: after a restart of the GPU service, and against a request that comes late."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.gpu import Gpu, gpu_stack
from tests.support.slots import Slots
from tests.support.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Not started; to be harmed."""
    with gpu_stack(tmp_path, SIM_STEP_MS="1") as stack:
        yield stack


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_a_cancel_holds_although_the_process_ends_before_comfyui_has_stopped(
    stack: Stack, slots: Slots, how: str
) -> None:
    stack.start("simulator", "gpu_server")
    async with Gpu(stack) as gpu:
        await gpu.connected()
        # One node that does not listen to an interrupt, far longer than the answer takes.
        gpu.sim(slow_nodes={"VAEDecode": 12_000})
        request = gpu.request(slots.slots("a"))
        run_id = await gpu.start(request)
        await gpu.stepping(run_id)
        assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 200
        if how == "kill":
            stack.kill("gpu_server")
        else:
            process = stack.processes.pop("gpu_server")
            process.terminate()
            process.wait(30)
        stack.start("gpu_server")
        assert (await gpu.end(run_id))["state"] == "cancelled"
        again = await gpu.put(run_id, request)
        assert (again.status_code, again.json()["state"]) == (200, "cancelled")
        async with httpx.AsyncClient(base_url=stack.comfyui, trust_env=False) as comfyui:
            while (history := (await comfyui.get(f"/history/{run_id}")).json()) == {}:  # noqa: ASYNC110 - ComfyUI tells nobody else
                await asyncio.sleep(0.05)
        assert history[run_id]["status"]["status_str"] == "error"
        assert slots.puts == 0


async def test_a_request_that_arrives_after_its_delete_does_not_start(
    stack: Stack, slots: Slots
) -> None:
    stack.start("simulator", "gpu_server")
    run_id = str(uuid.uuid4())
    async with Gpu(stack) as gpu:
        await gpu.connected()
        for _ in range(2):
            assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204
        stack.kill("gpu_server")
        stack.start("gpu_server")
        await gpu.connected()
        late = await gpu.put(run_id, gpu.request(slots.slots("a")))
        assert (late.status_code, late.json()["state"]) == (200, "cancelled")
        assert gpu.sim()["prompts"] == 0


async def test_a_request_that_arrives_after_its_run_was_collected_does_not_start_it_again(
    stack: Stack, slots: Slots
) -> None:
    stack.start("simulator", "gpu_server")
    async with Gpu(stack) as gpu:
        await gpu.connected()
        request = gpu.request(slots.slots("a"))
        run_id = await gpu.start(request)
        assert (await gpu.end(run_id))["state"] == "completed"
        assert (await gpu.http.delete(f"/runs/{run_id}")).status_code == 204
        stack.kill("gpu_server")
        stack.start("gpu_server")
        await gpu.connected()
        late = await gpu.put(run_id, request)
        assert (late.status_code, late.json()["state"]) == (200, "cancelled")
        assert gpu.sim()["prompts"] == 1
