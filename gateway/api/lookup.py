"""The job a path names, and waiting for it."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.errors import NotFound
from gateway.job import JOB_TERMINAL, Job
from gateway.settings import Settings

T = TypeVar("T")

# The bound is stated, not checked: an id of any length that is none of ours is a 404.
JobId = Annotated[
    str, Path(description="The job's id, a UUID.", json_schema_extra={"maxLength": 100})
]


def wait_of(settings: Settings) -> Any:  # noqa: ANN401  # what FastAPI's own Query() returns
    """Declare the `wait` query of the status routes."""
    return Query(
        ge=0,
        le=settings.request_timeout,
        allow_inf_nan=False,
        description="Seconds to wait for the job to end before answering.",
    )


async def job_of(context: Context, job_id: str, tool: str | None = None) -> Job:
    """Find the caller's job of that id, of that tool if one is named; raises NotFound."""
    job = await context.jobs.get(canonical(job_id))
    if job is None or job.caller != CALLER or (tool is not None and job.tool != tool):
        raise NotFound("There is no such job here; GET /api/jobs lists yours.")
    return job


def canonical(job_id: str) -> str:
    """Write a job's id the one way it is stored; raises NotFound for what is no id."""
    try:
        return str(uuid.UUID(job_id))
    except ValueError:
        raise NotFound("There is no such job here: an id is a UUID.") from None


async def waited(context: Context, job: Job, seconds: float) -> Job:
    """Wait until the job ends, time is up or this process stops; the job as it is then."""
    if seconds <= 0 or job.status in JOB_TERMINAL or context.stopping.is_set():
        return job
    ended = await unless_stopped(context.stopping, context.jobs.wait(job.id, seconds))
    return ended or await context.jobs.get(job.id) or job


async def unless_stopped(stopping: asyncio.Event, work: Coroutine[Any, Any, T | None]) -> T | None:
    """Wait for the end of `work`, or None once this process stops."""
    waiting = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        stopped.cancel()


async def until_stopped(
    stopping: asyncio.Event, items: AsyncIterator[T]
) -> AsyncGenerator[T, None]:
    """Pass a stream on until this process stops: an open stream must not hold that up."""
    stopped = asyncio.ensure_future(stopping.wait())
    item: asyncio.Future[T] | None = None
    try:
        while not stopped.done():
            item = asyncio.ensure_future(anext(items))
            await asyncio.wait({item, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                return
            try:
                yield item.result()
            except StopAsyncIteration:
                return
    finally:
        stopped.cancel()
        if item is not None and not item.done():
            # The source must have let go of its job before it is closed.
            item.cancel()
            await asyncio.wait({item})
        if isinstance(items, AsyncGenerator):
            await items.aclose()
