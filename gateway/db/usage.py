"""What a caller keeps here, in bytes."""

from dataclasses import dataclass

from sqlalchemy import func, select

from gateway.db.engine import Database, Transaction
from gateway.db.tables import artifacts, jobs, uploads


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes of a caller's files; what is derived of them does not count."""

    uploads: int = 0
    """Those yet to come, into a slot that was given out, are counted."""
    results: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.uploads + self.results


async def stored_by(db: Database, caller: str) -> Stored:
    """Add up what is a caller's."""
    of_uploads = select(func.sum(uploads.c.bytes).label("n")).where(uploads.c.caller == caller)
    of_results = (
        select(func.sum(artifacts.c.bytes).label("n"))
        .join(jobs, jobs.c.id == artifacts.c.job_id)
        .where(jobs.c.caller == caller, artifacts.c.removed_at.is_(None))
    )

    async def work(reading: Transaction) -> Stored:
        sums = [await reading.row(query) for query in (of_uploads, of_results)]
        # PostgreSQL adds bigints up to a numeric
        taken, made = (int(row["n"] or 0) if row else 0 for row in sums)
        return Stored(uploads=taken, results=made)

    return await db.read(work)
