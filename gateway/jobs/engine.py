"""The one door of this package: durable jobs, from submit to file."""

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.backends.base import Backend, Progressed
from gateway.clock import Clock
from gateway.db import AlreadyThere, Database, DatabaseUnavailable, JobChange
from gateway.db.jobs import JobRows
from gateway.db.runs import OwnershipLost, RunRows
from gateway.errors import Conflict, IdempotencyKeyReused
from gateway.job import (
    JOB_TERMINAL,
    Artifact,
    Job,
    JobCounts,
    JobEvent,
    JobPage,
    JobQuery,
    NewJob,
)
from gateway.jobs.cancels import Cancels
from gateway.jobs.drivers import Drivers
from gateway.jobs.files import FileNames, RunFiles
from gateway.jobs.ownership import Ownership
from gateway.jobs.patience import Patience
from gateway.jobs.placement import Placement
from gateway.jobs.runner import Engine, deadline_exceeded, drive
from gateway.jobs.settings import JobSettings
from gateway.jobs.wait import Hub
from gateway.storage.base import Storage

__all__ = ["FileNames", "JobSettings", "Jobs"]

_log = logging.getLogger(__name__)

DELETE_PATIENCE_S = 5.0
OVERDUE_AT_ONCE = 100


class Jobs:
    """Every durable job of this gateway."""

    def __init__(
        self,
        *,
        db: Database,
        backends: Sequence[Backend],
        storage: Storage,
        names: FileNames,
        settings: JobSettings,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        # spreads retries and names this replica; nothing secret depends on it
        self._rng = rng or random.Random()  # noqa: S311
        self._db = db
        self._settings = settings
        self._clock = clock
        by_name = {backend.name: backend for backend in backends}
        if len(by_name) < len(backends):
            raise ValueError("two backends have the same name")
        self._rows = JobRows(db)
        self._run_rows = RunRows(db)
        self._hub = Hub()
        self._ownership = Ownership(
            replica=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            db=db,
            settings=settings,
            clock=clock,
            taken=self._taken,
        )
        self._placement = Placement(
            db=db, backends=by_name, settings=settings, clock=clock, granted=self._granted
        )
        self._drivers = Drivers(self._drive, self._patience)
        self._engine = self._make_engine(by_name, RunFiles(storage, names, settings.slot_lifetime))
        self._cancels = Cancels(
            rows=self._run_rows,
            backends=by_name,
            starting=self._engine.starting,
            patience=self._patience,
            sweep_s=settings.sweep_s,
            room_made=lambda: self._placement.wake(queued=False),
        )
        self._loops: list[asyncio.Task[None]] = []
        db.listen(self._changed)

    def _make_engine(self, backends: Mapping[str, Backend], files: RunFiles) -> Engine:
        return Engine(
            owner=self._ownership.replica,
            rows=self._run_rows,
            backends=backends,
            files=files,
            hub=self._hub,
            placement=self._placement,
            settings=self._settings,
            clock=self._clock,
            rng=self._rng,
            starting=set(),
            in_background=self._drivers.in_background,
            tell_backends=self._tell_backends,
        )

    async def start(self) -> None:
        """Take ownership and go on with every unfinished run. Raises FolderInUse."""
        await self._ownership.enter()
        for loop in (
            self._placement.run(),
            self._cancels.run(),
            self._ownership.run(),
            self._expire(),
        ):
            self._loops.append(asyncio.create_task(loop))

    async def stop(self) -> None:
        """Give the runs back as they are; nothing is cancelled anywhere."""
        await self._drivers.stop()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops.clear()
        await self._db.settle()
        await self._ownership.leave()

    async def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Write a job down, committed before this returns; True = an earlier call had made it.

        Raises IdempotencyKeyReused.
        """
        owner = self._ownership.admit(new.id, new.caller)
        try:
            job = await self._rows.insert(new, owner=owner, now=self._clock.now())
        except AlreadyThere:
            self._ownership.ended(new.id)
            return await self._made_before(new), True
        except DatabaseUnavailable:
            self._ownership.ended(new.id)
            raise
        return job, False

    async def find(self, caller: str, key: str, request_hash: str | None) -> Job | None:
        """The job an idempotency key stands for. Raises IdempotencyKeyReused."""
        use = await self._rows.by_key(caller, key)
        if use is None:
            return None
        if use.request_hash != request_hash:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was sent with another request before: use a new key for a "
                "new request."
            )
        return await self.get(use.job_id)

    async def get(self, job_id: str) -> Job | None:
        """One job as it is now."""
        job = await self._rows.get(job_id)
        return None if job is None else self._with_progress(job)

    async def wait(self, job_id: str, seconds: float) -> Job | None:
        """The job once it has ended, or as it is after `seconds`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        with self._hub.listen(job_id, every_change=False) as listener:
            while True:
                job = await self.get(job_id)
                left = until - loop.time()
                if job is None or job.status in JOB_TERMINAL or left <= 0:
                    return job
                await listener.wait(min(left, self._settings.poll_s))

    async def list(self, query: JobQuery) -> JobPage:
        """One page of jobs, newest first. Raises InvalidParameters for a foreign cursor."""
        page = await self._rows.list(query)
        return replace(page, items=tuple(self._with_progress(job) for job in page.items))

    async def cancel(self, job_id: str) -> Job | None:
        """End a job that has not ended; one that has is left as it is."""
        for run_id in await self._rows.cancel(job_id, self._clock.now()):
            # a start on its way is let go on: its cancel must not overtake it
            if run_id not in self._engine.starting:
                self._drivers.interrupt(run_id)
        return await self.get(job_id)

    async def delete(self, job_id: str) -> bool:
        """Remove an ended job and its files; False when there is none. Raises Conflict."""
        job = await self._rows.get(job_id)
        if job is None:
            return False
        if job.status not in JOB_TERMINAL:
            raise Conflict("The job is not finished: cancel it first, or wait.")
        await self._until_told(job_id)
        await self._engine.files.remove(job, await self._rows.attempts(job_id))
        return await self._rows.delete(job_id)

    async def watch(self, job_id: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """The job's log from entry `after` on, live, with progress; ends after the last entry."""
        n, over = after, False
        with self._hub.listen(job_id, every_change=True) as listener:
            while True:
                listener.changed = False
                events = await self._rows.events(job_id, n)
                for event in events:
                    n = event.n
                    yield event
                    if event.type in JOB_TERMINAL:
                        return
                if not events:
                    if over:
                        return
                    # the end may be written between two reads: its entry is looked for once more
                    job = await self._rows.get(job_id)
                    over = job is None or job.status in JOB_TERMINAL
                    if not over and listener.progress is None:
                        await listener.wait(self._settings.poll_s)
                if listener.changed:
                    # the log has grown: its entry (a new attempt, say) comes before the progress
                    continue
                progress = listener.take_progress()
                if progress is not None:
                    yield _progress_event(job_id, n, progress, self._clock)

    async def file(self, filename: str) -> Artifact | None:
        """The file served under that name."""
        return await self._rows.file(filename)

    def counts(self) -> JobCounts:
        """How much is open here."""
        in_flight = len(self._drivers)
        return JobCounts(waiting=max(0, self._ownership.open_jobs - in_flight), in_flight=in_flight)

    def look_again(self) -> None:
        """A backend's capacity or readiness changed: place without waiting for the next look."""
        self._placement.wake(queued=True)

    async def _made_before(self, new: NewJob) -> Job:
        if new.idempotency_key is not None:
            job = await self.find(new.caller, new.idempotency_key, new.request_hash)
            if job is not None:
                return job
        raise Conflict("A job of that id or key has just been removed: send the request again.")

    async def _until_told(self, job_id: str) -> None:
        """Its backend must know that it is over: without the row nobody would tell it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + DELETE_PATIENCE_S
        while await self._rows.untold(job_id):
            if loop.time() >= until:
                raise Conflict("The job is still being stopped where it ran: try again shortly.")
            await asyncio.sleep(0.05)

    async def _drive(self, run_id: str) -> None:
        await drive(self._engine, run_id)

    def _patience(self) -> Patience:
        return self._engine.patience(None)

    def _taken(self, run_id: str, state: str) -> None:
        if state == "waiting":
            self._placement.wake(queued=True)
        elif run_id not in self._drivers:
            self._drivers.spawn(run_id)

    def _granted(self, run_id: str, owner: str) -> None:
        if owner == self._ownership.replica:
            self._drivers.spawn(run_id)

    def _tell_backends(self) -> None:
        self._cancels.wake()

    def _changed(self, change: JobChange) -> None:
        """A commit of this process changed a job."""
        self._hub.changed(change)
        if change.status == "pending":
            self._placement.wake(queued=True)
        elif change.status in JOB_TERMINAL:
            self._ownership.ended(change.job_id)
            if change.status == "cancelled":
                self._cancels.wake()

    def _with_progress(self, job: Job) -> Job:
        live = self._hub.progress(job.id)
        if live is None or job.status != "processing":
            return job
        return replace(job, progress=live.fraction)

    async def _expire(self) -> None:
        """End jobs that wait beyond their deadline; those under way see to it themselves."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.sweep_s))
            try:
                now = self._clock.now()
                for run in await self._run_rows.overdue(
                    self._ownership.replica, now, OVERDUE_AT_ONCE
                ):
                    try:
                        await self._run_rows.failed(
                            run, deadline_exceeded(), now, tell_backend=False
                        )
                    except OwnershipLost:
                        # placed or cancelled meanwhile
                        continue
            except DatabaseUnavailable:
                _log.warning("deadlines: the database does not answer", exc_info=True)


def _progress_event(job_id: str, n: int, progress: Progressed, clock: Clock) -> JobEvent:
    data: dict[str, Any] = {
        "fraction": progress.fraction,
        "node": progress.node,
        "step": progress.step,
        "steps": progress.steps,
    }
    # it bears the number of the entry before it: a replay after that number misses nothing stored
    return JobEvent(job_id=job_id, n=n, type="progress", data=data, at=clock.now())
