"""Jobs of every tool: list, read, follow, cancel, delete."""

import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import AwareDatetime, BeforeValidator
from pydantic_core import PydanticCustomError

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.lookup import JobId, canonical, job_of, until_stopped, wait_of, waited
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.problems import documented
from gateway.api.views import JobList, JobView, Views, as_json
from gateway.errors import Conflict, InvalidParameters, NotFound, Unauthorized
from gateway.job import JOB_TERMINAL, Job, JobEvent, JobQuery, JobStatus
from gateway.jobs.eta import Etas
from gateway.tool import ToolResult

_LAST_NUMBER = 2**31 - 1
"""The highest an event can have: its column has 32 bits."""

_FULL_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d.*")


def _stated_in_full(value: object) -> object:
    # Pydantic would read "2026" as a number of seconds since 1970.
    if isinstance(value, str) and not _FULL_TIME.fullmatch(value):
        raise PydanticCustomError("datetime_parsing", "not a time")
    return value


def jobs_router(context: Context, views: Views) -> APIRouter:
    """Make the routes under `/api/jobs`."""
    router = APIRouter(prefix="/api/jobs", tags=["jobs"])
    _add_list(router, context, views)
    _add_one(router, context, views)
    _add_events(router, context)
    return router


def _add_list(router: APIRouter, context: Context, views: Views) -> None:
    @router.get(
        "",
        summary="List jobs, newest first",
        response_model=None,
        responses={
            200: {"model": JobList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_jobs(
        tool: Annotated[
            str | None, Query(max_length=100, description="Only jobs of this tool.")
        ] = None,
        status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
        since: Annotated[
            Annotated[AwareDatetime, BeforeValidator(_stated_in_full)] | None,
            Query(description="Only jobs created at or after this RFC 3339 time."),
        ] = None,
        cursor: Cursor = None,
        limit: Limit = PAGE,
    ) -> Response:
        """Your jobs; filters may be combined."""
        query = _query(tool, status, since, cursor, limit)
        page = await context.jobs.list(query)
        etas = context.submission.etas
        items = [views.job(job, await etas.left(job)) for job in page.items]
        return as_json(JobList(items=items, next_cursor=page.next_cursor))


def _query(
    tool: str | None,
    status: JobStatus | None,
    since: datetime | None,
    cursor: str | None,
    limit: int,
) -> JobQuery:
    return JobQuery(
        caller=CALLER, tool=tool, status=status, since=since, cursor=cursor, limit=limit
    )


def _add_one(router: APIRouter, context: Context, views: Views) -> None:
    shown = {200: {"model": JobView[ToolResult], "description": "The job."}}

    @router.get(
        "/{job_id}",
        summary="A job",
        response_model=None,
        responses={**shown, **documented(Unauthorized, NotFound, InvalidParameters)},
    )
    async def get_job(
        job_id: JobId, wait: Annotated[float, wait_of(context.settings)] = 0
    ) -> Response:
        """The job as it is; with `wait`, as it is when it ends or time is up."""
        job = await waited(context, await job_of(context, job_id), wait)
        return as_json(views.job(job, await context.submission.etas.left(job)))

    @router.post(
        "/{job_id}/cancel",
        summary="Cancel a job",
        response_model=None,
        responses={**shown, **documented(Unauthorized, NotFound)},
    )
    async def cancel_job(job_id: JobId) -> Response:
        """Stops it wherever it is; a finished job stays as it is."""
        job = await job_of(context, job_id)
        return as_json(views.job(await context.jobs.cancel(job.id) or job))

    @router.delete(
        "/{job_id}",
        summary="Delete a job and its files",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound, Conflict)},
    )
    async def delete_job(job_id: JobId) -> Response:
        """Only a job that has ended can be deleted: cancel it first."""
        job = await job_of(context, job_id)
        if not await context.jobs.delete(job.id):
            raise NotFound("There is no such job here.")
        return Response(status_code=204)


_PREVIEWS = (
    "Also send `preview` events: the picture so far, the latest one, at most two a second, as far "
    "as ComfyUI makes previews and this gateway drives the job. They are not stored: a replay has "
    "none."
)


async def _follows(context: Context, job: Job, number: int) -> bool:
    """Whether anything is to be sent after that event."""
    if not number or job.status not in JOB_TERMINAL:
        return True
    rest = until_stopped(context.stopping, context.jobs.watch(job.id, after=number))
    async with aclosing(rest):
        async for _ in rest:
            return True
    return context.stopping.is_set()


def _add_events(router: APIRouter, context: Context) -> None:
    # Dependencies, because a stream that has begun can no longer answer 404 or 204.
    async def followed(job_id: JobId) -> Job:
        return await job_of(context, canonical(job_id))

    async def seen(
        response: Response,
        job: Annotated[Job, Depends(followed)],
        last_event_id: Annotated[
            str | None,
            Header(max_length=100, description="`id` of the last event seen: later ones follow."),
        ] = None,
    ) -> int | None:
        number = _number(last_event_id)
        if await _follows(context, job, number):
            return number
        response.status_code = 204
        return None

    @router.get(
        "/{job_id}/events",
        summary="Follow a job (server-sent events)",
        response_class=EventSourceResponse,
        responses={
            204: {"description": "The job has ended and `Last-Event-ID` is its last event."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def job_events(
        job: Annotated[Job, Depends(followed)],
        number: Annotated[int | None, Depends(seen)],
        *,
        previews: Annotated[bool, Query(description=_PREVIEWS)] = False,
    ) -> AsyncIterator[ServerSentEvent]:
        """State changes and decisions, numbered, and progress; ends with the job's last event.

        Opens with the key or, for `EventSource`, with the signed `events_url` of a job.
        """
        if number is None:
            # an empty 200 would make an `EventSource` connect again, for ever
            return
        watched = context.jobs.watch(job.id, after=number, previews=previews)
        async for event in until_stopped(context.stopping, watched):
            yield _sent(event, _eta(context.submission.etas, job, event))


def _eta(etas: Etas, job: Job, event: JobEvent) -> float | None:
    """Seconds from an event to the job's end, as far as it lets one tell."""
    match event.type:
        case "pending":
            return job.eta_seconds
        case "processing":
            return etas.execution(job, 0)
        case "progress":
            fraction = event.data["fraction"]
            return etas.execution(job, fraction if isinstance(fraction, int | float) else 0)
        case _:
            return None


def _sent(event: JobEvent, eta_seconds: float | None) -> ServerSentEvent:
    data = {**event.data, "at": event.at.isoformat().replace("+00:00", "Z")}
    if eta_seconds is not None:
        data["eta_seconds"] = eta_seconds
    return ServerSentEvent(event=event.type, id=str(event.n), data=data)


def _number(last_event_id: str | None) -> int:
    text = last_event_id or ""
    return min(int(text), _LAST_NUMBER) if text.isascii() and text.isdecimal() else 0
