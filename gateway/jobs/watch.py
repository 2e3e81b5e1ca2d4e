"""Telling a job's story while it happens: its log, and what passes in between."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

from gateway.backends.base import Progressed
from gateway.clock import Clock
from gateway.db import DatabaseUnavailable
from gateway.db.jobs import JobRows
from gateway.job import JOB_TERMINAL, Job, JobEvent
from gateway.jobs.wait import Listener


class Story:
    """One watcher's way through a job's log, from entry `after` on."""

    def __init__(
        self,
        job_id: str,
        after: int,
        *,
        rows: JobRows,
        listener: Listener,
        live: Callable[[], Progressed | None],
        poll_s: Callable[[], float],
        clock: Clock,
    ) -> None:
        self._job_id = job_id
        self._n = after
        self._rows = rows
        self._listener = listener
        self._live = live
        self._poll_s = poll_s
        self._clock = clock
        self._fraction = 0.0
        self._begun = False
        self._over = False
        self._ended = False

    async def events(self) -> AsyncGenerator[JobEvent]:
        """The log, live, with progress; ends after the last entry.

        Raises DatabaseUnavailable unless it has begun: later on it waits until the database is
        back.
        """
        while not self._ended:
            for event in await self._read():
                yield event
            if self._ended or self._listener.changed:
                # the log has grown: its entry (a new attempt, say) comes before the progress
                continue
            for event in self._passing():
                yield event

    async def _read(self) -> Sequence[JobEvent]:
        """What was added to the log; where nothing was, wait for something to happen."""
        self._listener.changed = False
        job: Job | None = None
        try:
            events = await self._rows.events(self._job_id, self._n)
            if not events and not self._over:
                job = await self._rows.get(self._job_id)
        except DatabaseUnavailable:
            if not self._begun:
                raise
            await asyncio.sleep(self._poll_s())
            self._listener.changed = True
            return ()
        self._begun = True
        if events:
            return self._added(events)
        # the end may be written between two reads: its entry is looked for once more
        self._ended = self._over
        self._over = job is None or job.status in JOB_TERMINAL
        if job is not None and not self._over and self._listener.idle:
            await self._pause(job)
        return ()

    def _added(self, events: Sequence[JobEvent]) -> Sequence[JobEvent]:
        self._n = events[-1].n
        if any(event.type == "retrying" for event in events):
            self._fraction = 0.0
        # an entry may follow the end: that the files were removed, long after
        self._ended = any(event.type in JOB_TERMINAL for event in events)
        return events

    async def _pause(self, job: Job) -> None:
        """Wait, unless more is known than was told: before it came, or from another gateway."""
        known = self._live() or Progressed(fraction=job.progress)
        if job.status == "processing" and known.fraction > self._fraction:
            self._listener.progress = known
        else:
            await self._listener.wait(self._poll_s())

    def _passing(self) -> Iterator[JobEvent]:
        """What is told and not stored, as far as it is news: progress and preview."""
        progress, preview = self._listener.take_progress(), self._listener.take_preview()
        # a message of another gateway may have been overtaken by the rows
        if progress is not None and progress.fraction >= self._fraction:
            self._fraction = progress.fraction
            data: dict[str, Any] = {
                "fraction": progress.fraction,
                "node": progress.node,
                "step": progress.step,
                "steps": progress.steps,
            }
            yield self._event("progress", data)
        if preview is not None:
            yield self._event("preview", preview.model_dump())

    def _event(self, kind: str, data: dict[str, Any]) -> JobEvent:
        # it bears the number of the entry before: a replay after that number misses nothing stored
        at = self._clock.now()
        return JobEvent(job_id=self._job_id, n=self._n, type=kind, data=data, at=at)
