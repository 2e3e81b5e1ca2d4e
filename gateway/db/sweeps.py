"""What is old enough to go: found and removed a few rows at a time."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Executable, Select, and_, delete, select, union_all, update

from gateway.db.engine import Database, Transaction
from gateway.db.records import micros
from gateway.db.tables import (
    artifacts,
    batches,
    idempotency,
    jobs,
    runs,
    styles,
    templates,
    thumbnails,
    uploads,
    webhook_events,
)
from gateway.job import JOB_TERMINAL

_SWEEP_LOCK = 0x67656E_5357
_ENDED = jobs.c.status.in_(sorted(JOB_TERMINAL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the rows say of some jobs and their files."""

    there: frozenset[str]
    """Jobs that have a row."""
    ended: frozenset[str]
    """Those of them that ended long enough ago."""
    keys: frozenset[str]
    """Files that belong to them."""


class SweepRows:
    """Every read and write of the sweeps; `limit` bounds what one of them touches."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def alone(self) -> AbstractAsyncContextManager[bool]:
        """Keep other gateways from sweeping meanwhile. Raises DatabaseUnavailable."""
        return self._db.alone(_SWEEP_LOCK)

    async def jobs_to_remove(self, before: datetime, limit: int) -> Sequence[str]:
        """Jobs that ended before that time and that nobody has still to hear of."""
        pending = (
            select(webhook_events.c.id)
            .where(webhook_events.c.job_id == jobs.c.id, webhook_events.c.status == "pending")
            .exists()
        )
        untold = select(runs.c.id).where(runs.c.job_id == jobs.c.id, runs.c.cancel_pending).exists()
        return await self._ids(
            select(jobs.c.id)
            .where(jobs.c.finished_at < micros(before), _ENDED, ~pending, ~untold)
            .order_by(jobs.c.finished_at, jobs.c.id)
            .limit(limit)
        )

    async def jobs_with_old_files(self, before: datetime, limit: int) -> Sequence[str]:
        """Jobs that ended before that time and have files."""
        has = (
            select(artifacts.c.job_id)
            .where(artifacts.c.job_id == jobs.c.id, artifacts.c.removed_at.is_(None))
            .exists()
        )
        return await self._ids(
            select(jobs.c.id)
            .where(jobs.c.finished_at < micros(before), _ENDED, has)
            .order_by(jobs.c.finished_at, jobs.c.id)
            .limit(limit)
        )

    async def forget_keys(self, before: datetime, limit: int) -> int:
        """Forget idempotency keys used before that time."""
        old = (
            select(idempotency.c.job_id)
            .where(idempotency.c.created_at < micros(before))
            .limit(limit)
        )
        return await self._matched(
            delete(idempotency).where(
                idempotency.c.created_at < micros(before), idempotency.c.job_id.in_(old)
            )
        )

    async def forget_batch_keys(self, before: datetime, limit: int) -> int:
        """Forget idempotency keys batches were made with before that time."""
        old = (
            select(batches.c.id)
            .where(batches.c.created_at < micros(before), batches.c.idempotency_key.is_not(None))
            .limit(limit)
        )
        return await self._matched(
            update(batches)
            .where(batches.c.id.in_(old))
            .values(idempotency_key=None, request_hash=None)
        )

    async def remove_batches(self, before: datetime, limit: int) -> int:
        """Remove batches that ended before that time and have no jobs any more."""
        left = select(jobs.c.id).where(jobs.c.batch_id == batches.c.id).exists()
        pending = (
            select(webhook_events.c.id)
            .where(webhook_events.c.batch_id == batches.c.id, webhook_events.c.status == "pending")
            .exists()
        )
        old = (
            select(batches.c.id)
            .where(batches.c.finished_at < micros(before), ~left, ~pending)
            .limit(limit)
        )
        return await self._matched(delete(batches).where(batches.c.id.in_(old)))

    async def remove_webhook_events(self, before: datetime, limit: int) -> int:
        """Remove events written before that time which nothing is done about any more."""
        old = (
            select(webhook_events.c.id)
            .where(
                webhook_events.c.created_at < micros(before),
                webhook_events.c.status != "pending",
            )
            .limit(limit)
        )
        return await self._matched(delete(webhook_events).where(webhook_events.c.id.in_(old)))

    async def known(self, job_ids: Collection[str], *, ended_before: datetime) -> Known:
        """What there is to know of these jobs."""
        named = list(job_ids)
        over = and_(_ENDED, jobs.c.finished_at < micros(ended_before)).label("over")
        states = select(jobs.c.id, over).where(jobs.c.id.in_(named))
        files = select(artifacts.c.key).where(
            artifacts.c.job_id.in_(named), artifacts.c.removed_at.is_(None)
        )

        async def work(reading: Transaction) -> Known:
            rows = await reading.rows(states)
            # read after the states: a job that was over then gets no more files
            keys = await reading.rows(files)
            return Known(
                there=frozenset(row["id"] for row in rows),
                ended=frozenset(row["id"] for row in rows if row["over"]),
                keys=frozenset(row["key"] for row in keys),
            )

        return await self._db.read(work)

    async def thumbnails_among(self, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys that are a thumbnail's."""
        query = select(thumbnails.c.key).where(thumbnails.c.key.in_(list(keys)))
        rows = await self._db.read(lambda reading: reading.rows(query))
        return frozenset(row["key"] for row in rows)

    async def thumbnailed(self, before: datetime, after: str, limit: int) -> Sequence[str]:
        """Keys of files that thumbnails were made of before that time, in order from `after` on."""
        query = (
            select(thumbnails.c.source_key)
            .distinct()
            .where(thumbnails.c.source_key > after, thumbnails.c.created_at < micros(before))
            .order_by(thumbnails.c.source_key)
            .limit(limit)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [row["source_key"] for row in rows]

    async def there(self, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys that are a result's, an upload's or a picture's."""
        named = list(keys)
        # both have an index on the last part alone
        names = [key.rpartition("/")[2] for key in named]
        queries = (
            select(artifacts.c.key).where(
                artifacts.c.filename.in_(names), artifacts.c.removed_at.is_(None)
            ),
            select(uploads.c.key).where(uploads.c.filename.in_(names)),
            *(select(t.c.image_key).where(t.c.image_key.in_(named)) for t in (templates, styles)),
        )

        async def work(reading: Transaction) -> frozenset[str]:
            rows = await reading.rows(union_all(*queries))
            return frozenset(row["key"] for row in rows) & frozenset(named)

        return await self._db.read(work)

    async def _ids(self, query: Select[tuple[str]]) -> Sequence[str]:
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [row["id"] for row in rows]

    async def _matched(self, statement: Executable) -> int:
        return await self._db.write(lambda writing: writing.matched(statement))
