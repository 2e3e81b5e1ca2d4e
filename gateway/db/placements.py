"""What placement reads and the grants it writes, in one transaction."""

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Executable, RowMapping, bindparam, func, or_, select, update

from gateway.db.engine import Transaction
from gateway.db.job_log import note
from gateway.db.records import micros
from gateway.db.tables import runs

HEADS = 256
"""Most candidates looked at in one round."""


# made once: to build these takes longer than to carry them out
_UNDER_WAY = select(runs.c.backend, runs.c.caller, runs.c.digest, runs.c.models).where(
    or_(runs.c.state.in_(("granted", "started")), runs.c.cancel_pending)
)


def _heads() -> Executable:
    place = func.row_number().over(
        partition_by=runs.c.caller,
        order_by=(runs.c.priority.desc(), runs.c.created_at, runs.c.id),
    )
    waiting = (
        select(runs.c.id, runs.c.caller, place.label("place"))
        .where(
            runs.c.state == "waiting",
            runs.c.owner.is_not(None),
            runs.c.not_before <= bindparam("now"),
            runs.c.deadline_at > bindparam("now"),
            runs.c.digest.not_in(bindparam("without", expanding=True)),
        )
        .subquery()
    )
    earlier = runs.alias()
    turn = (
        select(func.max(earlier.c.granted_at))
        .where(earlier.c.caller == waiting.c.caller)
        .scalar_subquery()
    )
    return (
        select(
            runs.c.id,
            runs.c.owner,
            runs.c.epoch,
            runs.c.caller,
            runs.c.priority,
            runs.c.workflow,
            runs.c.digest,
            runs.c.models,
            runs.c.created_at,
            turn.label("turn"),
        )
        .join(waiting, waiting.c.id == runs.c.id)
        .where(waiting.c.place <= bindparam("per_caller"))
        .order_by(waiting.c.place, runs.c.created_at, runs.c.id)
        .limit(HEADS)
    )


_HEADS = _heads()
_GRANT = update(runs).where(
    runs.c.id == bindparam("run"),
    runs.c.epoch == bindparam("run_epoch"),
    runs.c.state == "waiting",
)


async def under_way(transaction: Transaction) -> Sequence[RowMapping]:
    """Runs that take a backend's room: backend, caller, digest, models.

    A run that has ended counts until its backend was told: it may still execute there.
    """
    return await transaction.rows(_UNDER_WAY)


async def heads(
    transaction: Transaction, now: datetime, *, per_caller: int, without: Collection[str]
) -> Sequence[RowMapping]:
    """The first waiting runs of each caller; `without` names workflow digests to leave out."""
    values = {"now": micros(now), "per_caller": per_caller, "without": list(without)}
    return await transaction.rows(_HEADS, values)


async def grant(
    transaction: Transaction, run: str, epoch: int, backend: str, now: datetime
) -> bool:
    """Give a waiting run its place; False when it is not as it was."""
    values = {"state": "granted", "backend": backend, "granted_at": micros(now), "waits_for": None}
    return await transaction.matched(_GRANT, {"run": run, "run_epoch": epoch, **values}) > 0


async def explain(
    transaction: Transaction, digest: str, why: str, now: datetime, *, limit: int
) -> int:
    """Log once, for each run that waits with this workflow, what it waits for."""
    untold = (
        select(runs.c.id, runs.c.job_id, runs.c.workflow)
        .where(
            runs.c.state == "waiting",
            runs.c.digest == digest,
            or_(runs.c.waits_for.is_(None), runs.c.waits_for != why),
        )
        .limit(limit)
    )
    rows = await transaction.rows(untold)
    for row in rows:
        await transaction.execute(
            update(runs)
            .where(runs.c.id == row["id"], runs.c.state == "waiting")
            .values(waits_for=why)
        )
        await note(
            transaction, row["job_id"], "waiting", {"workflow": row["workflow"], "why": why}, now
        )
    return len(rows)
