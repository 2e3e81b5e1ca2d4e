"""Previews in the gateway: fetched while somebody watches, told to those who asked, never kept."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from gateway.backends.base import BackendUnreachable
from gateway.job import JobEvent
from gateway.jobs import previews as previews_module
from gateway.jobs.engine import Jobs
from gpu_server.protocol import Preview
from tests.unit.jobs.world import ScriptedBackend, World, finished, log_of, new_job, until

PICTURE = Preview(media_type="image/jpeg", data="/9j/")


@dataclass(kw_only=True, eq=False)
class ShowingBackend(ScriptedBackend):
    """Shows one preview to each stream, which stays open."""

    open_streams: int = 0
    streams: list[str] = field(default_factory=list[str])
    breaks: int = 0
    """So many streams break off at once."""

    async def previews(self, run_id: str, reference: str) -> AsyncGenerator[Preview, None]:
        assert reference == f"at {self.name}: {run_id}"
        self.streams.append(run_id)
        if len(self.streams) <= self.breaks:
            raise BackendUnreachable("away")
        self.open_streams += 1
        try:
            yield PICTURE
            await asyncio.Event().wait()
        finally:
            self.open_streams -= 1


def showing(world: World) -> ShowingBackend:
    gpu = ShowingBackend(storage=world.storage, hold=asyncio.Event())
    world.backends[:] = [gpu]
    return gpu


async def watched(jobs: Jobs, job_id: str, *, previews: bool) -> list[JobEvent]:
    return [event async for event in jobs.watch(job_id, previews=previews)]


async def test_a_watcher_who_asks_gets_previews_and_the_log_gets_none(world: World) -> None:
    gpu = showing(world)
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    watching = [
        asyncio.create_task(watched(jobs, job.id, previews=asked)) for asked in (True, True, False)
    ]
    await until(lambda: gpu.open_streams == 1)
    assert gpu.hold is not None
    gpu.hold.set()
    one, two, other = await asyncio.gather(*watching)
    for events in (one, two):
        [preview] = [event for event in events if event.type == "preview"]
        assert preview.data == {"media_type": "image/jpeg", "data": "/9j/"}
        # A replay after it misses nothing that is stored.
        assert preview.n == events[events.index(preview) - 1].n
    assert "preview" not in {event.type for event in other + await log_of(jobs, job.id)}
    # One stream however many watch, closed with the run.
    assert gpu.streams == [job.id]
    await until(lambda: gpu.open_streams == 0)


async def test_nothing_is_fetched_once_the_last_watcher_has_left(world: World) -> None:
    gpu = showing(world)
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    async for event in (watching := jobs.watch(job.id, previews=True)):
        if event.type == "preview":
            break
    await watching.aclose()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    await until(lambda: gpu.open_streams == 0)
    assert gpu.hold is not None
    gpu.hold.set()
    assert (await finished(jobs, job.id)).status == "completed"
    assert gpu.streams == [job.id]


async def test_a_stream_of_previews_that_breaks_off_is_opened_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previews_module, "AGAIN_S", 0.01)
    gpu = showing(world)
    gpu.breaks = 2
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    async for event in jobs.watch(job.id, previews=True):
        if event.type == "preview":
            break
    assert len(gpu.streams) == 3


async def test_a_run_elsewhere_shows_nothing_and_is_watched_all_the_same(world: World) -> None:
    jobs = await world.gateway()
    job, _ = await jobs.submit(new_job())
    events = await watched(jobs, job.id, previews=True)
    assert events[-1].type == "completed"
    assert "preview" not in {event.type for event in events}
