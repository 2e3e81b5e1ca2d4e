"""The outbox's other end: events taken to be delivered, and what became of each try."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import bindparam, insert, literal_column, select, tuple_, update

from gateway.db.cursors import cursor_after, read_cursor
from gateway.db.engine import Database, Transaction
from gateway.db.records import Row, micros, moment
from gateway.db.tables import webhook_deliveries as deliveries
from gateway.db.tables import webhook_events as events

WebhookStatus = Literal["pending", "delivered", "failed"]
SHOWN_DELIVERIES = 100
"""Tries an event is shown with, the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """Something a receiver is to hear of."""

    id: str
    caller: str
    type: str
    url: str
    host: str
    job_id: str | None
    batch_id: str | None
    status: WebhookStatus
    attempts: int
    """Tries that came to an end."""
    next_at: datetime
    """When it is tried next; for whoever has taken it, until when it is theirs."""
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One try that came to an end: with a status code, or with what went wrong before one."""

    at: datetime
    duration_ms: int
    status_code: int | None = None
    error: str | None = None
    n: int = 0
    """Given when it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookQuery:
    """Which events a list asks for, newest first; what is None does not narrow it."""

    caller: str
    status: WebhookStatus | None = None
    job_id: str | None = None
    batch_id: str | None = None
    cursor: str | None = None
    limit: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPage:
    """One page of events."""

    items: tuple[WebhookEvent, ...]
    next_cursor: str | None


_DUE = (
    select(events.c.id)
    .where(
        # written out: with a parameter the index of what is pending could not be used
        events.c.status == literal_column("'pending'"),
        events.c.next_at <= bindparam("now"),
        events.c.host.not_in(bindparam("busy", expanding=True)),
    )
    .order_by(events.c.next_at)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_CLAIM = (
    update(events)
    .where(events.c.id == _DUE.scalar_subquery())
    .values(next_at=bindparam("until"))
    .returning(*events.c)
)
_ONE = events.c.id == bindparam("event")
_MINE = (_ONE, events.c.status == "pending", events.c.next_at == bindparam("claimed"))
_COUNT = update(events).where(_ONE).values(attempts=events.c.attempts + 1)
_COUNTED = _COUNT.returning(events.c.attempts)
_DELIVERED = update(events).where(_ONE)
_TRY_AGAIN = update(events).where(*_MINE)
_REDELIVER = (
    update(events)
    .where(_ONE, events.c.caller == bindparam("whose"))
    .values(status="pending", delivered_at=None)
    .returning(*events.c)
)


class WebhookRows:
    """Everything that is asked of webhook events."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(
        self, *, busy: Collection[str], now: datetime, until: datetime
    ) -> WebhookEvent | None:
        """Take the event that is due longest, of hosts that are not busy; nobody else does.

        Whoever dies with it loses it at `until`.
        """
        values = {"now": micros(now), "until": micros(until), "busy": sorted(busy)}
        row = await self._db.write(lambda writing: writing.row(_CLAIM, values))
        return None if row is None else to_webhook_event(row)

    async def delivered(self, event: WebhookEvent, delivery: Delivery) -> None:
        """Write down that it has arrived, whoever holds it by now."""

        async def work(writing: Transaction) -> None:
            if await _log(writing, event, delivery):
                values = {"event": event.id, "delivered_at": micros(delivery.at)}
                await writing.execute(_DELIVERED, {**values, "status": "delivered"})

        await self._db.write(work)

    async def failed(
        self, event: WebhookEvent, delivery: Delivery, next_at: datetime | None
    ) -> None:
        """Write down a try in vain, and when the next one is; None = it was the last.

        An event that was taken by somebody else meanwhile, or is to be redelivered, stays so.
        """
        mine = {"event": event.id, "claimed": micros(event.next_at)}

        async def work(writing: Transaction) -> None:
            if not await _log(writing, event, delivery):
                return
            if next_at is None:
                await writing.execute(_TRY_AGAIN, {**mine, "status": "failed"})
            else:
                await writing.execute(_TRY_AGAIN, {**mine, "next_at": micros(next_at)})

        await self._db.write(work)

    async def give_back(self, event: WebhookEvent, now: datetime) -> None:
        """Let the next one take it at once; it was not tried to the end."""
        values = {
            "event": event.id,
            "claimed": micros(event.next_at),
            "next_at": micros(now),
        }
        await self._db.write(lambda writing: writing.execute(_TRY_AGAIN, values))

    async def redeliver(self, caller: str, event_id: str, now: datetime) -> WebhookEvent | None:
        """Make it due now, whatever became of it; None when the caller has none of that id."""
        values = {"event": event_id, "whose": caller, "next_at": micros(now)}

        async def work(writing: Transaction) -> WebhookEvent | None:
            row = await writing.row(_REDELIVER, values)
            if row is None:
                return None
            writing.posted = True
            return to_webhook_event(row)

        return await self._db.write(work)

    async def get(
        self, caller: str, event_id: str
    ) -> tuple[WebhookEvent, Sequence[Delivery]] | None:
        """One event of a caller with its latest tries, the first of them first."""
        one = select(events).where(events.c.id == event_id, events.c.caller == caller)
        latest = (
            select(deliveries)
            .where(deliveries.c.event_id == event_id)
            .order_by(deliveries.c.n.desc())
            .limit(SHOWN_DELIVERIES)
        )

        async def work(reading: Transaction) -> tuple[WebhookEvent, Sequence[Delivery]] | None:
            row = await reading.row(one)
            if row is None:
                return None
            found = [_to_delivery(each) for each in await reading.rows(latest)]
            return to_webhook_event(row), found[::-1]

        return await self._db.read(work)

    async def list(self, query: WebhookQuery) -> WebhookPage:
        """One page, newest first. Raises InvalidParameters when the cursor is none of ours."""
        conditions = [
            column == value
            for column, value in (
                (events.c.caller, query.caller),
                (events.c.status, query.status),
                (events.c.job_id, query.job_id),
                (events.c.batch_id, query.batch_id),
            )
            if value is not None
        ]
        place = tuple_(events.c.created_at, events.c.id)
        if query.cursor is not None:
            conditions.append(place < tuple_(*read_cursor(query.cursor)))
        statement = (
            select(events)
            .where(*conditions)
            .order_by(events.c.created_at.desc(), events.c.id.desc())
            .limit(query.limit + 1)
        )
        rows = await self._db.read(lambda reading: reading.rows(statement))
        page = rows[: query.limit]
        more = len(rows) > query.limit
        return WebhookPage(
            items=tuple(to_webhook_event(row) for row in page),
            next_cursor=cursor_after(page[-1]["created_at"], page[-1]["id"]) if more else None,
        )


def to_webhook_event(row: Row) -> WebhookEvent:
    """An event from its row."""
    delivered_at = row["delivered_at"]
    return WebhookEvent(
        id=row["id"],
        caller=row["caller"],
        type=row["type"],
        url=row["url"],
        host=row["host"],
        job_id=row["job_id"],
        batch_id=row["batch_id"],
        status=row["status"],
        attempts=row["attempts"],
        next_at=moment(row["next_at"]),
        created_at=moment(row["created_at"]),
        delivered_at=None if delivered_at is None else moment(delivered_at),
    )


def _to_delivery(row: Row) -> Delivery:
    return Delivery(
        n=row["n"],
        at=moment(row["at"]),
        status_code=row["status_code"],
        error=row["error"],
        duration_ms=row["duration_ms"],
    )


async def _log(writing: Transaction, event: WebhookEvent, delivery: Delivery) -> bool:
    """Number and write a try; False when its event is gone with its job."""
    # the update of the event's row also keeps two tries from taking one number
    counted = await writing.row(_COUNTED, {"event": event.id})
    if counted is None:
        return False
    row = {
        "event_id": event.id,
        "n": counted["attempts"],
        "at": micros(delivery.at),
        "status_code": delivery.status_code,
        "error": delivery.error,
        "duration_ms": delivery.duration_ms,
    }
    await writing.execute(insert(deliveries), row)
    return True
