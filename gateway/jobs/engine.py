"""The one door of this package: durable jobs, from submit to file."""

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import cast

from gateway.backends.base import Backend
from gateway.clock import Clock
from gateway.db import AlreadyThere, Database, DatabaseUnavailable, JobChange, Notice
from gateway.db.jobs import JobRows
from gateway.db.runs import RunRows
from gateway.errors import Conflict, IdempotencyKeyReused
from gateway.job import (
    JOB_TERMINAL,
    Artifact,
    Job,
    JobCounts,
    JobEvent,
    JobPage,
    JobQuery,
    JobStatus,
    NewJob,
)
from gateway.jobs.batches import Batches
from gateway.jobs.cancels import Cancels
from gateway.jobs.deadlines import Deadlines
from gateway.jobs.drivers import Drivers, for_ever
from gateway.jobs.files import BucketLinks, FileNames, RunFiles, Thumbnails
from gateway.jobs.ownership import Ownership
from gateway.jobs.patience import Patience
from gateway.jobs.placement import Placement
from gateway.jobs.previews import Previews
from gateway.jobs.runner import drive
from gateway.jobs.settings import JobSettings
from gateway.jobs.shared import Engine
from gateway.jobs.wait import Hub
from gateway.jobs.watch import Story
from gateway.storage.base import Storage

__all__ = ["FileNames", "JobSettings", "Jobs"]

DELETE_PATIENCE_S = 5.0


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
        thumbnails: Thumbnails | None = None,
        buckets: BucketLinks | None = None,
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
        self._previews = Previews(self._hub.previewed)
        self._ownership = self._make_ownership(by_name)
        self._placement = self._make_placement(by_name)
        self._drivers = Drivers(self._drive, self._patience)
        self._deadlines = Deadlines(
            owner=self._ownership.replica,
            rows=self._run_rows,
            clock=clock,
            sweep_s=settings.sweep_s,
        )
        files = RunFiles(storage, names, settings.slot_lifetime, thumbnails, buckets)
        self._engine = self._make_engine(by_name, files)
        self._cancels = Cancels(
            rows=self._run_rows,
            backends=by_name,
            starting=self._engine.starting,
            patience=self._patience,
            sweep_s=settings.sweep_s,
            lost_after=timedelta(seconds=settings.backend_lost_after_s),
            clock=clock,
            room_made=lambda: self._placement.wake(room=True),
        )
        self.batches = self._make_batches()
        self._loops: list[asyncio.Task[None]] = []
        db.listen(self._changed)
        db.on_notice(self._heard)

    def _make_batches(self) -> Batches:
        return Batches(
            db=self._db,
            ownership=self._ownership,
            hub=self._hub,
            clock=self._clock,
            poll_s=self._settings.poll_s,
            run_ended=self._run_ended,
            delete=self.delete,
        )

    def _make_ownership(self, backends: Mapping[str, Backend]) -> Ownership:
        return Ownership(
            replica=str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            db=self._db,
            backends=backends,
            settings=self._settings,
            clock=self._clock,
            taken=self._taken,
            driven=lambda: self._drivers,
            lost=self._run_ended,
        )

    def _make_placement(self, backends: Mapping[str, Backend]) -> Placement:
        return Placement(
            replica=self._ownership.replica,
            db=self._db,
            backends=backends,
            settings=self._settings,
            clock=self._clock,
            granted=self._granted,
            living=self._ownership.living,
        )

    def _make_engine(self, backends: Mapping[str, Backend], files: RunFiles) -> Engine:
        return Engine(
            owner=self._ownership.replica,
            rows=self._run_rows,
            backends=backends,
            files=files,
            hub=self._hub,
            previews=self._previews,
            placement=self._placement,
            settings=self._settings,
            clock=self._clock,
            rng=self._rng,
            starting=set(),
            doubtful=set(),
            in_background=self._drivers.in_background,
            tell_backends=lambda: self._cancels.wake(),  # noqa: PLW0108  # made later
        )

    async def start(self) -> None:
        """Take ownership and go on with every unfinished run. Raises FolderInUse."""
        await self._ownership.enter()
        for loop in (
            self._placement.run,
            self._cancels.run,
            self._ownership.run,
            self._deadlines.run,
            self._db.hear,
        ):
            self._loops.append(asyncio.create_task(for_ever(loop)))

    async def stop(self) -> None:
        """Give the runs back as they are; nothing is cancelled anywhere."""
        await self._drivers.stop()
        await self._previews.close()
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
        owner = self._ownership.admit(new.id, new.caller, new.priority)
        try:
            job = await self._insert(new, owner)
        except AlreadyThere:
            # by a commit of ours whose answer was lost, or by an earlier call
            job = await self.get(new.id)
            if job is None:
                self._ownership.ended(new.id)
                return await self._made_before(new), True
        except DatabaseUnavailable:
            self._ownership.ended(new.id)
            self._ownership.uncertain()
            raise
        self._deadlines.added(new.deadline_s)
        if new.places is not None:
            # it may be for a place that nothing else goes to at present
            self._placement.wake(queued=True, room=True)
        return job, False

    async def _insert(self, new: NewJob, owner: str | None) -> Job:
        try:
            return await self._rows.insert(new, owner=owner, now=self._clock.now())
        except DatabaseUnavailable:
            # the connection may have broken at the commit: the same id is written once
            return await self._rows.insert(new, owner=owner, now=self._clock.now())

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
            job: Job | None = None
            while True:
                try:
                    job = await self.get(job_id)
                except DatabaseUnavailable:
                    # one that is away for a while breaks off no call that waits
                    if job is None:
                        raise
                left = until - loop.time()
                if job is None or job.status in JOB_TERMINAL or left <= 0:
                    return job
                await listener.wait(min(left, self._poll_s()))

    async def list(self, query: JobQuery) -> JobPage:
        """One page of jobs, newest first. Raises InvalidParameters for a foreign cursor."""
        page = await self._rows.list(query)
        return replace(page, items=tuple(self._with_progress(job) for job in page.items))

    async def cancel(self, job_id: str) -> Job | None:
        """End a job that has not ended; one that has is left as it is."""
        for run_id in await self._rows.cancel(job_id, self._clock.now()):
            self._run_ended(run_id)
        return await self.get(job_id)

    async def delete(self, job_id: str) -> bool:
        """Remove an ended job and its files; False when there is none. Raises Conflict."""
        job = await self._rows.get(job_id)
        if job is None:
            return False
        if job.status not in JOB_TERMINAL:
            raise Conflict("The job is not finished: cancel it first, or wait.")
        await self._until_told(job_id)
        # a crash between must leave no job that names files which are gone
        if any(artifact.removed_at is None for artifact in job.artifacts):
            await self._rows.let_files_go(job_id, self._clock.now(), by="caller")
        await self._engine.files.remove(job, await self._rows.attempts(job_id))
        return await self._rows.delete(job_id)

    async def watch(
        self, job_id: str, after: int = 0, *, previews: bool = False
    ) -> AsyncIterator[JobEvent]:
        """The job's log from entry `after` on, live, with progress; ends after the last entry.

        With `previews` also what its run looks like so far, while this gateway drives it.
        """
        with (
            self._hub.listen(job_id, every_change=True, previews=previews) as listener,
            self._previews.wanted(job_id, previews=previews),
        ):
            story = Story(
                job_id,
                after,
                rows=self._rows,
                listener=listener,
                live=partial(self._hub.progress, job_id),
                poll_s=self._poll_s,
                clock=self._clock,
            )
            async with aclosing(story.events()) as events:
                async for event in events:
                    yield event

    async def file(self, filename: str) -> Artifact | None:
        """The file served under that name."""
        return await self._rows.file(filename)

    async def takes_files(self, job_id: str) -> bool:
        """Whether the job is there and has not ended."""
        return await self._rows.is_open(job_id)

    def counts(self) -> JobCounts:
        """How much is open here."""
        in_flight = len(self._drivers)
        return JobCounts(waiting=max(0, self._ownership.open_jobs - in_flight), in_flight=in_flight)

    @property
    def database_answers(self) -> bool:
        """Whether the database answered the last heartbeat, a third of the lease ago at most."""
        return self._ownership.heard

    def look_again(self) -> None:
        """A backend's capacity or readiness changed: place without waiting for the next look."""
        self._placement.wake(queued=True, room=True)

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

    def _run_ended(self, run_id: str) -> None:
        """It was ended, or taken, by another hand than its driver's."""
        # a start on its way is let go on: its cancel must not overtake it
        if run_id not in self._engine.starting:
            self._drivers.interrupt(run_id)

    def _changed(self, change: JobChange) -> None:
        """A commit of this process changed a job."""
        self._hub.changed(change)
        if change.status == "pending":
            self._placement.wake(queued=True)
        elif change.status in JOB_TERMINAL:
            self._ownership.ended(change.job_id)
            # only now does its row take no room any more
            self._placement.wake(room=True)
            if change.status == "cancelled":
                self._cancels.wake()

    def _heard(self, notice: Notice) -> None:
        """Another gateway committed something, or may have."""
        match notice.kind:
            case "job":
                change = JobChange(job_id=notice.id, status=cast("JobStatus", notice.value))
                self._hub.changed(change)
                if change.status in JOB_TERMINAL:
                    self._ownership.ended(notice.id)
                    self._placement.wake(room=True)
            case "progress":
                self._hub.progressed_elsewhere(notice.id, float(notice.value))
            case "run_ended":
                self._run_ended(notice.id)
            case "granted":
                self._granted(notice.id, notice.value)
            case "unowned":
                self._ownership.look(notice.value)
            case "room" | "look":
                self._placement.wake(room=True)
            case "missed":
                self._hub.wake_all()
                self._placement.wake(queued=True, room=True)
                self._ownership.look()
                self._cancels.wake()

    def _poll_s(self) -> float:
        """How long whoever waits need not look by himself."""
        return self._settings.quiet_poll_s if self._db.hears_all else self._settings.poll_s

    def _with_progress(self, job: Job) -> Job:
        live = self._hub.progress(job.id)
        if live is None or job.status != "processing":
            return job
        return replace(job, progress=live.fraction)
