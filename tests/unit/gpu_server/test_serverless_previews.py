"""Previews of a run into its job's stream: one after another, and never a harm to the run."""

import asyncio

import pytest

from gpu_server.protocol import PreviewChunk, RunRequest, WorkflowRef
from gpu_server.run import Run
from gpu_server.serverless import previews
from gpu_server.serverless.previews import Chunk, shown


class Stream:
    """Where chunks go; `gate` holds them up."""

    def __init__(self) -> None:
        self.begun: list[PreviewChunk] = []
        self.arrived: list[int] = []
        self.error: Exception | None = None
        self.takes = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.news = asyncio.Event()

    async def post(self, chunk: Chunk) -> bool:
        told = PreviewChunk.model_validate(chunk)
        self.begun.append(told)
        self.news.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.arrived.append(told.seq)
        return self.takes

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.begun) < count:
                await self.news.wait()
                self.news.clear()


@pytest.fixture
def run() -> Run:
    return Run("r", RunRequest(workflow=WorkflowRef(name="x", digest="0" * 64)), workflow=None)


@pytest.fixture
def stream() -> Stream:
    return Stream()


async def pictured(run: Run, stream: Stream, count: int) -> None:
    """Make pictures until so many were sent."""
    async with asyncio.timeout(30):
        while len(stream.begun) < count:
            run.pictured("image/jpeg", b"a picture")
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_server.run.PREVIEW_EVERY_S", 0)


async def test_they_are_numbered_and_of_one_execution(run: Run, stream: Stream) -> None:
    for _ in range(2):
        async with shown(run, stream.post, 0):
            await pictured(run, stream, len(stream.begun) + 3)
    assert [chunk.seq for chunk in stream.begun] == [1, 2, 3, 1, 2, 3]
    first, second = {c.take for c in stream.begun[:3]}, {c.take for c in stream.begun[3:]}
    assert len(first) == len(second) == 1
    assert first != second
    assert {chunk.run_id for chunk in stream.begun} == {"r"}


async def test_the_next_one_waits_until_the_one_before_has_arrived(
    run: Run, stream: Stream
) -> None:
    stream.gate.clear()
    async with shown(run, stream.post, 0):
        await pictured(run, stream, 1)
        for _ in range(5):
            run.pictured("image/jpeg", b"later")
            await asyncio.sleep(0.001)
        assert len(stream.begun) == 1
        stream.gate.set()
        await stream.until(2)
    assert stream.arrived == [1, 2]


async def test_a_result_waits_for_the_preview_before_it(run: Run, stream: Stream) -> None:
    stream.gate.clear()
    async with shown(run, stream.post, 0):
        await pictured(run, stream, 1)
        asyncio.get_running_loop().call_later(0.05, stream.gate.set)
    assert stream.arrived == [1]
    assert run._viewers == 0


async def test_a_result_does_not_wait_for_ever(
    run: Run, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "_LAST_S", 0.01)
    stream.gate.clear()
    async with asyncio.timeout(30):
        async with shown(run, stream.post, 0):
            await pictured(run, stream, 1)
    assert stream.arrived == []


async def test_a_job_that_is_cancelled_does_not_wait_at_all(
    run: Run, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews, "_LAST_S", 1000)
    stream.gate.clear()

    async def job() -> None:
        async with shown(run, stream.post, 0):
            await asyncio.Event().wait()

    task = asyncio.create_task(job())
    await pictured(run, stream, 1)
    task.cancel()
    async with asyncio.timeout(30):
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert stream.arrived == []
    assert run._viewers == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_a_stream_that_fails_is_tried_ever_less_often_and_harms_nothing(
    run: Run,
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refused: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    stream.takes = False
    stream.error = None if refused else ValueError("https://with.a/secret")
    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", noted)
        async with shown(run, stream.post, 2), asyncio.timeout(30):
            while len(pauses) < 4:
                run.pictured("image/jpeg", b"a picture")
                await sleep(0.001)
    assert pauses[:4] == [8, 32, 60, 60]
    assert "secret" not in caplog.text


async def test_the_longer_a_run_takes_the_longer_are_the_pauses(
    run: Run, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep
    clock = asyncio.get_running_loop().time
    ahead = 0.0

    async def noted(seconds: float) -> None:
        nonlocal ahead
        pauses.append(seconds)
        ahead += seconds
        await sleep(0)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "time", lambda: clock() + ahead)
        patched.setattr(asyncio, "sleep", noted)
        async with shown(run, stream.post, 2):
            while ahead < 3600:
                run.pictured("image/jpeg", b"a picture")
                await sleep(0)
    assert pauses[:5] == [2, 2, 2, 2, 2]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 100
    assert len(pauses) < 150


async def test_a_run_that_makes_none_sends_none(run: Run, stream: Stream) -> None:
    async with shown(run, stream.post, 0):
        await asyncio.sleep(0)
        run.end(run.decide("failed"))
    assert stream.begun == []
