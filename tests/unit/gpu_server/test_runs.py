"""A run's state and followers, and the rare turns of carrying one out, with a scripted ComfyUI."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from gpu_server import runs as runs_module
from gpu_server.catalogue import Catalogue
from gpu_server.cleaning import Cleaner
from gpu_server.comfy import (
    ComfyClient,
    ComfyFile,
    Finished,
    Produced,
    RunCancelled,
    RunEvent,
    RunFailed,
    Started,
    Stepped,
)
from gpu_server.delivery import Deliverer
from gpu_server.execution import Executor
from gpu_server.fetch import Fetcher
from gpu_server.inputs import Uploader
from gpu_server.journal import Journal
from gpu_server.media_types import picture_size, sniff
from gpu_server.protocol import Event, OutputFile, Progress, RunRequest, RunStatus, WorkflowRef
from gpu_server.run import Run
from gpu_server.runs import AtCapacity, Runs
from tests.support.recordings import ROOT, bundled, object_info
from tests.support.slots import Slots, receiving

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x20" + b"x" * 1000
Script = Callable[["Comfy"], AsyncGenerator[RunEvent]]


async def streamed() -> AsyncGenerator[bytes]:
    yield PNG[:500]
    yield PNG[500:]


class Comfy:
    """As much of the ComfyUI client as a run uses; what happens is the test's script."""

    engine = "simulator"
    available = True

    def __init__(self, script: Script) -> None:
        self.script = script
        self.interrupted: list[str] = []
        self.forgotten: list[str] = []
        self.stop = asyncio.Event()
        self.views = 0

    def on_connect(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        callback()

    async def object_info(self, **_: Any) -> dict[str, Any]:
        return object_info("0.33.0")

    def run(self, _run_id: str, _graph: Any, **_: Any) -> AsyncGenerator[RunEvent]:
        return self.script(self)

    async def interrupt(self, run_id: str) -> None:
        self.interrupted.append(run_id)
        self.stop.set()

    async def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    @asynccontextmanager
    async def view(self, _file: ComfyFile) -> AsyncGenerator[httpx.Response]:
        self.views += 1
        yield httpx.Response(200, content=streamed(), headers={"content-length": str(len(PNG))})


class Bench:
    """The service's parts around a scripted ComfyUI."""

    def __init__(self, script: Script, journal: Journal, fetcher: Fetcher, root: Path) -> None:
        self.comfy = Comfy(script)
        self.journal = journal
        comfy = cast("ComfyClient", self.comfy)
        catalogue = Catalogue.load(ROOT / "workflows", comfy)
        self.deliverer = Deliverer(comfy)
        executor = Executor(
            comfy=comfy,
            catalogue=catalogue,
            journal=journal,
            uploader=Uploader(comfy, fetcher),
            deliverer=self.deliverer,
        )
        self.runs = Runs(
            executor=executor,
            journal=journal,
            comfy=comfy,
            catalogue=catalogue,
            cleaner=Cleaner(root),
            capacity=2,
        )

    def start(self, slots: Slots | None = None, count: int = 1) -> Run:
        workflow = bundled()["checkpoint"]
        run_id = str(uuid.uuid4())
        request = RunRequest.model_validate(
            {
                "workflow": WorkflowRef(name="checkpoint", digest=workflow.digest),
                "params": {"prompt": "x", "checkpoint": "sd15.safetensors"},
                "outputs": slots.slots("a", count) if slots else [],
            }
        )
        return self.runs.accept(run_id, request, workflow)

    async def journalled(self, run: Run) -> str | None:
        assert run.task is not None
        await run.task
        row = await self.journal.get(run.run_id)
        return row.state if row is not None else None


MakeBench = Callable[[Script], Bench]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[MakeBench]:
    made: list[Bench] = []
    async with Journal(tmp_path / "journal.sqlite") as journal, Fetcher() as fetcher:

        def make(script: Script) -> Bench:
            made.append(Bench(script, journal, fetcher, tmp_path))
            return made[-1]

        yield make
        for each in made:
            await each.runs.close()
            await each.deliverer.close()


@pytest.fixture
async def slots() -> AsyncGenerator[Slots]:
    async with receiving() as slots:
        yield slots


def produced(count: int = 1) -> Produced:
    files = tuple(
        ComfyFile(
            node="8", key="images", index=n, filename="a.png", subfolder="jobs/x", type="output"
        )
        for n in range(count)
    )
    return Produced(node="8", files=files, texts=())


async def smooth(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
    yield Started()
    yield Stepped(fraction=0.5, node="6", step=1, steps=2)
    yield produced()
    yield Finished()


async def until_stopped(comfy: Comfy) -> AsyncGenerator[RunEvent]:
    yield Started()
    await comfy.stop.wait()
    raise RunCancelled


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


async def test_a_failed_run_leaves_the_journal(bench: MakeBench) -> None:
    async def script(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield Started()
        raise RunFailed("transient", "out_of_memory", "too little")

    bench_ = bench(script)
    run = bench_.start()
    failure = (await run.wait()).failure
    assert failure is not None
    assert (failure.kind, failure.code) == ("transient", "out_of_memory")
    assert await bench_.journalled(run) is None
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
    run.end("failed")
    rest = [event async for event in following]
    assert [e.type for e in rest if e] == ["failed"]


async def test_silence_is_filled_with_heartbeats() -> None:
    following = idle_run().events(heartbeat_s=0.001)
    assert (await anext(following)) is not None
    assert (await anext(following)) is None
    await following.aclose()


async def test_the_first_end_counts() -> None:
    run = idle_run()
    run.end("cancelled")
    run.end("completed")
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
