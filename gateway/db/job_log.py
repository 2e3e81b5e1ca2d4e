"""Moving a job and writing down that it moved, always together.

Where one transaction touches more than the job, its rows are locked in this order everywhere: job,
run, batch. So the job's row is moved first, then the run's, and what is logged comes last.
"""

from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import RowMapping, bindparam, insert, update

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
    .returning(
        jobs.c.id,
        jobs.c.events,
        jobs.c.status,
        jobs.c.caller,
        jobs.c.webhook_url,
        jobs.c.batch_id,
    )
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
    to: JobStatus,
    **columns: Any,  # noqa: ANN401  # column values
) -> RowMapping | None:
    """Bring a job into a state it may move to, or leave it there while something is logged.

    What comes back is for `log_move`, in the same transaction. None: it is gone, or in a state that
    allows no such move; nothing was written.
    """
    return await transaction.row(_MOVES[to], {"job": job_id, "status": to, **columns})


async def log_move(
    transaction: Transaction,
    moved: RowMapping,
    event: str,
    data: dict[str, JsonValue],
    now: datetime,
) -> None:
    """Write down the move that `move_job` made, for everybody who is to hear of it."""
    job_id: str = moved["id"]
    status: JobStatus = moved["status"]
    if not JOB_MOVES[status]:
        await job_ended(transaction, job_id, moved, status, now)
    await add_event(transaction, job_id, n=moved["events"], event=event, data=data, now=now)
    transaction.changed(job_id, status)


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
