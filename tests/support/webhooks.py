"""A deliverer of webhooks over a database of its own, with a clock that a test moves."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from gateway.db import Database
from gateway.db.jobs import JobRows
from gateway.db.webhooks import Delivery, WebhookEvent, WebhookQuery
from gateway.job import Call, NewJob, new_job_id
from gateway.jobs.receivers import Receivers
from gateway.jobs.webhooks import Webhooks, WebhookSettings
from gateway.security.signing import webhook_secret
from tests.support.receiver import PATIENCE_S

SECRET = webhook_secret(b"of this test" * 3)
CALLER = "somebody"


class Clock:
    """Stands still until it is moved."""

    def __init__(self, at: datetime | None = None) -> None:
        self.at = at or datetime.now(UTC)

    def now(self) -> datetime:
        return self.at


class Steady(random.Random):
    """No jitter, so that times can be named."""

    def random(self) -> float:
        return 0


async def cancelled_job(rows: JobRows, url: str, now: datetime) -> str:
    """Write a job that wants a webhook, and its end: an event in the outbox."""
    job = NewJob(
        id=new_job_id(),
        tool="generate",
        variant="v",
        caller=CALLER,
        params={},
        call=Call(workflow="w", digest="d", params={}, outputs=(), prefix="p"),
        deadline_s=60,
        webhook_url=url,
    )
    await rows.insert(job, owner=None, now=now)
    await rows.cancel(job.id, now)
    return job.id


class Desk:
    """One replica's deliverer, and a way to write events."""

    def __init__(self, db: Database, clock: Clock, **changes: Any) -> None:
        self.rows = JobRows(db)
        self.clock = clock
        settings: dict[str, Any] = {"poll_s": 0.02, "grace_s": 0.2, **changes}
        secrets = settings.pop("secrets", [SECRET])
        self.webhooks = Webhooks(
            db=db,
            receivers=Receivers(allow_private=settings.pop("allow_private", True)),
            secrets=secrets,
            render=settings.pop("render", rendered),
            clock=clock,
            settings=WebhookSettings(**settings),
            rng=Steady(),
        )

    async def event(self, url: str) -> WebhookEvent:
        """What is written when a job ends."""
        job_id = await cancelled_job(self.rows, url, self.clock.at)
        page = await self.webhooks.list(WebhookQuery(caller=CALLER, job_id=job_id))
        return page.items[0]

    async def get(self, event: WebhookEvent) -> tuple[WebhookEvent, list[Delivery]]:
        found = await self.webhooks.get(CALLER, event.id)
        assert found is not None
        return found[0], list(found[1])

    async def until(self, event: WebhookEvent, met: Callable[[WebhookEvent], bool]) -> WebhookEvent:
        """The event once it is as it should be."""
        async with asyncio.timeout(PATIENCE_S):
            while not met(now := (await self.get(event))[0]):  # noqa: ASYNC110  # a row, no event
                await asyncio.sleep(0.01)
        return now

    async def tried(self, event: WebhookEvent, times: int) -> WebhookEvent:
        return await self.until(event, lambda e: e.attempts >= times)

    async def delivered(self, event: WebhookEvent) -> WebhookEvent:
        return await self.until(event, lambda e: e.status == "delivered")


async def rendered(event: WebhookEvent) -> dict[str, JsonValue]:
    return {"job_id": event.job_id}


MakeDesk = Callable[..., AbstractAsyncContextManager[Desk]]


def desks(database_url: str) -> MakeDesk:
    """Makes deliverers at work on that database."""

    @asynccontextmanager
    async def made(clock: Clock | None = None, **changes: Any) -> AsyncIterator[Desk]:
        db = Database(database_url)
        desk = Desk(db, clock or Clock(), **changes)
        await desk.webhooks.start()
        try:
            yield desk
        finally:
            await desk.webhooks.stop()
            await db.close()

    return made
