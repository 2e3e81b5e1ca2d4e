"""What the limits on the queue are measured by."""

from sqlalchemy import func, select

from gateway.db.engine import Database
from gateway.db.tables import runs

_WAITING = (
    select(runs.c.caller, func.count().label("n"))
    .where(runs.c.state == "waiting")
    .group_by(runs.c.caller)
)


async def waiting_by_caller(db: Database) -> dict[str, int]:
    """How many jobs of each caller wait: one look at one index."""
    rows = await db.read(lambda reading: reading.rows(_WAITING))
    return {row["caller"]: row["n"] for row in rows}
