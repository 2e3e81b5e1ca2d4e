"""The rows that say how far each run got; every write is guarded by state and epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import (
    ColumnElement,
    RowMapping,
    and_,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)

from gateway.db.engine import Database, Transaction
from gateway.db.job_log import log_move, move_job, note
from gateway.db.records import (
    inputs_json,
    micros,
    moment,
    outcome_json,
    produced_json,
    storable,
    to_run,
)
from gateway.db.tables import artifacts, jobs, runs
from gateway.db.waiting import run_after
from gateway.job import (
    RUN_MOVES,
    RUN_TERMINAL,
    Artifact,
    Call,
    JobError,
    JobStatus,
    Outcome,
    Produced,
    Run,
    RunState,
    Source,
)

OPEN: tuple[RunState, ...] = tuple(state for state in RUN_MOVES if state not in RUN_TERMINAL)
_RUN = select(runs, jobs.c.call, jobs.c.outcome).join(jobs, jobs.c.id == runs.c.job_id)
_OPEN_RUN = _RUN.where(
    runs.c.id == bindparam("run"), runs.c.owner == bindparam("owner"), runs.c.state.in_(OPEN)
)
# made once, as it is asked for every few seconds, work or none
_TO_CANCEL = (
    select(runs.c.id, runs.c.backend, runs.c.reference, runs.c.ended_at)
    .where(runs.c.cancel_pending)
    .order_by(runs.c.ended_at, runs.c.id)
    .limit(bindparam("limit"))
)
_GUARDED = update(runs).where(
    runs.c.id == bindparam("run"),
    runs.c.epoch == bindparam("run_epoch"),
    runs.c.state == bindparam("run_state"),
)
_PROGRESS = update(jobs).where(jobs.c.id == bindparam("job"))


class OwnershipLost(Exception):
    """The row is not as this owner left it: it ended, or somebody else drives it now."""


class RunRows:
    """Every write a driver of runs makes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def load(self, identifier: str, owner: str) -> Run | None:
        """The run, if it is open and this owner's."""
        values = {"run": identifier, "owner": owner}
        row = await self._db.read(lambda reading: reading.row(_OPEN_RUN, values))
        return None if row is None else to_run(row)

    async def put_back(self, run: Run, *, not_before: datetime) -> None:
        """Its backend had no room: it waits again, no attempt spent. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            await _move(
                writing,
                run,
                "waiting",
                backend=None,
                choice=None,
                granted_at=None,
                not_before=micros(not_before),
            )

        await self._db.write(work)

    async def started(self, run: Run, reference: str, now: datetime) -> Run:
        """The backend has taken it; its reference is kept before anything waits on it.

        Raises OwnershipLost.
        """

        async def work(writing: Transaction) -> None:
            # a later attempt leaves the time of the first as it is
            first = run.attempt == 0 and run.stage == 0
            begun = {"started_at": micros(now)} if first else {}
            moved = await _move_job_of(writing, run, "processing", **begun)
            await _move(
                writing, run, "started", reference=storable(reference), started_at=micros(now)
            )
            data: dict[str, JsonValue] = {"backend": run.backend, "attempt": run.attempt}
            if run.choice is not None:
                data["reason"] = run.choice
            await log_move(writing, moved, "processing", data, now)

        await self._db.write(work)
        return replace(run, state="started", reference=reference)

    async def progressed(self, run: Run, progress: float) -> None:
        """How far its job got, and that it was seen executing. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            # the guarded write after it fails, and takes this with it, when the job has ended
            await writing.execute(_PROGRESS, {"job": run.job_id, "progress": progress})
            await _guarded(writing, run, executed=True)
            writing.tell("progress", run.job_id, str(progress))

        await self._db.write(work)

    async def produced(self, run: Run, produced: Produced) -> Run:
        """Its files should lie in their slots now. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            await _move(writing, run, "produced", produced=produced_json(produced))

        await self._db.write(work)
        return replace(run, state="produced", produced=produced)

    async def delivered(
        self, run: Run, outcome: Outcome, files: Sequence[Artifact], now: datetime
    ) -> None:
        """Every file is verified: run and job are done, in one commit. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            moved = await _move_job_of(
                writing,
                run,
                "completed",
                outcome=outcome_json(outcome),
                progress=1.0,
                finished_at=micros(now),
            )
            await _move(writing, run, "delivered", ended_at=micros(now))
            data: dict[str, JsonValue] = {"files": len(files), "engine": outcome.engine}
            await log_move(writing, moved, "completed", data, now)
            if files:
                await writing.execute(insert(artifacts), [asdict(file) for file in files])

        await self._db.write(work)

    async def next_stage(
        self,
        run: Run,
        following: Call,
        inputs: Mapping[str, tuple[Source, ...]],
        outcome: Outcome,
        now: datetime,
    ) -> None:
        """This stage is done, the next one waits; both in one commit. Raises OwnershipLost.

        Args:
            run: the run that is done; its files are verified.
            following: the call of the next stage.
            inputs: what that stage reads of this run's files.
            outcome: of all stages so far.
            now: when.
        """
        row = run_after(
            run,
            following,
            stage=run.stage + 1,
            attempt=0,
            inputs=inputs_json(inputs),
            # what kills its processes is the job, in whichever stage; failures to carry out one
            # stage say nothing of the next
            deaths=run.deaths,
            not_before=micros(now),
        )

        async def work(writing: Transaction) -> None:
            moved = await _move_job_of(
                writing,
                run,
                "processing",
                outcome=outcome_json(outcome),
                progress=run.call.ends_at,
            )
            await _move(writing, run, "delivered", ended_at=micros(now))
            await writing.execute(insert(runs), row)
            data: dict[str, JsonValue] = {"stage": run.stage + 1, "workflow": following.workflow}
            await log_move(writing, moved, "stage", data, now)
            writing.tell("room")

        await self._db.write(work)

    async def failed(self, run: Run, error: JobError, now: datetime, *, tell_backend: bool) -> None:
        """Run and job end in failure. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            moved = await _move_job_of(
                writing,
                run,
                "failed",
                error_code=storable(error.code, 100),
                error_message=storable(error.message),
                error_kind=error.kind,
                finished_at=micros(now),
            )
            await _fail(writing, run, error, now, tell_backend=tell_backend)
            data: dict[str, JsonValue] = {"code": error.code, "message": error.message}
            await log_move(writing, moved, "failed", data, now)

        await self._db.write(work)

    async def cancelled(self, run: Run, now: datetime) -> None:
        """It was cancelled where it ran: its job ends so. Raises OwnershipLost."""

        async def work(writing: Transaction) -> None:
            moved = await _move_job_of(writing, run, "cancelled", finished_at=micros(now))
            await _move(writing, run, "cancelled", ended_at=micros(now))
            await log_move(writing, moved, "cancelled", {"by": "backend"}, now)

        await self._db.write(work)

    async def next_attempt(
        self,
        run: Run,
        error: JobError,
        *,
        failures: int,
        deaths: int,
        not_before: datetime,
        now: datetime,
        tell_backend: bool,
    ) -> None:
        """This attempt is over, the next one waits; both in one commit. Raises OwnershipLost."""
        following = run_after(
            run,
            run.call,
            stage=run.stage,
            attempt=run.attempt + 1,
            inputs=inputs_json(run.call.made_inputs),
            failures=failures,
            deaths=deaths,
            not_before=micros(not_before),
        )

        async def work(writing: Transaction) -> None:
            await writing.execute(_PROGRESS, {"job": run.job_id, "progress": run.begins_at})
            await _fail(writing, run, error, now, tell_backend=tell_backend)
            await writing.execute(insert(runs), following)
            await note(writing, run.job_id, "retrying", _retrying(run, error, not_before, now), now)
            writing.tell("room")

        await self._db.write(work)

    async def next_deadline(self, owner: str) -> datetime | None:
        """The earliest deadline of the runs that wait here or for an owner."""
        query = select(func.min(runs.c.deadline_at).label("at")).where(_waits_for(owner))
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None or row["at"] is None else moment(row["at"])

    async def overdue(self, owner: str, now: datetime, limit: int) -> list[Run]:
        """Runs that wait here or for an owner and may no longer: their deadline has passed."""
        query = _RUN.where(_waits_for(owner), runs.c.deadline_at <= micros(now)).limit(limit)
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [to_run(row) for row in rows]

    async def to_cancel(self, limit: int) -> Sequence[RowMapping]:
        """Ended runs whose backend was not told yet: id, backend, reference, ended_at."""
        values = {"limit": limit}
        return await self._db.read(lambda reading: reading.rows(_TO_CANCEL, values))

    async def told(self, identifier: str) -> None:
        """The backend knows that the run is over."""

        async def work(writing: Transaction) -> None:
            await writing.execute(
                update(runs).where(runs.c.id == identifier).values(cancel_pending=False)
            )
            writing.tell("room")

        await self._db.write(work)

    async def tell_again(self, identifier: str) -> bool:
        """A start came in after the run had ended: its backend must hear that it is over."""

        async def work(writing: Transaction) -> int:
            ended = and_(
                runs.c.id == identifier,
                or_(runs.c.state == "cancelled", runs.c.state == "failed"),
                runs.c.backend.is_not(None),
            )
            return await writing.matched(update(runs).where(ended).values(cancel_pending=True))

        return await self._db.write(work) > 0


def _waits_for(owner: str) -> ColumnElement[bool]:
    return and_(runs.c.state == "waiting", or_(runs.c.owner == owner, runs.c.owner.is_(None)))


def _retrying(
    run: Run, error: JobError, not_before: datetime, now: datetime
) -> dict[str, JsonValue]:
    """What the job's log says of another attempt."""
    return {
        "code": error.code,
        "message": error.message,
        "backend": run.backend,
        "attempt": run.attempt + 1,
        "in_s": round(max(0.0, (not_before - now).total_seconds()), 3),
    }


async def _move(writing: Transaction, run: Run, to: RunState, **columns: Any) -> None:  # noqa: ANN401
    if to not in RUN_MOVES[run.state]:
        raise ValueError(
            f"a run moves from {run.state} to {sorted(RUN_MOVES[run.state])}, not {to}"
        )
    await _guarded(writing, run, state=to, **columns)


async def _fail(
    writing: Transaction, run: Run, error: JobError, now: datetime, *, tell_backend: bool
) -> None:
    await _move(
        writing,
        run,
        "failed",
        ended_at=micros(now),
        error_code=storable(error.code, 100),
        error_message=storable(error.message),
        cancel_pending=tell_backend and run.backend is not None,
    )


async def _guarded(writing: Transaction, run: Run, **columns: Any) -> None:  # noqa: ANN401
    mine = {"run": run.id, "run_epoch": run.epoch, "run_state": run.state}
    if await writing.matched(_GUARDED, {**mine, **columns}) == 0:
        raise OwnershipLost(run.id)


async def _move_job_of(
    writing: Transaction,
    run: Run,
    to: JobStatus,
    **columns: Any,  # noqa: ANN401  # column values
) -> RowMapping:
    """Move the job first: whoever writes to a run and its job locks them in that order."""
    moved = await move_job(writing, run.job_id, to, **columns)
    if moved is None:
        # the job was ended by another hand, and this run with it
        raise OwnershipLost(run.id)
    return moved
