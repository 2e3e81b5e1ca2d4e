"""Batches: many jobs written at once, counted together, shown item by item."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import RowMapping, delete, func, insert, select, tuple_, update

from gateway.db.cursors import cursor_after, read_cursor
from gateway.db.engine import Database, Transaction
from gateway.db.job_log import log_move
from gateway.db.jobs import job_files
from gateway.db.records import Row, job_row, micros, moment, to_job
from gateway.db.runs import OPEN
from gateway.db.tables import batches, job_events, jobs, runs
from gateway.db.waiting import first_run
from gateway.job import JOB_TERMINAL, Job, JobStatus, NewJob

ROWS_AT_ONCE = 50
"""Jobs written by one statement, and ended by one commit."""
_LAST_PLACE = 2**31 - 1
_TERMINAL = sorted(JOB_TERMINAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch about to be written, with every one of its jobs."""

    id: str
    caller: str
    tool: str
    jobs: tuple[NewJob, ...]
    webhook_url: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Many jobs of one tool, taken by one call."""

    id: str
    caller: str
    tool: str
    total: int
    """Jobs it was made with; stays when some are deleted."""
    ended: int
    webhook_url: str | None
    request_hash: str | None
    created_at: datetime
    finished_at: datetime | None
    """When its last job ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    """How far a batch is."""

    batch: Batch
    by_status: Mapping[JobStatus, int]
    """Jobs that are still there."""
    progress: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    """One page of batches."""

    items: tuple[Batch, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPage:
    """One page of a batch's jobs, in order."""

    items: tuple[Job, ...]
    next_cursor: str | None


class BatchRows:
    """Everything the API asks of batches."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def insert(
        self, new: NewBatch, *, owners: Mapping[str, str | None], now: datetime
    ) -> Batch:
        """Write the batch and all of its jobs in one commit; `owners` by job id.

        Raises AlreadyThere.
        """
        row = {
            "id": new.id,
            "caller": new.caller,
            "tool": new.tool,
            "total": len(new.jobs),
            "webhook_url": new.webhook_url,
            "idempotency_key": new.idempotency_key,
            "request_hash": new.request_hash,
            "created_at": micros(now),
        }

        async def work(writing: Transaction) -> None:
            await writing.execute(insert(batches), row)
            for first in range(0, len(new.jobs), ROWS_AT_ONCE):
                part = new.jobs[first : first + ROWS_AT_ONCE]
                await _insert_jobs(writing, part, owners, now)
                # so many rows take a while to put together: others are served meanwhile
                await asyncio.sleep(0)
            # one word is enough for all of them: nobody waits for any of these jobs yet
            writing.submitted(new.id, new.caller, None if None in owners.values() else new.id)

        await self._db.write(work)
        return _batch({**row, "ended": 0, "finished_at": None})

    async def by_key(self, caller: str, key: str) -> Batch | None:
        """The batch an idempotency key stands for."""
        query = select(batches).where(batches.c.caller == caller, batches.c.idempotency_key == key)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _batch(row)

    async def get(self, batch_id: str) -> Batch | None:
        """One batch."""
        query = select(batches).where(batches.c.id == batch_id)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _batch(row)

    async def counts(self, shown: Sequence[Batch]) -> Sequence[BatchCounts]:
        """How far the jobs of these batches are."""
        query = (
            select(
                jobs.c.batch_id,
                jobs.c.status,
                func.count().label("jobs"),
                func.sum(jobs.c.progress).label("progress"),
            )
            .where(jobs.c.batch_id.in_([batch.id for batch in shown]))
            .group_by(jobs.c.batch_id, jobs.c.status)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [_counted(batch, [r for r in rows if r["batch_id"] == batch.id]) for batch in shown]

    async def list(self, caller: str, cursor: str | None, limit: int) -> BatchPage:
        """One page, newest first. Raises InvalidParameters when the cursor is none of ours."""
        query = (
            select(batches)
            .where(batches.c.caller == caller)
            .order_by(batches.c.created_at.desc(), batches.c.id.desc())
            .limit(limit + 1)
        )
        if cursor is not None:
            query = query.where(
                tuple_(batches.c.created_at, batches.c.id) < tuple_(*read_cursor(cursor))
            )
        rows = await self._db.read(lambda reading: reading.rows(query))
        page, more = rows[:limit], len(rows) > limit
        return BatchPage(
            items=tuple(_batch(row) for row in page),
            next_cursor=cursor_after(page[-1]["created_at"], page[-1]["id"]) if more else None,
        )

    async def items(self, batch_id: str, cursor: str | None, limit: int) -> ItemPage:
        """One page of a batch's jobs with their files.

        Raises InvalidParameters when the cursor is none of ours.
        """
        after = -1 if cursor is None else min(read_cursor(cursor)[0], _LAST_PLACE)
        query = (
            select(jobs)
            .where(jobs.c.batch_id == batch_id, jobs.c.batch_n > after)
            .order_by(jobs.c.batch_n)
            .limit(limit + 1)
        )

        async def work(reading: Transaction) -> ItemPage:
            rows = await reading.rows(query)
            page, more = rows[:limit], len(rows) > limit
            files = await job_files(reading, [row["id"] for row in page])
            return ItemPage(
                items=tuple(to_job(row, files.get(row["id"], ())) for row in page),
                next_cursor=cursor_after(page[-1]["batch_n"], page[-1]["id"]) if more else None,
            )

        return await self._db.read(work)

    async def cancel_some(self, batch_id: str, now: datetime) -> Sequence[str] | None:
        """End some jobs that have not ended; their runs' ids. None: every job has ended."""
        first = (
            select(jobs.c.id)
            .where(jobs.c.batch_id == batch_id, jobs.c.status.not_in(_TERMINAL))
            # pending before processing: one that runs makes room when it ends, and another of this
            # batch would take it
            .order_by(jobs.c.status, jobs.c.id)
            .limit(ROWS_AT_ONCE)
        )

        async def work(writing: Transaction) -> Sequence[str] | None:
            unfinished = [row["id"] for row in await writing.rows(first)]
            if not unfinished:
                return None
            # locked in one order by everybody, which is not the order they are chosen in
            chosen = select(jobs.c.id).where(jobs.c.id.in_(unfinished))
            await writing.execute(chosen.order_by(jobs.c.id).with_for_update())
            moved = await _cancel_jobs(writing, unfinished, now)
            ended = await _cancel_runs(writing, [row["id"] for row in moved], now)
            for row in moved:
                await log_move(writing, row, "cancelled", {"by": "caller"}, now)
            return ended

        return await self._db.write(work)

    async def ended_jobs(self, batch_id: str) -> Sequence[str]:
        """Its jobs that have ended, in order."""
        query = (
            select(jobs.c.id)
            .where(jobs.c.batch_id == batch_id, jobs.c.status.in_(_TERMINAL))
            .order_by(jobs.c.batch_n)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [row["id"] for row in rows]

    async def delete(self, batch_id: str) -> bool:
        """Remove the row of a batch whose jobs are gone; False while it has any."""
        left = select(jobs.c.id).where(jobs.c.batch_id == batch_id).exists()
        gone = delete(batches).where(batches.c.id == batch_id, ~left)
        return await self._db.write(lambda writing: writing.matched(gone)) > 0


async def _cancel_jobs(
    writing: Transaction, job_ids: Sequence[str], now: datetime
) -> Sequence[RowMapping]:
    """End these jobs; what comes back is for `log_move`."""
    return await writing.rows(
        update(jobs)
        .where(jobs.c.id.in_(job_ids), jobs.c.status.not_in(_TERMINAL))
        .values(status="cancelled", finished_at=micros(now), events=jobs.c.events + 1)
        .returning(
            jobs.c.id,
            jobs.c.events,
            jobs.c.status,
            jobs.c.caller,
            jobs.c.webhook_url,
            jobs.c.batch_id,
        )
    )


async def _cancel_runs(
    writing: Transaction, job_ids: Sequence[str], now: datetime
) -> Sequence[str]:
    """End the open runs of these jobs; their ids."""
    ended = await writing.rows(
        update(runs)
        .where(runs.c.job_id.in_(job_ids), runs.c.state.in_(OPEN))
        .values(state="cancelled", ended_at=micros(now), cancel_pending=runs.c.backend.is_not(None))
        .returning(runs.c.id)
    )
    for row in ended:
        # its driver may be another gateway's
        writing.tell("run_ended", row["id"])
    return [row["id"] for row in ended]


async def _insert_jobs(
    writing: Transaction, new: Sequence[NewJob], owners: Mapping[str, str | None], now: datetime
) -> None:
    rows = [job_row(job, now) for job in new]
    await writing.execute(insert(jobs), rows)
    first = [first_run(job, row, owners[job.id]) for job, row in zip(new, rows, strict=True)]
    await writing.execute(insert(runs), first)
    events = [
        {
            "job_id": job.id,
            "n": 1,
            "type": "pending",
            "data": {"tool": job.tool, "variant": job.variant, "batch": job.batch_id},
            "at": micros(now),
        }
        for job in new
    ]
    await writing.execute(insert(job_events), events)


def _counted(batch: Batch, rows: Sequence[Row]) -> BatchCounts:
    left = sum(row["jobs"] - row["progress"] for row in rows if row["status"] not in JOB_TERMINAL)
    return BatchCounts(
        batch=batch,
        by_status={row["status"]: row["jobs"] for row in rows},
        progress=max(0.0, 1 - left / batch.total),
    )


def _batch(row: Row) -> Batch:
    finished = row["finished_at"]
    return Batch(
        id=row["id"],
        caller=row["caller"],
        tool=row["tool"],
        total=row["total"],
        ended=row["ended"],
        webhook_url=row["webhook_url"],
        request_hash=row["request_hash"],
        created_at=moment(row["created_at"]),
        finished_at=None if finished is None else moment(finished),
    )
