"""What goes wrong around ComfyUI, and the state each run ends in."""

import asyncio
from pathlib import Path

import pytest
import websocket

from gpu_server.comfy import ComfyClient, Patience, Produced, RunCancelled, RunFailed, Stepped
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


async def test_a_run_goes_through_and_its_file_can_be_read(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        events = await follow(client, new_id(), picture())
        assert whole(events)
        assert client.engine == "simulator"
        (file,) = next(each.files for each in events if isinstance(each, Produced) and each.files)
        async with client.view(file) as answer:
            assert (await answer.aread()).startswith(b"\x89PNG")


async def test_an_identical_graph_is_answered_from_the_cache(
    comfyui: Simulator, tmp_path: Path
) -> None:
    graph = picture()
    async with connected(comfyui.url, tmp_path) as client:
        assert whole(await follow(client, new_id(), graph))
        again = await follow(client, new_id(), graph)
    assert whole(again)
    assert not any(isinstance(each, Stepped) and each.step for each in again)


async def test_a_websocket_dropped_between_two_steps_loses_nothing(
    comfyui: Simulator, tmp_path: Path
) -> None:
    run_id = new_id()
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(drop_at_step=2)
        assert whole(await follow(client, run_id, picture(steps=20)))
    assert comfyui.executions(run_id) == 1
    assert comfyui.state()["settings"]["drop_at_step"] is None


@pytest.mark.parametrize("event", ["execution_start", "executed", "execution_success"])
async def test_a_websocket_dropped_at_any_event_loses_nothing(
    comfyui: Simulator, tmp_path: Path, event: str
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(drop_after_event=event)
        assert whole(await follow(client, new_id(), picture()))


async def test_websockets_that_are_refused_for_a_while_only_delay(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        run = Following(client, picture(steps=20))
        await run.sampling()
        comfyui.turn(refuse_sockets=True, drop_sockets=True)
        await run.task
        assert whole(run.events)
        assert not client.available
        comfyui.turn(refuse_sockets=False)
        assert whole(await follow(client, new_id(), picture()))


async def test_a_socket_that_comfyui_forgot_is_replaced(comfyui: Simulator, tmp_path: Path) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        assert whole(await follow(client, new_id(), picture()))
        before = comfyui.state()["counts"]["connections"]
        same_id = f"ws{comfyui.url[4:]}/ws?clientId={client._client_id}"
        other = await asyncio.to_thread(websocket.create_connection, same_id, suppress_origin=True)
        await asyncio.to_thread(other.close)
        assert whole(await follow(client, new_id(), picture(steps=60)))
        # Its own socket was still open, but unhooked: the client opened another one.
        await until(lambda: comfyui.state()["counts"]["connections"] >= before + 2)
        assert whole(await follow(client, new_id(), picture()))


async def test_an_output_told_after_the_end_is_delivered_once_and_before_it(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(late_executed=True)
        assert whole(await follow(client, new_id(), picture()))


@pytest.mark.parametrize("gap", [False, True])
async def test_a_history_entry_that_comes_late_is_waited_for(
    comfyui: Simulator, tmp_path: Path, *, gap: bool
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        comfyui.turn(history_delay_ms=1500, history_gap=gap)
        assert whole(await follow(client, new_id(), picture()))


async def test_a_graph_accepted_in_part_fails_and_leaves_the_queue(
    comfyui: Simulator, tmp_path: Path
) -> None:
    graph = picture(steps=500)
    graph["11"] = node("SaveImage", filename_prefix="t/none")
    async with connected(comfyui.url, tmp_path) as client:
        busy = Following(client, picture(steps=100))
        await busy.sampling()
        assert (await failing(client, graph)).failure.code == "workflow_rejected"
        assert comfyui.queue() == ({busy.run_id}, set())
        await client.interrupt(busy.run_id)
        with pytest.raises(RunCancelled):
            await busy.task
        # The same when it begins at once.
        failure = (await failing(client, graph)).failure
        assert (failure.kind, failure.code) == ("fatal", "workflow_rejected")
        assert failure.node == "11 SaveImage"
        assert comfyui.queue() == (set(), set())


@pytest.mark.parametrize("when", ["idle", "start", "running"])
async def test_a_dead_worker_is_noticed_and_told(
    mortal: Simulator, tmp_path: Path, when: str
) -> None:
    mortal.start()
    patience = Patience(settle_s=20, silent_after_s=1, confirm_s=0.3, interrupt_every_s=0.1)
    waits = {"wedged_after_s": 1, "patience": patience}
    async with connected(mortal.url, tmp_path, **waits) as client:
        assert whole(await follow(client, new_id(), picture()))
        mortal.turn(wedge=when)
        running, behind = Following(client, picture()), Following(client, picture())
        for each in (running, behind):
            with pytest.raises(RunFailed) as caught:
                await each.task
            failure = caught.value.failure
            assert (failure.kind, failure.code) == ("transient", "comfyui_wedged")
        assert client.trouble is not None
        assert "restart it" in client.trouble
        assert not client.available
        assert (await failing(client, picture())).failure.code == "comfyui_wedged"
        await until(lambda: not mortal.queue()[1])
        mortal.kill()
        mortal.start()
        await until(lambda: client.available)
        assert whole(await follow(client, new_id(), picture()))


async def idle(client: ComfyClient) -> None:
    """Return once the client's watch sleeps because nothing is open."""
    assert whole(await follow(client, new_id(), picture()))
    # Longer than the pause that had begun before: nothing tells when the watch sleeps.
    await asyncio.sleep(2)


@pytest.mark.parametrize("when", ["idle", "start", "running"])
async def test_a_dead_worker_is_noticed_after_a_rest(
    mortal: Simulator, tmp_path: Path, when: str
) -> None:
    mortal.start()
    patience = Patience(silent_after_s=1, confirm_s=0.3, interrupt_every_s=0.1)
    waits = {"wedged_after_s": 1, "patience": patience}
    async with connected(mortal.url, tmp_path, **waits) as client:
        await idle(client)
        mortal.turn(wedge=when)
        async with asyncio.timeout(30):
            assert (await failing(client, picture())).failure.code == "comfyui_wedged"


async def test_a_worker_that_took_no_prompts_is_tried_again(
    mortal: Simulator, tmp_path: Path
) -> None:
    mortal.start()
    patience = Patience(confirm_s=0.3, interrupt_every_s=0.1, retry_wedged_s=0.5)
    async with connected(mortal.url, tmp_path, wedged_after_s=1, patience=patience) as client:
        await idle(client)
        mortal.turn(wedge="idle")
        assert (await failing(client, picture())).failure.code == "comfyui_wedged"
        assert not mortal.state()["worker_alive"]
        await until(lambda: client.available)
        mortal.turn(reset=True)
        assert whole(await follow(client, new_id(), picture()))


async def test_a_run_after_a_rest_ends_although_its_socket_is_deaf(
    comfyui: Simulator, tmp_path: Path
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        await idle(client)
        same_id = f"ws{comfyui.url[4:]}/ws?clientId={client._client_id}"
        other = await asyncio.to_thread(websocket.create_connection, same_id, suppress_origin=True)
        await asyncio.to_thread(other.close)
        async with asyncio.timeout(30):
            assert whole(await follow(client, new_id(), picture()))


@pytest.mark.parametrize("rested", [False, True])
async def test_a_queue_that_was_emptied_means_lost(
    comfyui: Simulator, tmp_path: Path, *, rested: bool
) -> None:
    async with connected(comfyui.url, tmp_path) as client:
        if rested:
            await idle(client)
        run = Following(client, picture(steps=500))
        await run.sampling()
        comfyui.turn(lose_queue=True)
        with pytest.raises(RunFailed) as caught:
            await run.task
    assert (caught.value.failure.kind, caught.value.failure.code) == ("transient", "lost")


async def test_a_comfyui_killed_in_the_middle_loses_the_run_and_takes_the_next(
    mortal: Simulator, tmp_path: Path
) -> None:
    mortal.start()
    async with connected(mortal.url, tmp_path) as client:
        running, behind = Following(client, picture(steps=500)), Following(client, picture())
        await running.sampling()
        mortal.kill()
        await until(lambda: not client.available)
        mortal.start()
        for each in (running, behind):
            with pytest.raises(RunFailed) as caught:
                await each.task
            assert (caught.value.failure.kind, caught.value.failure.code) == ("transient", "lost")
        assert whole(await follow(client, new_id(), picture()))


async def test_a_comfyui_that_stays_away_fails_the_run_in_time(
    mortal: Simulator, tmp_path: Path
) -> None:
    mortal.start()
    async with connected(mortal.url, tmp_path) as client:
        run = Following(client, picture(steps=5000), timeout_s=2)
        await run.sampling()
        mortal.kill()
        with pytest.raises(RunFailed) as caught:
            await run.task
        assert caught.value.failure.code == "comfyui_unavailable"
        assert client.trouble is not None


async def test_a_run_waits_for_a_comfyui_that_is_still_starting(
    mortal: Simulator, tmp_path: Path
) -> None:
    async with connected(mortal.url, tmp_path) as client:
        told = asyncio.Event()
        client.on_connect(told.set)
        run = Following(client, picture())
        await asyncio.to_thread(mortal.start)
        await run.task
        assert whole(run.events)
        assert told.is_set()
    assert mortal.executions(run.run_id) == 1
