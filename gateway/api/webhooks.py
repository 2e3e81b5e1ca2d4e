"""Webhook events: what was sent to whom, what became of it, and once more."""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from gateway.api.access import CALLER
from gateway.api.batch_views import batch_view
from gateway.api.context import Context
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.problems import documented
from gateway.api.views import Views, as_json
from gateway.db.webhooks import Delivery, WebhookEvent, WebhookQuery, WebhookStatus
from gateway.errors import InvalidParameters, NotFound, Unauthorized
from gateway.jobs.engine import Jobs
from gateway.jobs.webhooks import Render

WebhookType = Literal["job.completed", "job.failed", "job.cancelled", "batch.completed"]

# The bound is stated, not checked: an id of any length that is none of ours is a 404.
EventId = Annotated[
    str,
    Path(
        description="The event's id, the `webhook-id` of its deliveries.",
        json_schema_extra={"maxLength": 100},
    ),
]


def _subject(noun: str) -> Any:  # noqa: ANN401  # what FastAPI's own Query() returns
    return Query(description=f"Only events of that {noun}.", json_schema_extra={"maxLength": 100})


class WebhookView(BaseModel):
    """An event somebody asked to be told of."""

    id: str = Field(description="The `webhook-id` header of every delivery.")
    type: WebhookType
    url: str = Field(description="Where it goes.")
    job_id: str | None
    batch_id: str | None
    status: WebhookStatus = Field(description="`failed`: no further try is made by itself.")
    attempts: int = Field(description="Tries that came to an end.")
    next_attempt_at: AwareDatetime | None = Field(description="Null unless it is pending.")
    created_at: AwareDatetime
    delivered_at: AwareDatetime | None


class DeliveryView(BaseModel):
    """One try."""

    n: int = Field(description="Its number, from 1.")
    at: AwareDatetime = Field(description="When it ended.")
    status_code: int | None = Field(description="What the receiver answered; null: nothing.")
    error: str | None
    duration_ms: int


class WebhookDetail(WebhookView):
    """An event with its latest tries."""

    deliveries: list[DeliveryView]


class WebhookList(BaseModel):
    """One page of events, newest first."""

    items: list[WebhookView]
    next_cursor: str | None


def payload(jobs: Jobs, views: Views) -> Render:
    """Make what shapes an event's `data`: the job or batch as its own route shows it."""

    async def render(event: WebhookEvent) -> dict[str, JsonValue] | None:
        if event.job_id is not None:
            job = await jobs.get(event.job_id)
            return None if job is None else views.job(job).model_dump(mode="json")
        batch = await jobs.batches.get(event.batch_id or "")
        if batch is None:
            return None
        counted = await jobs.batches.counts([batch])
        return batch_view(views, counted[0]).model_dump(mode="json")

    return render


def webhooks_router(context: Context) -> APIRouter:
    """Make the routes under `/api/webhooks`."""
    router = APIRouter(prefix="/api/webhooks", tags=["webhooks"])
    _add_list(router, context)
    _add_one(router, context)
    return router


def _add_list(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List webhook events, newest first",
        response_model=None,
        responses={
            200: {"model": WebhookList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_webhooks(
        status: Annotated[
            WebhookStatus | None, Query(description="Only events in this state.")
        ] = None,
        job_id: Annotated[uuid.UUID | None, _subject("job")] = None,
        batch_id: Annotated[uuid.UUID | None, _subject("batch")] = None,
        cursor: Cursor = None,
        limit: Limit = PAGE,
    ) -> Response:
        """Your events; filters may be combined."""
        query = WebhookQuery(
            caller=CALLER,
            status=status,
            job_id=None if job_id is None else str(job_id),
            batch_id=None if batch_id is None else str(batch_id),
            cursor=cursor,
            limit=limit,
        )
        page = await context.webhooks.list(query)
        items = [WebhookView.model_validate(_shown(event)) for event in page.items]
        return as_json(WebhookList(items=items, next_cursor=page.next_cursor))


def _add_one(router: APIRouter, context: Context) -> None:
    @router.get(
        "/{event_id}",
        summary="A webhook event with its deliveries",
        response_model=None,
        responses={
            200: {"model": WebhookDetail, "description": "The event."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_webhook(event_id: EventId) -> Response:
        """The event, and what became of each try to deliver it."""
        found = await context.webhooks.get(CALLER, _canonical(event_id))
        if found is None:
            raise _unknown()
        event, deliveries = found
        tries = [_delivery(each) for each in deliveries]
        return as_json(WebhookDetail.model_validate({**_shown(event), "deliveries": tries}))

    @router.post(
        "/{event_id}/redeliver",
        summary="Deliver a webhook event once more",
        status_code=202,
        response_model=None,
        responses={
            202: {
                "model": WebhookView,
                "description": "It is tried as soon as its receiver's turn comes.",
            },
            **documented(Unauthorized, NotFound),
        },
    )
    async def redeliver_webhook(event_id: EventId) -> Response:
        """Sends it again under the same id, whatever became of it before."""
        event = await context.webhooks.redeliver(CALLER, _canonical(event_id))
        if event is None:
            raise _unknown()
        location = {"Location": f"/api/webhooks/{event.id}"}
        return as_json(WebhookView.model_validate(_shown(event)), 202, location)


def _shown(event: WebhookEvent) -> dict[str, object]:
    return {
        "id": event.id,
        "type": event.type,
        "url": event.url,
        "job_id": event.job_id,
        "batch_id": event.batch_id,
        "status": event.status,
        "attempts": event.attempts,
        "next_attempt_at": event.next_at if event.status == "pending" else None,
        "created_at": event.created_at,
        "delivered_at": event.delivered_at,
    }


def _delivery(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        n=delivery.n,
        at=delivery.at,
        status_code=delivery.status_code,
        error=delivery.error,
        duration_ms=delivery.duration_ms,
    )


def _canonical(event_id: str) -> str:
    try:
        return str(uuid.UUID(event_id))
    except ValueError:
        raise _unknown() from None


def _unknown() -> NotFound:
    return NotFound("There is no such event here; GET /api/webhooks lists yours.")
