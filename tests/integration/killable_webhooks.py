"""A process that delivers webhooks, to be killed: `killable_webhooks.py DATABASE_URL`."""

import asyncio
import sys

from pydantic import JsonValue

from gateway.clock import SystemClock
from gateway.db import Database
from gateway.db.webhooks import WebhookEvent
from gateway.jobs.receivers import Receivers
from gateway.jobs.webhooks import Webhooks, WebhookSettings
from gateway.security.signing import webhook_secret

SECRET = webhook_secret(b"of the process to be killed")


async def rendered(event: WebhookEvent) -> dict[str, JsonValue]:
    return {"job_id": event.job_id}


async def deliver(url: str) -> None:
    webhooks = Webhooks(
        db=Database(url),
        receivers=Receivers(allow_private=True),
        secrets=[SECRET],
        render=rendered,
        clock=SystemClock(),
        settings=WebhookSettings(poll_s=0.1, lease_s=4),
    )
    await webhooks.run()


if __name__ == "__main__":
    asyncio.run(deliver(sys.argv[1]))
