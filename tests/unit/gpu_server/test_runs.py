"""A run's state and followers, and the rare turns of carrying one out, with a scripted ComfyUI."""

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gpu_server import runs as runs_module
from gpu_server.comfy import Finished, RunEvent, RunFailed, Started
from gpu_server.media_types import picture_size, sniff
from gpu_server.protocol import (
    Event,
    InputFile,
    OutputFile,
    Progress,
    RunRequest,
    RunStatus,
    WorkflowRef,
)
from gpu_server.run import Run
from gpu_server.runs import AtCapacity
from tests.support.gpu_bench import (
    PNG,
    Comfy,
    MakeBench,
    Script,
    produced,
    smooth,
    until_stopped,
)
from tests.support.recordings import bundled
from tests.support.slots import Slots


async def test_a_completed_run_is_delivered_and_journalled_as_such(
    bench: MakeBench, slots: Slots
) -> None:
    bench_ = bench(smooth)
    run = bench_.start(slots)
    status = await run.wait()
    assert (status.state, status.engine, status.executed) == ("completed", "simulator", True)
    (output,) = status.outputs
    assert (output.bytes, output.width, output.height) == (len(PNG), 64, 32)
    assert slots.taken["/a/images/0"].sha256 == output.sha256
    assert await bench_.journalled(run) == "delivered"


async def test_a_failed_run_is_journalled_as_such(bench: MakeBench) -> None:
    async def script(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        raise RunFailed("transient", "out_of_memory", "too little")

    bench_ = bench(script)
    run = bench_.start()
    failure = (await run.wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("transient", "out_of_memory")
    assert await bench_.journalled(run) == "failed"
    # ComfyUI ended it itself: there was nothing to interrupt.
    assert bench_.comfy.interrupted == []


async def test_a_file_nobody_takes_stops_the_run_in_comfyui(bench: MakeBench, slots: Slots) -> None:
    async def script(comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        yield produced()
        await comfy.stop.wait()

    slots.answers = [403]
    bench_ = bench(script)
    run = bench_.start(slots)
    failure = (await run.wait()).failure
    assert failure is not None
    assert failure.code == "delivery_failed"
    assert bench_.comfy.interrupted == [run.run_id]


async def test_more_files_than_slots_stop_the_run_in_comfyui(
    bench: MakeBench, slots: Slots
) -> None:
    async def script(comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield produced(2)
        await comfy.stop.wait()

    bench_ = bench(script)
    run = bench_.start(slots)
    failure = (await run.wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("fatal", "too_many_outputs")
    assert bench_.comfy.interrupted == [run.run_id]


async def test_a_fault_of_our_own_ends_the_run_without_its_text(bench: MakeBench) -> None:
    async def script(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        raise ZeroDivisionError("/secret/path")

    run = bench(script).start()
    failure = (await run.wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("fatal", "internal_error")
    assert "secret" not in failure.message


async def test_cancel_interrupts_and_asking_twice_changes_nothing(bench: MakeBench) -> None:
    bench_ = bench(until_stopped)
    run = bench_.start()
    async for event in run.events(heartbeat_s=0.01):
        if event is None and run.status.state == "running":
            break
    bench_.runs.cancel(run)
    status = await bench_.runs.remove(run.run_id)
    assert status is not None
    assert status.state == "cancelled"
    assert bench_.comfy.interrupted == [run.run_id]


async def test_a_cancel_that_comes_too_late_for_comfyui_is_still_a_cancel(
    bench: MakeBench, slots: Slots
) -> None:
    async def script(comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        await comfy.stop.wait()
        yield produced()
        yield Finished()

    bench_ = bench(script)
    run = bench_.start(slots)
    async for event in run.events(heartbeat_s=0.01):
        if event is None and run.status.state == "running":
            break
    assert (await bench_.runs.remove(run.run_id) or run.status).state == "cancelled"


async def test_capacity_counts_only_runs_that_are_not_over(bench: MakeBench) -> None:
    bench_ = bench(until_stopped)
    first, _ = bench_.start(), bench_.start()
    with pytest.raises(AtCapacity):
        bench_.start()
    await bench_.runs.remove(first.run_id)
    bench_.start()


async def never(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
    raise AssertionError("ComfyUI was asked for a run that is over")
    yield


async def broken(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
    yield Started()
    raise RunFailed("fatal", "execution_failed", "a node failed")


@pytest.mark.parametrize(
    ("script", "state"), [(smooth, "completed"), (broken, "failed"), (until_stopped, "cancelled")]
)
async def test_the_next_process_knows_how_a_run_ended(
    bench: MakeBench, slots: Slots, script: Script, state: str
) -> None:
    first = bench(script)
    run = first.start(slots)
    if state == "cancelled":
        async for event in run.events(heartbeat_s=0.01):
            if event is None and run.in_comfyui:
                break
        await first.runs.remove(run.run_id)
    status = await run.wait()
    assert status.state == state
    second = bench(never)
    await second.runs.resume()
    known = second.runs.get(run.run_id)
    assert known is not None
    assert known.status == status
    assert known.over
    told = [event async for event in known.events(heartbeat_s=60)]
    assert told[-1] is not None
    assert told[-1].status == status
    assert second.runs.active == 0
    assert await second.runs.remove(run.run_id) is None
    assert second.comfy.forgotten == ([] if state == "cancelled" else [run.run_id])
    # A late request must not start it: it stays known as cancelled.
    known = await bench(never).runs.recall(run.run_id)
    assert known is not None
    assert known.status.state == "cancelled"


async def test_a_cancel_that_was_answered_outlives_the_process(
    bench: MakeBench, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stubborn(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        await asyncio.Event().wait()

    monkeypatch.setattr(runs_module, "_CANCEL_S", 0.01)
    first = bench(stubborn)
    run = first.start(slots)
    async for event in run.events(heartbeat_s=0.01):
        if event is None and run.in_comfyui:
            break
    status = await first.runs.remove(run.run_id)
    assert status is not None
    assert status.state == "running"
    # A clean stop in that moment: ComfyUI still has the run.
    await first.runs.close()
    row = await first.journal.get(run.run_id)
    assert row is not None
    assert (row.state, row.ended) == ("cancelled", None)
    second = bench(never)
    await second.runs.resume()
    known = second.runs.get(run.run_id)
    assert known is not None
    assert known.status.state == "cancelled"
    await second.comfy.stop.wait()
    assert second.comfy.interrupted == [run.run_id]
    async with asyncio.timeout(30):
        while await second.journal.unfinished():
            pass
    assert slots.puts == 0


async def test_a_journal_that_fails_during_a_run_is_worth_another_attempt(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    bench_ = bench(never)
    monkeypatch.setattr(bench_.journal, "put", full)
    failure = (await bench_.start().wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("transient", "run_lost")


async def test_an_input_the_workflow_does_not_take_is_not_even_fetched(
    bench: MakeBench, slots: Slots
) -> None:
    bench_ = bench(never)
    workflow = bundled()["checkpoint"]
    file = InputFile(url=f"{slots.url}/in.png", media_type="image/png")
    request = RunRequest(
        workflow=WorkflowRef(name="checkpoint", digest=workflow.digest),
        params={"prompt": "x", "checkpoint": "sd15.safetensors"},
        inputs={"victim": [file]},
    )
    run = bench_.runs.accept(str(uuid.uuid4()), request, workflow)
    failure = (await run.wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("usage", "unknown_param")
    assert not slots.asked.is_set()


async def test_an_end_too_old_to_be_asked_for_is_cleaned_away_after_a_restart(
    bench: MakeBench, slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench(smooth).start(slots)
    await run.wait()
    folder = tmp_path / "output" / "jobs" / run.run_id
    folder.mkdir(parents=True)
    monkeypatch.setattr(runs_module, "_KEEP_S", -1)
    second = bench(never)
    await second.runs.resume()
    assert second.runs.get(run.run_id) is None
    await second.runs.sweep()
    assert second.comfy.forgotten == [run.run_id]
    assert not folder.exists()


async def test_nobody_is_told_of_an_end_that_a_restart_would_forget(
    bench: MakeBench, slots: Slots
) -> None:
    bench_ = bench(smooth)
    run = bench_.start(slots)
    await run.wait()
    row = await bench_.journal.get(run.run_id)
    assert row is not None
    assert row.state == "delivered"


async def test_a_journal_that_cant_be_written_does_not_keep_a_run_from_ending(
    bench: MakeBench, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    bench_ = bench(smooth)
    monkeypatch.setattr(bench_.journal, "end", full)
    assert (await bench_.start(slots).wait()).state == "completed"


async def test_a_run_is_forgotten_with_its_files_after_a_while(
    bench: MakeBench, slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench_ = bench(smooth)
    run = bench_.start(slots)
    folder = tmp_path / "output" / "jobs" / run.run_id
    folder.mkdir(parents=True)
    await run.wait()
    await bench_.runs.sweep()
    assert bench_.runs.get(run.run_id) is run
    monkeypatch.setattr(runs_module, "_KEEP_S", -1)
    await bench_.runs.sweep()
    assert bench_.runs.get(run.run_id) is None
    assert bench_.comfy.forgotten == [run.run_id]
    assert not folder.exists()


def output(n: int) -> OutputFile:
    return OutputFile(slot=f"images/{n}", media_type="image/png", bytes=1, sha256="0" * 64)


def idle_run() -> Run:
    request = RunRequest(workflow=WorkflowRef(name="x", digest="0" * 64))
    return Run("r", request, workflow=None)


async def test_a_slow_follower_is_told_the_newest_progress_and_every_output() -> None:
    run = idle_run()
    following = run.events(heartbeat_s=60)
    first = await anext(following)
    assert first == Event(type="progress", progress=Progress(fraction=0))
    run.started("comfyui")
    for n in range(50):
        run.stepped(Progress(fraction=n / 50))
    run.delivered(output(0))
    run.delivered(output(1))
    told = [await anext(following) for _ in range(3)]
    assert [e.type for e in told if e] == ["output", "output", "progress"]
    assert told[2] is not None
    assert told[2].progress == Progress(fraction=0.98)
    run.end(run.decide("failed"))
    rest = [event async for event in following]
    assert [e.type for e in rest if e] == ["failed"]


async def test_silence_is_filled_with_heartbeats() -> None:
    following = idle_run().events(heartbeat_s=0.001)
    assert (await anext(following)) is not None
    assert (await anext(following)) is None
    await following.aclose()


async def test_the_first_end_counts() -> None:
    run = idle_run()
    run.end(run.decide("cancelled"))
    run.end(run.decide("completed"))
    assert run.status == RunStatus(run_id="r", state="cancelled")


@pytest.mark.parametrize(
    ("head", "name", "media_type"),
    [
        (PNG, "a.bin", "image/png"),
        (b"\xff\xd8\xff\xe0", "a", "image/jpeg"),
        (b"RIFF\x00\x00\x00\x00WEBP", "a", "image/webp"),
        (b"\x00\x00\x00\x20ftypisom", "a.png", "video/mp4"),
        (b"glTF\x02", "a", "model/gltf-binary"),
        (b"\x00" * 12, "lora.safetensors", "application/octet-stream"),
        (b"caption", "a.txt", "text/plain"),
        (b"", "a", "application/octet-stream"),
    ],
)
def test_a_files_type_is_read_off_its_bytes_before_its_name(
    head: bytes, name: str, media_type: str
) -> None:
    assert sniff(head, name) == media_type


def test_only_a_whole_png_header_has_a_size() -> None:
    assert picture_size(PNG) == (64, 32)
    assert picture_size(PNG[:20]) is None
    assert picture_size(b"\xff\xd8\xff" + b"x" * 60) is None
