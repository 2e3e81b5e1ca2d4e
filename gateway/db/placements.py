"""What placement reads and the grants it writes, in one transaction."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    FromClause,
    RowMapping,
    ScalarSelect,
    Select,
    String,
    Subquery,
    Text,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from gateway.db.engine import Transaction
from gateway.db.job_log import note
from gateway.db.records import micros, storable
from gateway.db.tables import jobs, runs

CHOICE_LONGEST = 300
HEADS = 256
"""Most candidates looked at in one round."""


# made once: to build these takes longer than to carry them out
_UNDER_WAY = select(
    runs.c.job_id,
    runs.c.backend,
    runs.c.caller,
    runs.c.digest,
    runs.c.models,
    runs.c.cancel_pending,
).where(
    # written out: a plan made without knowing the states would read the whole table
    or_(
        runs.c.state.in_(
            (literal_column("'granted'", String), literal_column("'started'", String))
        ),
        runs.c.cancel_pending,
    )
)


def _work(run: FromClause) -> ColumnElement[str]:
    """What runs have in common that may go to the same places: workflow, and where it may go."""
    return func.coalesce(run.c.digest + cast(run.c.places, Text), run.c.digest)


def _lanes() -> CTE:
    """Each caller with waiting runs, each priority they have, when the caller was last served.

    From one entry of the index to the next, so that it costs as much as there are lanes: a window
    over all rows costs as much as there are waiting runs, in every round.
    """
    at, served = runs.alias(), runs.alias()
    waiting = at.c.state == "waiting"
    callers = select(func.min(at.c.caller).label("caller")).where(waiting).cte(recursive=True)
    next_caller = select(func.min(at.c.caller)).where(waiting, at.c.caller > callers.c.caller)
    callers = callers.union_all(
        select(next_caller.scalar_subquery()).where(callers.c.caller.is_not(None))
    )
    priorities = select(func.max(at.c.priority)).where(waiting)
    highest = priorities.where(at.c.caller == callers.c.caller)
    turn = select(func.coalesce(func.max(served.c.granted_at), 0))
    lanes = (
        select(
            callers.c.caller,
            highest.scalar_subquery().label("priority"),
            turn.where(served.c.caller == callers.c.caller).scalar_subquery().label("turn"),
        )
        .where(callers.c.caller.is_not(None))
        .cte(recursive=True)
    )
    lower = priorities.where(at.c.caller == lanes.c.caller, at.c.priority < lanes.c.priority)
    return lanes.union_all(
        select(lanes.c.caller, lower.scalar_subquery(), lanes.c.turn).where(
            lanes.c.priority.is_not(None)
        )
    )


def _first(lanes: Subquery) -> CTE:
    """The first runs of each lane that may begin, one found after the other."""
    at = runs.alias()

    def ready(lane: Subquery | CTE, *, after: CTE | None = None) -> tuple[ScalarSelect[Any], ...]:
        query = select(at.c.id).where(
            at.c.state == "waiting",
            at.c.caller == lane.c.caller,
            at.c.priority == lane.c.priority,
            at.c.owner.in_(bindparam("owners", expanding=True)),
            at.c.not_before <= bindparam("now"),
            at.c.deadline_at > bindparam("now"),
            _work(at).not_in(bindparam("without", expanding=True)),
        )
        if after is not None:
            query = query.where(
                tuple_(at.c.created_at, at.c.id) > tuple_(after.c.created_at, after.c.id)
            )
        query = query.order_by(at.c.created_at, at.c.id).limit(1)
        # looked up twice: a join here would have PostgreSQL read the whole table for a few rows
        columns = (query, query.with_only_columns(at.c.created_at))
        return tuple(column.scalar_subquery() for column in columns)

    identifier, created_at = ready(lanes)
    found = select(
        lanes.c.caller,
        lanes.c.priority,
        lanes.c.turn,
        identifier.label("id"),
        created_at.label("created_at"),
        literal(1).label("place"),
    ).cte(recursive=True)
    following = ready(found, after=found)
    kept = (found.c.caller, found.c.priority, found.c.turn)
    return found.union_all(
        select(*kept, *following, found.c.place + 1).where(
            found.c.place < bindparam("per_caller"), found.c.id.is_not(None)
        )
    )


def _heads() -> Executable:
    lanes = _lanes()
    # those served longest ago, should there be more than can be looked at
    looked_at = (
        select(lanes)
        .where(lanes.c.priority.is_not(None))
        .order_by(lanes.c.turn, lanes.c.priority.desc(), lanes.c.caller)
        .limit(HEADS)
        .subquery()
    )
    # level by level, so that the first of every lane are among them; the last of a lane is none
    found = select(_first(looked_at)).limit(2 * HEADS).subquery()
    # a caller's lanes take turns, so that what has waited long is seen under a steady stream of
    # what goes before it
    place = func.row_number().over(
        partition_by=found.c.caller, order_by=(found.c.place, found.c.priority.desc())
    )
    heads = (
        select(found.c.id, found.c.turn, found.c.created_at, place.label("place"))
        .where(found.c.id.is_not(None))
        .subquery()
    )
    return (
        select(heads.c.id, heads.c.turn)
        .where(heads.c.place <= bindparam("per_caller"))
        .order_by(heads.c.place, heads.c.created_at, heads.c.id)
        .limit(HEADS)
    )


_HEADS = _heads()
_OF_HEADS = select(
    runs.c.id,
    runs.c.job_id,
    runs.c.owner,
    runs.c.epoch,
    runs.c.caller,
    runs.c.priority,
    runs.c.workflow,
    runs.c.digest,
    runs.c.models,
    runs.c.created_at,
    runs.c.places,
    _work(runs).label("work"),
).where(runs.c.id.in_(bindparam("ids", expanding=True)))
_UNTOLD = select(runs.c.id, runs.c.job_id, runs.c.workflow).where(runs.c.state == "waiting")
_GRANT = update(runs).where(
    runs.c.id == bindparam("run"),
    runs.c.epoch == bindparam("run_epoch"),
    runs.c.state == "waiting",
    # given back meanwhile: nobody would begin it
    runs.c.owner.is_not(None),
)
# to plan the query for heads anew takes five times as long as to carry it out
_LOCK = select(
    func.pg_advisory_xact_lock(0x67656E_504C),
    func.set_config("plan_cache_mode", "force_generic_plan", True),
)


async def one_at_a_time(transaction: Transaction) -> None:
    """Wait until no other gateway places; it ends with the transaction."""
    # SQLite lets in one writer at a time anyhow
    if transaction.dialect == "postgresql":
        await transaction.execute(_LOCK)


async def under_way(transaction: Transaction) -> Sequence[RowMapping]:
    """Runs that take a backend's room: job, backend, caller, digest, models, cancel_pending.

    A run that has ended counts until its backend was told: it may still execute there.
    """
    return await transaction.rows(_UNDER_WAY)


async def heads(
    transaction: Transaction,
    now: datetime,
    *,
    owners: Collection[str],
    per_caller: int,
    without: Collection[str],
) -> list[dict[str, Any]]:
    """The first waiting runs of each caller; `without` names what to leave out, by `work`.

    Only those that `owners` drive: what a dead one was given, nobody would begin. `work` is alike
    for runs of one workflow that may go to the same places.

    `turn` is when the caller was last granted anything; 0 = never.
    """
    values = {
        "now": micros(now),
        "owners": sorted(owners),
        "per_caller": per_caller,
        "without": list(without),
    }
    found = await transaction.rows(_HEADS, values)
    if not found:
        return []
    rows = await transaction.rows(_OF_HEADS, {"ids": [row["id"] for row in found]})
    turns = {row["id"]: row["turn"] for row in found}
    return [{**row, "turn": turns[row["id"]]} for row in rows]


async def grant(
    transaction: Transaction,
    run: str,
    epoch: int,
    backend: str,
    now: datetime,
    *,
    choice: str | None = None,
) -> bool:
    """Give a waiting run its place, and say why; False when it is not as it was.

    Of several in one transaction, the lower id goes first.
    """
    values = {
        "state": "granted",
        "backend": backend,
        "granted_at": micros(now),
        "choice": None if choice is None else storable(choice, CHOICE_LONGEST),
        "waits_for": None,
    }
    return await transaction.matched(_GRANT, {"run": run, "run_epoch": epoch, **values}) > 0


async def explain(
    transaction: Transaction, work: str, why: str, now: datetime, *, limit: int
) -> int:
    """Log once, for each run that waits with such work, what it waits for."""
    return await _explain(transaction, _UNTOLD.where(_work(runs) == work).limit(limit), why, now)


async def explain_runs(
    transaction: Transaction, ids: Sequence[str], why: str, now: datetime
) -> int:
    """Log once, for each of these runs that waits, what it waits for."""
    return await _explain(transaction, _UNTOLD.where(runs.c.id.in_(ids)), why, now)


async def _explain(
    transaction: Transaction, waiting: Select[Any, Any, Any], why: str, now: datetime
) -> int:
    untold = waiting.where(or_(runs.c.waits_for.is_(None), runs.c.waits_for != why))
    # jobs before runs, and of several jobs the lower id first: so that nobody who locks both waits
    # for this one while it waits for him
    rows = sorted(await transaction.rows(untold), key=lambda row: row["job_id"])
    locked = select(jobs.c.id).where(jobs.c.id.in_([row["job_id"] for row in rows]))
    await transaction.execute(locked.order_by(jobs.c.id).with_for_update())
    told = 0
    for row in rows:
        waits = update(runs).where(runs.c.id == row["id"], runs.c.state == "waiting")
        if await transaction.matched(waits.values(waits_for=why)):
            data: dict[str, JsonValue] = {"workflow": row["workflow"], "why": why}
            await note(transaction, row["job_id"], "waiting", data, now)
            told += 1
    return told
