"""Batches: one call, many jobs of one tool."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from fastapi.responses import StreamingResponse

from gateway.api.access import CALLER
from gateway.api.archive import Entry, archive
from gateway.api.batch_submit import BATCHES_PATH, BatchBody, examples, submitted
from gateway.api.batch_views import (
    BatchDetail,
    BatchList,
    BatchTaken,
    BatchView,
    batch_item,
    batch_view,
    files_url,
    status_url,
)
from gateway.api.context import Context
from gateway.api.lookup import canonical, unless_stopped, wait_of
from gateway.api.paging import LONGEST_PAGE, PAGE, Cursor, Limit
from gateway.api.prefer import IdempotencyKey
from gateway.api.problems import SUBMIT_ERRORS, documented
from gateway.api.views import Views, as_json
from gateway.errors import (
    Conflict,
    InvalidParameters,
    NotFound,
    Unauthorized,
)
from gateway.job import Job
from gateway.jobs.batches import Batch, BatchCounts

BatchId = Annotated[
    str, Path(description="The batch's id, a UUID.", json_schema_extra={"maxLength": 100})
]


def batches_router(context: Context, views: Views) -> APIRouter:
    """Make the routes under `/api/batches`."""
    router = APIRouter(prefix=BATCHES_PATH, tags=["batches"])
    _add_submit(router, context, views)
    _add_list(router, context, views)
    _add_one(router, context, views)
    _add_ends(router, context, views)
    _add_files(router, context)
    return router


def _add_submit(router: APIRouter, context: Context, views: Views) -> None:
    @router.post(
        "",
        summary="Submit a batch of jobs",
        status_code=202,
        response_model=None,
        responses={
            202: {"model": BatchTaken, "description": "Taken; `Location` is its status route."},
            **documented(*SUBMIT_ERRORS),
        },
    )
    async def submit_batch(
        body: Annotated[BatchBody, Body(openapi_examples=examples(context.catalogue.tools))],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Every item is checked before anything is written; errors name `items.3.width`.

        `webhook_url` is called once, when the last job has ended.
        """
        batch = await submitted(context, body, idempotency_key)
        taken = BatchTaken(
            batch_id=batch.id,
            total=batch.total,
            status_url=status_url(batch.id),
            files_url=files_url(views, batch.id),
        )
        return as_json(taken, 202, {"Location": status_url(batch.id)})


def _add_list(router: APIRouter, context: Context, views: Views) -> None:
    @router.get(
        "",
        summary="List batches, newest first",
        response_model=None,
        responses={
            200: {"model": BatchList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_batches(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """Your batches, without their jobs."""
        batches = context.jobs.batches
        page = await batches.list(CALLER, cursor, limit)
        items = [batch_view(views, counted) for counted in await batches.counts(page.items)]
        return as_json(BatchList(items=items, next_cursor=page.next_cursor))


def _add_one(router: APIRouter, context: Context, views: Views) -> None:
    batches = context.jobs.batches

    @router.get(
        "/{batch_id}",
        summary="A batch",
        response_model=None,
        responses={
            200: {"model": BatchDetail, "description": "The batch and one page of its jobs."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )
    async def get_batch(
        batch_id: BatchId,
        wait: Annotated[float, wait_of(context.settings)] = 0,
        cursor: Cursor = None,
        limit: Limit = LONGEST_PAGE,
    ) -> Response:
        """How far it is, and its jobs in order; with `wait`, as it is when its last job has ended.

        Jobs deleted one by one are missing from `items` and counted as `deleted`.
        """
        batch = await _batch_of(context, batch_id)
        if wait > 0 and batch.finished_at is None:
            await unless_stopped(context.stopping, batches.wait(batch.id, wait))
        counted = await _counted(context, batch)
        page = await batches.items(batch.id, cursor, limit)
        return as_json(
            BatchDetail(
                **dict(batch_view(views, counted)),
                items=[batch_item(views, job) for job in page.items],
                next_cursor=page.next_cursor,
            )
        )


def _add_ends(router: APIRouter, context: Context, views: Views) -> None:
    batches = context.jobs.batches

    @router.post(
        "/{batch_id}/cancel",
        summary="Cancel a batch",
        response_model=None,
        responses={
            200: {"model": BatchView, "description": "The batch."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def cancel_batch(batch_id: BatchId) -> Response:
        """Stops every job that has not ended; finished ones stay as they are."""
        batch = await _batch_of(context, batch_id)
        await batches.cancel(batch.id)
        return as_json(batch_view(views, await _counted(context, batch)))

    @router.delete(
        "/{batch_id}",
        summary="Delete a batch with its jobs and their files",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound, Conflict)},
    )
    async def delete_batch(batch_id: BatchId) -> Response:
        """Only a batch that has ended can be deleted: cancel it first."""
        batch = await _batch_of(context, batch_id)
        if not await batches.delete(batch.id):
            raise NotFound("There is no such batch here.")
        return Response(status_code=204)


def _add_files(router: APIRouter, context: Context) -> None:
    @router.get(
        "/{batch_id}/files.zip",
        summary="The files of a batch as one archive",
        response_model=None,
        responses={
            200: {"description": "The archive.", "content": {"application/zip": {}}},
            **documented(Unauthorized, NotFound),
        },
    )
    async def batch_files(batch_id: BatchId) -> Response:
        """Every file as `<n>/<file>`; of a batch that is not finished, those there are so far.

        Opens with the key or with the signed `files_url` of the batch.
        """
        batch = await _batch_of(context, batch_id)
        entries = _entries(context.jobs.batches.each_item(batch.id))
        return StreamingResponse(
            archive(context.storage, entries),
            media_type="application/zip",
            headers={
                "Cache-Control": "private, no-store",
                "Content-Disposition": f'attachment; filename="batch-{batch.id}.zip"',
                "X-Content-Type-Options": "nosniff",
            },
        )


async def _counted(context: Context, batch: Batch) -> BatchCounts:
    batches = context.jobs.batches
    # the batch first: what says that it is over must not be shown beside jobs that still run
    (counted,) = await batches.counts([await batches.get(batch.id) or batch])
    return counted


async def _entries(items: AsyncIterator[Job]) -> AsyncIterator[Entry]:
    async for job in items:
        for file in job.artifacts:
            yield Entry(
                name=f"{job.batch_n}/{file.filename}",
                key=file.key,
                at=job.finished_at or job.created_at,
            )


async def _batch_of(context: Context, batch_id: str) -> Batch:
    batch = await context.jobs.batches.get(canonical(batch_id))
    if batch is None or batch.caller != CALLER:
        raise NotFound("There is no such batch here; GET /api/batches lists yours.")
    return batch
