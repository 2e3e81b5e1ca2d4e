"""Waking those who wait for a job, in this process."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gateway.backends.base import Progressed
from gateway.db import JobChange
from gateway.job import JOB_TERMINAL
from gpu_server.protocol import Preview


@dataclass(slots=True, kw_only=True, eq=False)
class Listener:
    """One waiter's end: what it has not looked at yet."""

    every_change: bool
    previews: bool = False
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    changed: bool = False
    """The job was changed since its listener last set this to False."""
    progress: Progressed | None = None
    preview: Preview | None = None

    @property
    def idle(self) -> bool:
        """Nothing passing has come that was not taken."""
        return self.progress is None and self.preview is None

    async def wait(self, seconds: float) -> None:
        """Return when something happened, or after `seconds`."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self.woken.wait()
        except TimeoutError:
            return
        self.woken.clear()

    def take_progress(self) -> Progressed | None:
        """The latest progress not yet taken."""
        taken, self.progress = self.progress, None
        return taken

    def take_preview(self) -> Preview | None:
        """The latest preview not yet taken."""
        taken, self.preview = self.preview, None
        return taken


class Hub:
    """Who waits for which job, and the progress of jobs this process follows.

    Wake-ups may be lost (another process wrote, a listener came late): a listener reads the rows
    after it registered, and again every `poll_s`.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, dict[int, Listener]] = {}
        self._progress: dict[str, Progressed] = {}

    @contextmanager
    def listen(
        self, job_id: str, *, every_change: bool, previews: bool = False
    ) -> Generator[Listener]:
        """Hear of a job: of its end only, or of every change and of progress."""
        listener = Listener(every_change=every_change, previews=previews)
        here = self._listeners.setdefault(job_id, {})
        here[id(listener)] = listener
        try:
            yield listener
        finally:
            del here[id(listener)]
            # a later listener may have made a new entry once this one was empty
            if not here and self._listeners.get(job_id) is here:
                del self._listeners[job_id]

    def changed(self, change: JobChange) -> None:
        """Wake those whom a committed change concerns."""
        ended = change.status in JOB_TERMINAL
        if ended:
            self._progress.pop(change.job_id, None)
        for listener in self._listeners.get(change.job_id, {}).values():
            if ended or listener.every_change:
                listener.changed = True
                # it tells of what was before the change: a new attempt begins from nothing
                listener.progress = listener.preview = None
                listener.woken.set()

    def progressed(self, job_id: str, progress: Progressed) -> None:
        """Pass on how far a job got, without a write."""
        self._progress[job_id] = progress
        for listener in self._listeners.get(job_id, {}).values():
            if listener.every_change:
                listener.progress = progress
                listener.woken.set()

    def previewed(self, job_id: str, preview: Preview) -> None:
        """Pass on what a job's run looks like so far to those who asked for it."""
        for listener in self._listeners.get(job_id, {}).values():
            if listener.previews:
                listener.preview = preview
                listener.woken.set()

    def progressed_elsewhere(self, job_id: str, fraction: float) -> None:
        """Pass on how far a job got that another gateway follows."""
        for listener in self._listeners.get(job_id, {}).values():
            if listener.every_change:
                listener.progress = Progressed(fraction=fraction)
                listener.woken.set()

    def wake_all(self) -> None:
        """Let every waiter look at the rows: wake-ups may have been lost."""
        for here in self._listeners.values():
            for listener in here.values():
                listener.changed = True
                listener.woken.set()

    def stopped_following(self, job_id: str) -> None:
        """Nothing new is known of the job's progress from here on."""
        self._progress.pop(job_id, None)

    def progress(self, job_id: str) -> Progressed | None:
        """How far a job got that this process follows at the moment."""
        return self._progress.get(job_id)
