"""How a run ends that was cancelled, refused, failed or took too long."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_server.comfy import Finished, Produced, RunCancelled, RunFailed, Stepped
from tests.support.comfy_runs import (
    Following,
    connected,
    failing,
    follow,
    new_id,
    node,
    picture,
    until,
    whole,
)
from tests.support.comfyui import Simulator


async def test_cancel_stops_pending_and_running_runs_and_only_those(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        running, pending, other = (Following(client, picture(steps=500)) for _ in range(3))
        await running.sampling()
        await until(lambda: len(comfyui.queue()[1]) == 2)
        for each in (pending, running):
            await client.interrupt(each.run_id)
            with pytest.raises(RunCancelled):
                await each.task
            await client.interrupt(each.run_id)
        assert comfyui.executions(pending.run_id) == 0
        await other.sampling()
        await client.interrupt(other.run_id)
        with pytest.raises(RunCancelled):
            await other.task


async def test_cancel_of_a_run_nobody_follows_stops_it(comfyui: Simulator, tmp_path: Path) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        run = Following(client, picture(steps=500))
        await run.sampling()
        run.task.cancel()
        await asyncio.wait([run.task])
        await client.interrupt(run.run_id)
        assert comfyui.queue() == (set(), set())


async def test_cancel_before_comfyui_is_there_needs_no_comfyui(
    mortal: Simulator, tmp_path: Path
) -> None:
    async with connected(mortal.url, tmp_path) as client:
        run = Following(client, picture())
        await until(lambda: run.run_id in client._runs)
        await client.interrupt(run.run_id)
        with pytest.raises(RunCancelled):
            await run.task


async def test_cancel_of_a_finished_run_is_no_error(comfyui: Simulator, tmp_path: Path) -> None:
    run_id = new_id()
    async with connected(comfyui.url, tmp_path) as client:
        assert whole(await follow(client, run_id, picture()))
        await client.interrupt(run_id)
        await client.forget(run_id)
        await client.interrupt(run_id)


async def test_an_interrupt_nobody_here_asked_for_is_transient(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        run = Following(client, picture(steps=500))
        await run.sampling()
        comfyui.post("/interrupt", {})
        with pytest.raises(RunFailed) as caught:
            await run.task
    assert (caught.value.failure.kind, caught.value.failure.code) == ("transient", "interrupted")


async def test_out_of_memory_frees_and_is_transient(comfyui: Simulator, tmp_path: Path) -> None:
    graph = picture()
    async with connected(comfyui.url, tmp_path) as client:
        await follow(client, new_id(), graph)
        comfyui.turn(out_of_memory=1)
        failure = (await failing(client, picture())).failure
        assert (failure.kind, failure.code) == ("transient", "out_of_memory")
        # /free empties the execution cache: the same graph samples again.
        again = await follow(client, new_id(), graph)
    assert any(isinstance(each, Stepped) and each.step for each in again)


async def test_a_failing_node_is_named_without_comfyuis_own_words(
    comfyui: Simulator, tmp_path: Path
) -> None:
    secret = "secret /models/path " * 300_000  # a frame of 6 MB
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(failing_nodes={"VAEDecode": {"message": secret}})
        failure = (await failing(client, picture())).failure
        assert (failure.kind, failure.code) == ("fatal", "execution_failed")
        assert failure.node == "8 VAEDecode"
        assert failure.message == "node VAEDecode failed"
        comfyui.turn(failing_nodes={})
        assert whole(await follow(client, new_id(), picture()))


async def test_an_error_event_that_only_blocks_a_branch_is_no_failure(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(failing_nodes={"VAEDecode": {"exception_type": "ExecutionBlocked"}})
        events = await follow(client, new_id(), picture())
    assert isinstance(events[-1], Finished)
    assert [each.node for each in events if isinstance(each, Produced)] == ["10"]


async def test_a_run_over_its_time_is_stopped(comfyui: Simulator, tmp_path: Path) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        failure = (await failing(client, picture(steps=5000), timeout_s=0.5)).failure
        assert (failure.kind, failure.code) == ("fatal", "timeout")
        assert comfyui.queue() == (set(), set())


async def test_what_the_server_refuses_is_told_by_whose_fault_it_is(
    comfyui: Simulator, tmp_path: Path
) -> None:
    missing = picture()
    missing["4"]["inputs"]["ckpt_name"] = "absent.safetensors"
    async with connected(comfyui.url, tmp_path) as client:
        usage = (await failing(client, picture(steps=0))).failure
        model = (await failing(client, missing)).failure
        invalid = (await failing(client, {"1": {"class_type": "SaveImage"}})).failure
        comfyui.turn(max_upload_size=200)
        large = (await failing(client, picture())).failure
    assert (usage.kind, usage.code, usage.node) == ("usage", "invalid_input", "3 KSampler")
    assert (model.kind, model.code) == ("fatal", "missing_model")
    assert "absent.safetensors" in model.message
    assert "tiny-sd15" not in model.message
    assert (invalid.kind, invalid.code) == ("fatal", "invalid_graph")
    assert (large.kind, large.code) == ("usage", "too_large")


async def test_an_upload_is_streamed_and_used_under_the_name_comfyui_gave_it(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    async with connected(comfyui.url, tmp_path) as client:
        events = await follow(client, new_id(), picture())
        (file,) = next(each.files for each in events if isinstance(each, Produced) and each.files)
        async with client.view(file) as answer:
            png = await answer.aread()
        name = await client.upload(
            name='mé"x.png', subfolder="runs/1", media_type="image/png", chunks=chunks(png)
        )
        assert name.startswith("runs/1/mé")
        graph = {
            "1": node("LoadImage", image=name),
            "2": node("SaveImage", images=["1", 0], filename_prefix=f"t/{new_id()}"),
        }
        assert isinstance((await follow(client, new_id(), graph))[-1], Finished)
        comfyui.turn(max_upload_size=100)
        with pytest.raises(RunFailed) as caught:
            await client.upload(
                name="a.png", subfolder="runs/2", media_type="image/png", chunks=chunks(png)
            )
    assert caught.value.failure.code == "too_large"


async def test_two_clients_hear_only_their_own_runs(comfyui: Simulator, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    async with (
        connected(comfyui.url, folders[0]) as first,
        connected(comfyui.url, folders[1]) as second,
    ):
        told = await asyncio.gather(
            *(follow(client, new_id(), picture()) for client in (first, second) * 3)
        )
    assert all(map(whole, told))
