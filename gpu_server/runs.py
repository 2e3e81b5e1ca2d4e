"""The runs of this service: accepted by id, resumed after a restart, forgotten after a while."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable

from pydantic import ValidationError

from gpu_server.catalogue import Catalogue
from gpu_server.cleaning import Cleaner
from gpu_server.comfy import ComfyClient, Picture, RunFailed
from gpu_server.execution import Executor, JournalEntry
from gpu_server.journal import Journal, JournalRow
from gpu_server.protocol import RunRequest, RunStatus, Slot
from gpu_server.run import Run, Story
from gpu_server.workflow import Workflow, WorkflowError

_log = logging.getLogger(__name__)

_KEEP_S = 3600
"""How long a finished run can still be asked for."""
_BURIED_S = 2 * 86_400
"""How long a cancelled or deleted run is known, so that a late request does not start it."""
_CANCEL_S = 2
"""How long a DELETE waits for ComfyUI to have stopped the run."""


class AtCapacity(Exception):
    """As many runs as ComfyUI shall hold are here already."""


class Runs:
    """Every run this process knows."""

    def __init__(
        self,
        *,
        executor: Executor,
        journal: Journal,
        comfy: ComfyClient,
        catalogue: Catalogue,
        cleaner: Cleaner,
        capacity: int,
    ) -> None:
        self._executor = executor
        self._journal = journal
        self._comfy = comfy
        self._catalogue = catalogue
        self._cleaner = cleaner
        self._capacity = capacity
        self._runs: dict[str, Story] = {}
        """What is under way, and what ended lately; the journal knows what ended before."""
        self._background: set[asyncio.Task[None]] = set()

    @property
    def active(self) -> int:
        """Runs that are not over."""
        return sum(not run.over for run in self._runs.values())

    def get(self, run_id: str) -> Story | None:
        """Return what is known of a run, None when it was never here or is forgotten."""
        return self._runs.get(run_id)

    async def recall(self, run_id: str) -> Story | None:
        """Return how a run ended that only the journal knows any more, None when it does not."""
        row = await self._journal.get(run_id)
        story = None if row is None else _ended(row)
        # Another request for it may have been quicker.
        return self._runs.get(run_id) or (story and self._runs.setdefault(run_id, story))

    def accept(
        self, run_id: str, request: RunRequest, workflow: Workflow, *, deliver: bool = True
    ) -> Run:
        """Start a run; raises AtCapacity."""
        if self.active >= self._capacity:
            raise AtCapacity
        run = Run(run_id, request, workflow=workflow, deliver=deliver)
        self._start(run)
        return run

    async def renew(self, story: Story, slots: Iterable[Slot]) -> None:
        """Send what a run has yet to deliver to these addresses; raises sqlite3.Error.

        Whoever asks for a run again may be another gateway than the one that its slots lead to,
        which may never come back.
        """
        if isinstance(story, Run) and story.deliver and not story.over and not story.decided:
            await self._executor.renew(story, slots)

    def pictured(self, run_id: str, picture: Picture) -> None:
        """Pass a preview on to those who follow the run."""
        run = self._runs.get(run_id)
        if run is not None:
            run.pictured(picture.media_type, picture.data)

    async def resume(self) -> None:
        """Take up every run a former process left unfinished, and know how the others ended."""
        for row in await self._journal.over(_KEEP_S):
            story = _ended(row)
            if story is not None:
                self._runs[row.run_id] = story
        for row in await self._journal.unfinished():
            if row.state == "cancelled":
                story = self._entomb(row.run_id)
                self._spawn(self._finish_cancel(story.status))
                continue
            run = self._restored(row)
            if run is not None:
                _log.info("resuming run %s", row.run_id)
                self._start(run)
            else:
                # A plain call of a process that died: nobody waits for its answer.
                self._spawn(self._abandon(row.run_id))

    async def remove(self, run_id: str) -> RunStatus | None:
        """Cancel a run that is not over; forget one that is, with its files.

        A cancelled or unknown run stays known as cancelled for a while: a request for it that is
        still on its way must not start it. Returns the status of a run that was still going, None
        when there is nothing left of it. Raises sqlite3.Error when a cancel can't be written down.
        """
        run = self._runs.get(run_id)
        if run is None or (run.over and run.status.state != "cancelled"):
            story = self._entomb(run_id)
            known = run is not None or await self._journal.get(run_id) is not None
            # Its task's last write to the journal must not come after this one.
            await _written(run)
            await self._end_cancelled(story.status)
            if known:
                await self._forget(run_id)
            else:
                # ComfyUI may have it all the same, when the journal was lost.
                self._spawn(self._interrupt(run_id))
            return None
        if not isinstance(run, Run) or run.over:
            await self._cleaner.clean(run_id)
            return None
        # First of all: whoever was told of the cancel must not get files after a restart.
        await self._journal.cancel(run_id)
        self.cancel(run)
        try:
            async with asyncio.timeout(_CANCEL_S):
                await run.wait()
        except TimeoutError:
            _log.info("run %s has not stopped yet", run_id)
        return run.status

    def cancel(self, run: Run) -> None:
        """Stop a run wherever it is; asking twice is no error."""
        if run.cancel_asked or run.decided:
            return
        run.cancel_asked = True
        if run.in_comfyui:
            self._spawn(self._interrupt(run.run_id))
        elif run.task is not None:
            run.task.cancel()

    def drop_soon(self, run: Run) -> None:
        """Forget a run as soon as it is over."""
        self._spawn(self.drop(run))

    async def drop(self, run: Run) -> None:
        """Forget a run, with its files, once it is over; raises sqlite3.Error."""
        await run.wait()
        await self._drop(run)
        await self._journal.delete(run.run_id)

    async def sweep(self) -> None:
        """Forget runs that were over an hour ago; of cancelled ones the journal knows longer."""
        for run_id in await self._journal.purge(_KEEP_S, cancelled_s=_BURIED_S):
            # It grew old while no process ran: this one never knew it.
            if run_id not in self._runs:
                await self._forget(run_id)
        now = time.monotonic()
        for run in list(self._runs.values()):
            if run.finished_at is not None and now - run.finished_at > _KEEP_S:
                await self._drop(run)

    async def close(self) -> None:
        """Let go of every run; ComfyUI goes on with them and the next process resumes them."""
        runs = [run for run in self._runs.values() if isinstance(run, Run)]
        tasks = [run.task for run in runs if run.task is not None]
        tasks += self._background
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _entomb(self, run_id: str) -> Story:
        """Know a run as cancelled, from now on."""
        status = RunStatus(run_id=run_id, state="cancelled")
        self._runs[run_id] = Story(status, finished_at=time.monotonic())
        return self._runs[run_id]

    async def _finish_cancel(self, status: RunStatus) -> None:
        """Do what a former process died over."""
        await self._interrupt(status.run_id)
        await self._end_cancelled(status)
        await self._cleaner.clean(status.run_id)

    async def _end_cancelled(self, status: RunStatus) -> None:
        await self._journal.end(status.run_id, "cancelled", status.model_dump_json().encode())

    def _start(self, run: Run) -> None:
        self._runs[run.run_id] = run
        run.task = asyncio.create_task(self._executor.carry_out(run), name=f"run {run.run_id}")
        # A task cancelled before its first step never runs, not even its own handling of that.
        run.task.add_done_callback(
            lambda _: run.end(run.decide("cancelled")) if run.cancel_asked else None
        )

    async def _drop(self, run: Story) -> None:
        await _written(run)
        self._runs.pop(run.run_id, None)
        await self._forget(run.run_id)

    async def _forget(self, run_id: str) -> None:
        try:
            await self._comfy.forget(run_id)
        except RunFailed:
            _log.info("run %s stays in ComfyUI's history: ComfyUI is away", run_id)
        await self._cleaner.clean(run_id)

    async def _interrupt(self, run_id: str) -> None:
        try:
            await self._comfy.interrupt(run_id)
        except RunFailed as error:
            _log.warning("run %s could not be interrupted: %s", run_id, error.failure.code)

    async def _abandon(self, run_id: str) -> None:
        await self._interrupt(run_id)
        await self._journal.delete(run_id)
        await self._cleaner.clean(run_id)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _restored(self, row: JournalRow) -> Run | None:
        if not row.request:
            return None
        try:
            entry = JournalEntry.model_validate_json(row.request)
            workflow = None if entry.plan else self._catalogue.find(entry.request)
        except (ValidationError, WorkflowError):
            _log.warning("run %s was written by another version of this service", row.run_id)
            return None
        return Run(row.run_id, entry.request, workflow=workflow, plan=entry.plan)


async def _written(run: Story | None) -> None:
    """Return once the run's task, which writes its end down, is done."""
    if isinstance(run, Run) and run.task is not None:
        await asyncio.wait([run.task])


def _ended(row: JournalRow) -> Story | None:
    if row.status is None or row.ended is None:
        return None
    try:
        status = RunStatus.model_validate_json(row.status)
    except ValidationError:
        _log.warning("the end of run %s was written by another version", row.run_id)
        return None
    # The clock may have been set back meanwhile.
    age = max(0.0, time.time() - row.ended)
    return Story(status, finished_at=time.monotonic() - age)
