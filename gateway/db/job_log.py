"""Moving a job and writing down that it moved, always together."""

from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import bindparam, insert, update

from gateway.db.engine import Transaction
from gateway.db.outbox import job_ended
from gateway.db.records import micros
from gateway.db.tables import job_events, jobs
from gateway.job import JOB_MOVES, JobStatus

# made once: to build a statement takes longer than to carry it out
_NOTE = (
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(events=jobs.c.events + 1)
    .returning(jobs.c.events, jobs.c.status, jobs.c.caller, jobs.c.webhook_url, jobs.c.batch_id)
)
_EVENT = insert(job_events)


def _allowed(to: JobStatus) -> list[JobStatus]:
    before: list[JobStatus] = [status for status, targets in JOB_MOVES.items() if to in targets]
    # the first terminal state wins, over a second one of the same kind too
    return [*before, to] if JOB_MOVES[to] else before


_MOVES = {to: _NOTE.where(jobs.c.status.in_(_allowed(to))) for to in JOB_MOVES}


async def move_job(
    transaction: Transaction,
    job_id: str,
    *,
    to: JobStatus,
    event: str,
    data: dict[str, JsonValue],
    now: datetime,
    **columns: Any,  # noqa: ANN401  # column values
) -> bool:
    """Bring a job into a state it may move to, or log something while it stays there.

    False: it is gone or already in a state that allows no such move; nothing was written.
    """
    moved = await transaction.row(_MOVES[to], {"job": job_id, "status": to, **columns})
    if moved is None:
        return False
    await add_event(transaction, job_id, n=moved["events"], event=event, data=data, now=now)
    if not JOB_MOVES[to]:
        await job_ended(transaction, job_id, moved, to, now)
    transaction.changed(job_id, to)
    return True


async def note(
    transaction: Transaction, job_id: str, event: str, data: dict[str, JsonValue], now: datetime
) -> None:
    """Log a decision about a job without moving it."""
    noted = await transaction.row(_NOTE, {"job": job_id})
    if noted is not None:
        await add_event(transaction, job_id, n=noted["events"], event=event, data=data, now=now)
        transaction.changed(job_id, noted["status"])


async def add_event(
    transaction: Transaction,
    job_id: str,
    *,
    n: int,
    event: str,
    data: dict[str, JsonValue],
    now: datetime,
) -> None:
    """Write one entry under a number its caller has taken from the job's row."""
    await transaction.execute(
        _EVENT,
        {"job_id": job_id, "n": n, "type": event, "data": data, "at": micros(now)},
    )
