"""Removing what is over: old jobs, old files, files of nobody, and what is remembered too long.

Every step may be broken off and repeated. A file is deleted only after its row says so, and a row
goes only after its files: a crash between leaves files that the search for orphans finds.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable
from gateway.db.jobs import JobRows
from gateway.db.sweeps import SweepRows
from gateway.db.uploads import Uploads
from gateway.jobs.files import RunFiles
from gateway.jobs.orphans import ORPHAN_AFTER, Orphans
from gateway.storage.base import Storage, StorageError

_log = logging.getLogger(__name__)

KEYS_KEPT = timedelta(hours=24)
WEBHOOK_EVENTS_KEPT = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long things are kept after a job's end; None = for ever."""

    jobs: timedelta | None
    files: timedelta | None

    @classmethod
    def of_days(cls, *, jobs: int, files: int) -> "Retention":
        """0 days are for ever."""
        return cls(
            jobs=timedelta(days=jobs) if jobs else None,
            files=timedelta(days=files) if files else None,
        )


class Sweep:
    """Goes over everything now and then, on one gateway at a time."""

    def __init__(
        self,
        *,
        db: Database,
        storage: Storage,
        files: RunFiles,
        retention: Retention,
        clock: Clock,
        first_s: float = 60,
        every_s: float = 3600,
        orphans_every: timedelta = timedelta(days=1),
        pause_s: float = 0.1,
        at_once: int = 100,
    ) -> None:
        self._rows = SweepRows(db)
        self._jobs = JobRows(db)
        self._uploads = Uploads(db)
        self._storage = storage
        self._files = files
        self._nobodys = Orphans(db, kept=retention.files)
        self._retention = retention
        self._clock = clock
        self._first_s = first_s
        self._every_s = every_s
        self._orphans_every = orphans_every
        self._pause_s = pause_s
        self._at_once = at_once
        self._orphans_due: datetime | None = None

    async def run(self) -> None:
        """Sweep until cancelled."""
        await asyncio.sleep(self._first_s)
        while True:
            try:
                await self.once()
            except Exception:  # noqa: BLE001  # a bug there must not end the sweeping for good
                _log.exception("the sweep failed")
            await asyncio.sleep(self._every_s)

    async def once(self) -> None:
        """Go over everything, unless another gateway is at it."""
        try:
            async with self._rows.alone() as alone:
                if alone:
                    for step in (
                        self._old_jobs,
                        self._old_files,
                        self._old_uploads,
                        self._memories,
                        self._orphans,
                    ):
                        await self._safely(step)
        except DatabaseUnavailable:
            _log.warning("sweep: the database does not answer", exc_info=True)

    async def _safely(self, step: Callable[[datetime], Awaitable[None]]) -> None:
        try:
            await step(self._clock.now())
        except DatabaseUnavailable:
            _log.warning("sweep: the database does not answer", exc_info=True)
        except StorageError as error:
            _log.warning("sweep: the storage does not answer: %s", error)

    async def _old_jobs(self, now: datetime) -> None:
        if self._retention.jobs is None:
            return
        before = now - self._retention.jobs
        await self._each(lambda: self._rows.jobs_to_remove(before, self._at_once), self._remove)
        await self._until_none(lambda: self._rows.remove_batches(before, self._at_once))

    async def _old_files(self, now: datetime) -> None:
        if self._retention.files is None:
            return
        before = now - self._retention.files
        await self._each(
            lambda: self._rows.jobs_with_old_files(before, self._at_once), self._let_files_go
        )

    async def _old_uploads(self, now: datetime) -> None:
        """Those whose time is over, and those that were announced and never came."""
        while found := await self._uploads.expired(now, self._at_once):
            for upload in found:
                await self._uploads.delete(upload.id)
                try:
                    await self._files.drop_thumbnails([upload.key])
                    await self._storage.delete(upload.key)
                except StorageError as error:
                    # no row names it any more: the search for orphans finds it
                    _log.warning("sweep: the file of upload %s stays: %s", upload.id, error)
            await asyncio.sleep(self._pause_s)

    async def _memories(self, now: datetime) -> None:
        rows, limit, old = self._rows, self._at_once, now - KEYS_KEPT
        await self._until_none(lambda: rows.forget_keys(old, limit))
        await self._until_none(lambda: rows.forget_batch_keys(old, limit))
        events = now - WEBHOOK_EVENTS_KEPT
        await self._until_none(lambda: rows.remove_webhook_events(events, limit))

    async def _orphans(self, now: datetime) -> None:
        await self._storage.tidy(now - ORPHAN_AFTER)
        if self._orphans_due is not None and now < self._orphans_due:
            return
        await self._thumbnails_of_nothing(now)
        removed = 0
        async for page in self._storage.pages():
            for key in await self._nobodys.among(page, now):
                await self._storage.delete(key)
                removed += 1
            await asyncio.sleep(self._pause_s)
        self._orphans_due = now + self._orphans_every
        if removed:
            _log.info("removed %d files that belong to no result", removed)

    async def _thumbnails_of_nothing(self, now: datetime) -> None:
        """Drop those whose file is gone; young ones stay, whose file may be yet to get its row."""
        after = ""
        while keys := await self._rows.thumbnailed(now - ORPHAN_AFTER, after, self._at_once):
            there = await self._rows.there(keys)
            if gone := [key for key in keys if key not in there]:
                await self._files.drop_thumbnails(gone)
            after = keys[-1]
            await asyncio.sleep(self._pause_s)

    async def _remove(self, job_id: str) -> None:
        await self._let_files_go(job_id)
        await self._jobs.delete(job_id)

    async def _let_files_go(self, job_id: str) -> None:
        job = await self._jobs.get(job_id)
        if job is None:
            return
        if any(artifact.removed_at is None for artifact in job.artifacts):
            await self._jobs.let_files_go(job_id, self._clock.now(), by="retention")
        await self._files.remove(job, await self._jobs.attempts(job_id))

    async def _each(
        self, find: Callable[[], Awaitable[Sequence[str]]], do: Callable[[str], Awaitable[None]]
    ) -> None:
        """Do it to whatever is found, until nothing is or nothing helps."""
        while found := await find():
            done = 0
            for job_id in found:
                try:
                    await do(job_id)
                    done += 1
                except StorageError as error:
                    # one that cannot be removed must not keep the others
                    _log.warning("sweep: the files of job %s stay: %s", job_id, error)
            if not done:
                return
            await asyncio.sleep(self._pause_s)

    async def _until_none(self, remove: Callable[[], Awaitable[int]]) -> None:
        while True:
            if not await remove():
                return
            await asyncio.sleep(self._pause_s)
