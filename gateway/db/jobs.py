"""The rows the API shows: jobs, their files, their log, their idempotency keys."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, bindparam, delete, select, tuple_, update

from gateway.db.cursors import cursor_after, read_cursor
from gateway.db.engine import Database, Transaction
from gateway.db.job_log import log_move, move_job, note
from gateway.db.records import job_row, micros, storable, to_artifact, to_event, to_job
from gateway.db.runs import OPEN
from gateway.db.tables import artifacts, idempotency, job_events, jobs, runs
from gateway.db.together import insert_together
from gateway.db.waiting import first_run
from gateway.job import (
    JOB_TERMINAL,
    Artifact,
    Job,
    JobEvent,
    JobPage,
    JobQuery,
    NewJob,
)

EVENTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """Which job an idempotency key stands for, and what request it came with."""

    job_id: str
    request_hash: str | None


_JOB = select(jobs).where(jobs.c.id == bindparam("job"))
_FILES = (
    select(artifacts)
    .where(artifacts.c.job_id.in_(bindparam("jobs", expanding=True)))
    .order_by(artifacts.c.job_id, artifacts.c.output, artifacts.c.n)
)
_EVENTS = (
    select(job_events)
    .where(job_events.c.job_id == bindparam("job"), job_events.c.n > bindparam("after"))
    .order_by(job_events.c.n)
    .limit(EVENTS_AT_ONCE)
)


class JobRows:
    """Everything the API asks of jobs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def insert(self, new: NewJob, *, owner: str | None, now: datetime) -> Job:
        """Write job, run, first event and key in one commit. Raises AlreadyThere."""
        row = job_row(new, now)
        written = {
            jobs: row,
            runs: first_run(new, row, owner),
            job_events: {
                "job_id": new.id,
                "n": 1,
                "type": "pending",
                "data": {"tool": new.tool, "variant": new.variant},
                "at": row["created_at"],
            },
        }
        if new.idempotency_key is not None:
            written[idempotency] = {
                "caller": new.caller,
                "key": storable(new.idempotency_key),
                "job_id": new.id,
                "request_hash": new.request_hash,
                "created_at": row["created_at"],
            }

        async def work(writing: Transaction) -> None:
            await insert_together(writing, written)
            writing.submitted(new.id, new.caller, owner)

        await self._db.write(work, single=owner is not None)
        unset = ("outcome", "error_code", "started_at", "finished_at")
        return to_job({**row, **dict.fromkeys(unset), "progress": 0.0})

    async def by_key(self, caller: str, key: str) -> KeyUse | None:
        """What an idempotency key was used for."""
        query = select(idempotency.c.job_id, idempotency.c.request_hash).where(
            idempotency.c.caller == caller, idempotency.c.key == storable(key)
        )
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else KeyUse(**row)

    async def get(self, job_id: str) -> Job | None:
        """One job with its files."""

        async def work(reading: Transaction) -> Job | None:
            row = await reading.row(_JOB, {"job": job_id})
            if row is None:
                return None
            # files are written by the commit that completes the job
            done = row["status"] == "completed"
            return to_job(row, (await job_files(reading, [job_id])).get(job_id, ()) if done else ())

        return await self._db.read(work)

    async def list(self, query: JobQuery) -> JobPage:
        """One page, newest first. Raises InvalidParameters when the cursor is none of ours."""
        conditions = [
            column == value
            for column, value in (
                (jobs.c.caller, query.caller),
                (jobs.c.tool, None if query.tool is None else storable(query.tool)),
                (jobs.c.status, query.status),
            )
            if value is not None
        ]
        if query.since is not None:
            conditions.append(jobs.c.created_at >= micros(query.since))
        if query.cursor is not None:
            created_at, job_id = read_cursor(query.cursor)
            conditions.append(tuple_(jobs.c.created_at, jobs.c.id) < tuple_(created_at, job_id))
        statement = (
            select(jobs)
            .where(and_(True, *conditions))
            .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
            .limit(query.limit + 1)
        )

        async def work(reading: Transaction) -> JobPage:
            rows = await reading.rows(statement)
            page = rows[: query.limit]
            files = await job_files(reading, [row["id"] for row in page])
            more = len(rows) > query.limit
            return JobPage(
                items=tuple(to_job(row, files.get(row["id"], ())) for row in page),
                next_cursor=cursor_after(page[-1]["created_at"], page[-1]["id"]) if more else None,
            )

        return await self._db.read(work)

    async def events(self, job_id: str, after: int) -> Sequence[JobEvent]:
        """The next entries of a job's log."""
        values = {"job": job_id, "after": after}
        rows = await self._db.read(lambda reading: reading.rows(_EVENTS, values))
        return [to_event(row) for row in rows]

    async def cancel(self, job_id: str, now: datetime) -> Sequence[str]:
        """End a job and its open runs in one commit; the runs' ids. Nothing when it had ended."""

        async def work(writing: Transaction) -> Sequence[str]:
            moved = await move_job(writing, job_id, "cancelled", finished_at=micros(now))
            if moved is None:
                return []
            ended = await writing.rows(
                update(runs)
                .where(runs.c.job_id == job_id, runs.c.state.in_(OPEN))
                .values(
                    state="cancelled",
                    ended_at=micros(now),
                    cancel_pending=runs.c.backend.is_not(None),
                )
                .returning(runs.c.id)
            )
            await log_move(writing, moved, "cancelled", {"by": "caller"}, now)
            for row in ended:
                # its driver may be another gateway's
                writing.tell("run_ended", row["id"])
            return [row["id"] for row in ended]

        return await self._db.write(work)

    async def let_files_go(self, job_id: str, now: datetime, *, by: str) -> None:
        """Write down that an ended job's files are given up; only then may they be deleted."""

        async def work(writing: Transaction) -> None:
            # the job first, as everybody who writes to it does
            await note(writing, job_id, "files_removed", {"by": by}, now)
            await writing.execute(
                update(artifacts)
                .where(artifacts.c.job_id == job_id, artifacts.c.removed_at.is_(None))
                .values(removed_at=micros(now))
            )

        await self._db.write(work)

    async def delete(self, job_id: str) -> bool:
        """Remove an ended job with everything that hangs on it."""

        async def work(writing: Transaction) -> bool:
            gone = await writing.matched(
                delete(jobs).where(jobs.c.id == job_id, jobs.c.status.in_(sorted(JOB_TERMINAL)))
            )
            return gone > 0

        return await self._db.write(work)

    async def attempts(self, job_id: str) -> Mapping[str, int]:
        """All runs a job had: id to stage."""
        query = select(runs.c.id, runs.c.stage).where(runs.c.job_id == job_id)
        rows = await self._db.read(lambda reading: reading.rows(query))
        return {row["id"]: row["stage"] for row in rows}

    async def untold(self, job_id: str) -> bool:
        """Whether a backend has still to hear that a run of the job is over."""
        query = select(runs.c.id).where(runs.c.job_id == job_id, runs.c.cancel_pending).limit(1)
        return await self._db.read(lambda reading: reading.row(query)) is not None

    async def is_open(self, job_id: str) -> bool:
        """Whether the job is there and has not ended."""
        query = select(jobs.c.status).where(jobs.c.id == job_id)
        row = await self._db.read(lambda reading: reading.row(query))
        return row is not None and row["status"] not in JOB_TERMINAL

    async def file_of(self, caller: str, filename: str) -> Artifact | None:
        """The caller's file of that name."""
        owned = select(artifacts).join(jobs, jobs.c.id == artifacts.c.job_id)
        query = owned.where(artifacts.c.filename == storable(filename), jobs.c.caller == caller)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else to_artifact(row)

    async def file(self, filename: str) -> Artifact | None:
        """The file of that name."""
        query = select(artifacts).where(artifacts.c.filename == storable(filename))
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else to_artifact(row)


async def job_files(reading: Transaction, job_ids: Sequence[str]) -> dict[str, list[Artifact]]:
    """Files of these jobs, by job."""
    found: dict[str, list[Artifact]] = {}
    for row in await reading.rows(_FILES, {"jobs": list(job_ids)}):
        found.setdefault(row["job_id"], []).append(to_artifact(row))
    return found
