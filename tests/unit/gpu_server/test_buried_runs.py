"""Runs that were deleted: a request for one that is still on its way must not start it."""

import asyncio
import uuid
from collections.abc import AsyncGenerator

import pytest

from gpu_server import runs as runs_module
from gpu_server.comfy import RunEvent
from gpu_server.protocol import RunStatus
from tests.support.gpu_bench import Comfy, MakeBench, smooth
from tests.support.slots import Slots


async def never(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
    raise AssertionError("ComfyUI was asked for a run that is over")
    yield


async def test_a_run_deleted_before_it_came_stays_cancelled_for_a_while(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench(never)
    run_id = str(uuid.uuid4())
    for _ in range(2):
        assert await first.runs.remove(run_id) is None
    for runs in (first.runs, (second := bench(never)).runs):
        await runs.resume()
        known = runs.get(run_id)
        assert known is not None
        assert known.status == RunStatus(run_id=run_id, state="cancelled")
    # Out of memory after an hour, out of the journal after days.
    monkeypatch.setattr(runs_module, "_KEEP_S", -1)
    await second.runs.sweep()
    assert second.runs.get(run_id) is None
    late = await second.runs.recall(run_id)
    assert late is not None
    assert late.status.state == "cancelled"
    monkeypatch.setattr(runs_module, "_BURIED_S", -1)
    await second.runs.sweep()
    assert second.runs.get(run_id) is None
    assert await second.runs.recall(run_id) is None


def test_a_deleted_run_is_known_for_longer_than_a_day() -> None:
    assert runs_module._BURIED_S > 86_400


async def test_of_two_late_requests_each_is_told_the_same_end(
    bench: MakeBench, slots: Slots
) -> None:
    bench_ = bench(smooth)
    run = bench_.start(slots)
    await run.wait()
    await bench_.runs.remove(run.run_id)
    other = bench(never).runs
    first, second = await asyncio.gather(other.recall(run.run_id), other.recall(run.run_id))
    assert first is not None
    assert first is second is other.get(run.run_id)
