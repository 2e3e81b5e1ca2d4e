"""What the commit that ends a job writes for those who are to hear of it: webhooks, its batch."""

import uuid
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import RowMapping, bindparam, insert, update

from gateway.db.engine import Transaction
from gateway.db.records import micros
from gateway.db.tables import batches, webhook_events
from gateway.job import JobStatus

_EVENT = insert(webhook_events)
_COUNT = (
    update(batches)
    .where(batches.c.id == bindparam("batch"))
    .values(ended=batches.c.ended + 1)
    .returning(batches.c.ended, batches.c.total, batches.c.webhook_url)
)
_FINISH = update(batches).where(batches.c.id == bindparam("batch"))


async def job_ended(
    transaction: Transaction, job_id: str, job: RowMapping, status: JobStatus, now: datetime
) -> None:
    """Write the webhook event of a job that ends here, and count it in its batch.

    `job` holds its caller, webhook_url and batch_id.
    """
    if job["webhook_url"] is not None:
        kind = f"job.{status}"
        await _post(transaction, job, kind, job["webhook_url"], now, job_id=job_id)
    batch_id = job["batch_id"]
    if batch_id is None:
        return
    counted = await transaction.row(_COUNT, {"batch": batch_id})
    if counted is None or counted["ended"] != counted["total"]:
        return
    await transaction.execute(_FINISH, {"batch": batch_id, "finished_at": micros(now)})
    transaction.changed(batch_id, "completed")
    if counted["webhook_url"] is not None:
        url = counted["webhook_url"]
        await _post(transaction, job, "batch.completed", url, now, batch_id=batch_id)


async def _post(
    transaction: Transaction,
    job: RowMapping,
    kind: str,
    url: str,
    now: datetime,
    *,
    job_id: str | None = None,
    batch_id: str | None = None,
) -> None:
    subject = job_id or batch_id or ""
    row = {
        # the same event has the same id however often its commit is tried
        "id": str(uuid.uuid5(uuid.UUID(subject), kind)),
        "caller": job["caller"],
        "type": kind,
        "url": url,
        "host": urlsplit(url).netloc.lower(),
        "job_id": job_id,
        "batch_id": batch_id,
        "status": "pending",
        "attempts": 0,
        "next_at": micros(now),
        "created_at": micros(now),
    }
    await transaction.execute(_EVENT, row)
    transaction.posted = True
