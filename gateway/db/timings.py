"""What the estimates are made from: how long finished jobs took, and what work is open."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, RowMapping, case, cast, func, select

from gateway.db.engine import Database
from gateway.db.tables import jobs, runs

HISTORY = 50
"""Completed jobs of a tool's variant that count."""
LOOKED_AT = 200
"""Ended jobs among which they are looked for: a thousand cancelled ones must cost nothing."""

_SIZE = func.coalesce(jobs.c.size, 1.0)
_OPEN = ("waiting", "granted", "started")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one completed job took."""

    seconds: float
    size: float
    engine: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Open jobs of one caller that are alike, summed up."""

    tool: str
    variant: str
    caller: str
    priority: int
    under_way: bool
    """They have a place; the others wait for one."""
    jobs: int
    size: float
    """Sum of what is left of them."""
    oldest: int
    newest: int
    """When the first and the last of them came, in microseconds since 1970."""


class Timings:
    """Reads of history and of the queue; both are for now and then, not for every call."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def measured(self, tool: str, variant: str) -> list[Measured]:
        """The latest completed jobs of a tool's variant, newest first."""
        ended = (
            select(jobs.c.status, jobs.c.outcome, jobs.c.size, jobs.c.finished_at)
            .where(jobs.c.tool == tool, jobs.c.variant == variant, jobs.c.finished_at.is_not(None))
            .order_by(jobs.c.finished_at.desc())
            .limit(LOOKED_AT)
            .subquery()
        )
        seconds = ended.c.outcome["duration_seconds"].as_float()
        query = (
            select(
                seconds.label("seconds"),
                func.coalesce(ended.c.size, 1.0).label("size"),
                ended.c.outcome["engine"].as_string().label("engine"),
            )
            .where(ended.c.status == "completed")
            .order_by(ended.c.finished_at.desc())
            .limit(HISTORY)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [
            Measured(seconds=row["seconds"], size=row["size"], engine=row["engine"])
            for row in rows
            if row["seconds"] is not None
        ]

    async def queue(self) -> list[Lane]:
        """All open work, summed up: what waits by caller, priority and variant, what is running."""
        under_way = case((runs.c.state == "waiting", 0), else_=1)
        query = (
            select(
                jobs.c.tool,
                jobs.c.variant,
                runs.c.caller,
                runs.c.priority,
                under_way.label("under_way"),
                func.count().label("jobs"),
                func.sum(cast(_SIZE * (1.0 - jobs.c.progress), Float)).label("size"),
                func.min(runs.c.created_at).label("oldest"),
                func.max(runs.c.created_at).label("newest"),
            )
            .select_from(runs)
            .join(jobs, jobs.c.id == runs.c.job_id)
            .where(runs.c.state.in_(_OPEN))
            .group_by(jobs.c.tool, jobs.c.variant, runs.c.caller, runs.c.priority, under_way)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [_lane(row) for row in rows]


def _lane(row: RowMapping) -> Lane:
    columns: dict[str, Any] = dict(row)
    # SQLite has no truth values of its own
    columns["under_way"] = bool(row["under_way"])
    return Lane(**columns)
