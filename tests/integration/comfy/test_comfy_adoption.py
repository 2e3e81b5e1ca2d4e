"""Whoever dies, a run is executed once: its next follower adopts it."""

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_server.comfy import Graph, RunFailed, Stepped
from gpu_server.journal import Journal
from tests.support.comfy_runs import (
    connected,
    follow,
    new_id,
    picture,
    until,
    whole,
)
from tests.support.comfyui import Relay, Simulator

ROOT = Path(__file__).parents[3]


async def killed_follower(
    comfyui: Simulator, journal: Path, run_id: str, graph: Graph, when: Callable[[], bool]
) -> None:
    """Follow a run in another process, and kill that once `when` holds."""
    follower = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.follow"),
        *(comfyui.url, str(journal), run_id, json.dumps(graph)),
        cwd=ROOT,
    )
    try:
        await until(when)
    finally:
        follower.kill()
        await follower.wait()


async def test_a_run_whose_client_was_killed_is_adopted(comfyui: Simulator, tmp_path: Path) -> None:
    run_id, graph = new_id(), picture(steps=100)
    await killed_follower(
        comfyui, tmp_path / "journal.db", run_id, graph, lambda: run_id in comfyui.queue()[0]
    )
    async with connected(comfyui.url, tmp_path) as client:
        events = await follow(client, run_id, graph)
        assert whole(events)
        assert any(isinstance(each, Stepped) and each.step for each in events)
        # Once more, when all of it lies in the history.
        assert whole(await follow(client, run_id, graph))
    assert comfyui.executions(run_id) == 1


async def test_a_client_killed_before_it_knew_the_answer_adopts_what_it_posted(
    comfyui: Simulator, tmp_path: Path
) -> None:
    comfyui.turn(delay_ms={"/prompt": 20_000})
    run_id, graph = new_id(), picture(steps=50)
    await killed_follower(
        comfyui, tmp_path / "journal.db", run_id, graph, lambda: comfyui.executions(run_id) == 1
    )
    comfyui.turn(delay_ms={})
    async with Journal(tmp_path / "journal.db") as journal:
        (row,) = await journal.unfinished()
    assert row.state == "posting"
    async with connected(comfyui.url, tmp_path) as client:
        assert whole(await follow(client, run_id, graph))
    assert comfyui.executions(run_id) == 1


async def test_a_run_left_in_posting_that_never_arrived_is_posted(
    comfyui: Simulator, tmp_path: Path
) -> None:
    run_id = new_id()
    async with connected(comfyui.url, tmp_path, posting_grace_s=0.5) as client:
        await client._journal.move(run_id, "posting")
        assert whole(await follow(client, run_id, picture()))
    assert comfyui.executions(run_id) == 1


@pytest.mark.parametrize("finished", [False, True])
async def test_a_run_whose_journal_was_lost_is_found_and_not_repeated(
    comfyui: Simulator, tmp_path: Path, *, finished: bool
) -> None:
    run_id, graph = new_id(), picture(steps=3 if finished else 100)

    def there() -> bool:
        running, pending = comfyui.queue()
        return comfyui.executions(run_id) == 1 and (not finished or not running | pending)

    await killed_follower(comfyui, tmp_path / "lost.db", run_id, graph, there)
    async with connected(comfyui.url, tmp_path, wedged_after_s=0.5) as client:
        assert whole(await follow(client, run_id, graph))
    assert comfyui.executions(run_id) == 1


async def test_a_post_whose_answer_was_lost_is_found_and_not_repeated(
    comfyui: Simulator, tmp_path: Path
) -> None:
    relay = Relay(comfyui.port)
    run_id = new_id()
    async with relay.running(), connected(relay.url, tmp_path) as client:
        await until(lambda: client.available)
        relay.cut = "answer"
        assert whole(await follow(client, run_id, picture(steps=20)))
    assert comfyui.executions(run_id) == 1


async def test_a_post_that_was_lost_fails_after_a_search(
    comfyui: Simulator, tmp_path: Path
) -> None:
    relay = Relay(comfyui.port)
    run_id = new_id()
    async with relay.running(), connected(relay.url, tmp_path, posting_grace_s=0.5) as client:
        await until(lambda: client.available)
        relay.cut = "request"
        with pytest.raises(RunFailed) as caught:
            await follow(client, run_id, picture())
    assert caught.value.failure.kind == "transient"
    assert caught.value.failure.code == "comfyui_unavailable"
    assert comfyui.executions(run_id) == 0
