"""Following one run at RunPod until it is over: by asking how its job is, sooner when told to."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from gateway.backends.base import (
    BackendUnreachable,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gateway.backends.runpod_api import JobTold, RunpodApi, SlowDown
from gateway.backends.runpod_states import (
    LACKS,
    QUEUED,
    RUNNING,
    TAKEN_ELSEWHERE,
    UNFINISHED,
    ended,
    failed,
    failure_in,
    not_taken_up,
    progress_in,
    result_missing,
    status_in,
    timed_out,
    worker_failed,
)
from gateway.job import Produced, Run
from gateway.storage.base import StorageError
from gpu_server.protocol import Failure, ReceiptNote

FIRST_S = 1.0
LONGEST_S = 5.0
_LOOKS_PER_S = 100
"""Of all followers of an endpoint together; RunPod allows 200."""
_LOOK_TWICE_S = 2.0
GONE_S = 60.0
"""For how long RunPod must not know a job that was seen to be alive."""
_RACE_S = 1.0
"""Within which a worker that read a receipt has written into it."""
MARGIN_S = 300.0
"""What a job may take beside its execution: ComfyUI's start, its files' ways."""


class Receipts(Protocol):
    """What workers have written down of runs. Every method may raise StorageError."""

    async def read(self, run_id: str, /) -> ReceiptNote | None:
        """What stands in a run's receipt."""
        ...

    async def cancel(self, run_id: str, /) -> None:
        """Write that a job which has not begun must not begin."""
        ...

    async def remove(self, run_id: str, /) -> None:
        """Remove a run's receipt."""
        ...


class Rows(Protocol):
    """What the gateway's rows say of runs. Every method may raise DatabaseUnavailable."""

    async def run(self, run_id: str, /) -> Run | None:
        """One run."""
        ...

    async def references(self, backend: str, /) -> Sequence[str]:
        """What a backend called the runs that may be open there."""
        ...


async def noted(receipts: Receipts, run_id: str) -> ReceiptNote:
    """What stands in a receipt; an empty one where there is none. Raises BackendUnreachable."""
    try:
        return await receipts.read(run_id) or ReceiptNote()
    except StorageError as error:
        raise BackendUnreachable(f"the receipt of a run cannot be read: {error}") from error


async def withheld(receipts: Receipts, run_id: str) -> ReceiptNote:
    """Let no job begin a run that none has claimed; what its receipt says then.

    Raises BackendUnreachable.
    """
    note = await noted(receipts, run_id)
    if note.job is None and note.status is None and not note.cancelled:
        try:
            await receipts.cancel(run_id)
        except StorageError as error:
            raise BackendUnreachable(f"a receipt cannot be written: {error}") from error
        # a worker may have read it just before, and writes its own word over ours
        await asyncio.sleep(_RACE_S)
        note = await noted(receipts, run_id)
    return note


async def some_unaccounted(api: RunpodApi, rows: Rows) -> bool:
    """Whether the endpoint may have a job that no run here is known to have.

    Rows are read first and states asked for last: what begins or ends meanwhile makes for a
    "yes", never for a "no".
    """
    known = await rows.references(api.name)
    unfinished = (await api.health()).unfinished
    if unfinished is None:
        return True
    if not unfinished:
        return False
    told = await asyncio.gather(*(api.status(job) for job in known))
    return unfinished > sum(job is not None and job.status in UNFINISHED for job in told)


def execution_limit(run: Run) -> float:
    """Seconds a run's job may take from the moment a worker takes it."""
    return run.call.timeout_s + MARGIN_S


class Watch:
    """Everybody who follows a run at one endpoint."""

    def __init__(self, rng: random.Random | None = None) -> None:
        # spreads calls over time; nothing secret depends on it
        self._rng = rng or random.Random()  # noqa: S311
        self._told: dict[str, asyncio.Event] = {}
        self._queued_at: dict[str, float] = {}
        self._gone_at: dict[str, float] = {}
        self._alive: set[str] = set()

    def follow(self, run_id: str) -> None:
        """Somebody follows it."""
        self._told.setdefault(run_id, asyncio.Event())

    def leave(self, run_id: str) -> None:
        """Nobody does any more, for now."""
        self._told.pop(run_id, None)

    def forget(self, run_id: str) -> None:
        """It is over."""
        self.taken(run_id)
        self._gone_at.pop(run_id, None)
        self._alive.discard(run_id)

    def taken(self, run_id: str) -> None:
        """A worker has it."""
        self._queued_at.pop(run_id, None)

    def alive(self, run_id: str) -> None:
        """RunPod knows its job."""
        self._alive.add(run_id)
        self._gone_at.pop(run_id, None)

    def was_alive(self, run_id: str) -> bool:
        """Whether RunPod has known its job."""
        return run_id in self._alive

    def gone_s(self, run_id: str) -> float:
        """How long RunPod has not known its job."""
        now = asyncio.get_running_loop().time()
        return now - self._gone_at.setdefault(run_id, now)

    def look_now(self, run_id: str) -> bool:
        """Let whoever follows it look at once; False where nobody does."""
        event = self._told.get(run_id)
        if event is not None:
            event.set()
        return event is not None

    def queued_s(self, run_id: str) -> float:
        """How long it has been seen waiting for a worker."""
        now = asyncio.get_running_loop().time()
        return now - self._queued_at.setdefault(run_id, now)

    async def pause(self, run_id: str, seconds: float) -> None:
        """Wait about so long, or until somebody says that there is news."""
        event = self._told.setdefault(run_id, asyncio.Event())
        least = len(self._told) / _LOOKS_PER_S
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, least) * (0.8 + 0.4 * self._rng.random())):
                await event.wait()
        event.clear()


class Follower:
    """One pass over one run, from whatever state its job is in."""

    def __init__(
        self,
        run_id: str,
        job: str,
        *,
        api: RunpodApi,
        receipts: Receipts,
        rows: Rows,
        watch: Watch,
        queue_s: float,
        gone_s: float,
        lacks: Callable[[Run, Failure], None],
    ) -> None:
        """`lacks` is told what the endpoint turned out to lack for a run."""
        self._id = run_id
        self._job = job
        self._api = api
        self._receipts = receipts
        self._rows = rows
        self._watch = watch
        self._queue_s = queue_s
        self._gone_s = gone_s
        self._lacks = lacks
        self._executed = False
        self._fraction = -1.0
        self._pause_s = FIRST_S
        self._ends: dict[str, Callable[[JobTold], Awaitable[Produced | None]]] = {
            "COMPLETED": self._completed,
            "FAILED": self._failed,
            "CANCELLED": self._cancelled,
            "TIMED_OUT": self._timed_out,
        }

    @property
    def job(self) -> str:
        """The job that has the run, as far as is known."""
        return self._job

    async def events(self) -> AsyncGenerator[Progressed | Produced, None]:
        """What happens to it; ends with its end. Raises what `Backend.follow` does."""
        while True:
            try:
                told = await self._api.status(self._job)
            except SlowDown as error:
                await asyncio.sleep(error.after_s)
                continue
            if told is not None:
                self._watch.alive(self._id)
            if told is None:
                produced = await self._unknown()
            elif (end := self._ends.get(told.status)) is not None:
                produced = await end(told)
            else:
                if (progress := self._progress(told)) is not None:
                    yield progress
                if told.status == QUEUED and self._watch.queued_s(self._id) > self._queue_s:
                    await self._take_back()
                await self._rest()
                continue
            if produced is not None:
                yield produced
                return

    def _progress(self, told: JobTold) -> Progressed | None:
        """What is new since the last look."""
        if told.status == QUEUED:
            news = Progressed(fraction=max(self._fraction, 0.0))
        elif told.status in RUNNING and (progress := progress_in(told.output)) is not None:
            news = Progressed(**progress.model_dump())
        else:
            news = None
        if told.status in RUNNING:
            self._executed = True
            # handed out again after its worker went away, it would wait anew
            self._watch.taken(self._id)
        if news is None or news.fraction <= self._fraction:
            return None
        self._fraction, self._pause_s = news.fraction, FIRST_S
        return news

    async def _rest(self) -> None:
        await self._watch.pause(self._id, self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_S)

    async def _completed(self, told: JobTold) -> Produced:
        status = status_in(told.output, self._id)
        if status is None:
            # too large to be passed on, or dropped: what it made is in its slots all the same
            status = (await noted(self._receipts, self._id)).status
        if status is None:
            raise result_missing()
        if status.state == "cancelled" and (await noted(self._receipts, self._id)).cancelled:
            raise not_taken_up()
        return ended(status, self._api.name)

    async def _failed(self, told: JobTold) -> Produced | None:
        failure = failure_in(told.error)
        note = await noted(self._receipts, self._id)
        if failure is not None and failure.code == TAKEN_ELSEWHERE:
            if note.job is not None and note.job != self._job:
                # two submits were taken: that job has the run, this one did nothing
                self._job = note.job
                return None
            raise RunFailed(failure, executed=False)
        if note.status is not None:
            executed = note.status.executed
            if note.status.state == "completed":
                return ended(note.status, self._api.name)
            failure = note.status.failure or failure
        else:
            executed = self._executed and note.job is not None
        if failure is None:
            raise worker_failed(executed=self._executed)
        if failure.code in LACKS and not executed:
            await self._lacking(failure)
        raise failed(failure, executed=executed)

    async def _lacking(self, failure: Failure) -> None:
        run = await self._rows.run(self._id)
        if run is not None:
            self._lacks(run, failure)
            raise RunLost(failure.message, executed=False)

    async def _cancelled(self, _told: JobTold) -> Produced:
        note = await noted(self._receipts, self._id)
        if note.status is not None:
            return ended(note.status, self._api.name)
        if note.cancelled:
            raise not_taken_up(executed=self._executed)
        raise RunCancelled(self._api.name)

    async def _timed_out(self, told: JobTold) -> Produced:
        note = await noted(self._receipts, self._id)
        if note.status is not None:
            return ended(note.status, self._api.name)
        run = await self._rows.run(self._id)
        limit_s = None if run is None else execution_limit(run)
        raise timed_out(told, limit_s, executed=self._executed or note.job is not None)

    async def _unknown(self) -> Produced | None:
        """RunPod does not know it: its retention is over, it was purged, or its `ttl` passed."""
        note = await noted(self._receipts, self._id)
        if note.status is not None:
            return ended(note.status, self._api.name)
        # 404 is what a wrong endpoint answers for every job
        await self._api.health()
        claimed = note.job is not None or self._watch.was_alive(self._id)
        least_s = self._gone_s if claimed else min(_LOOK_TWICE_S, self._gone_s)
        if self._watch.gone_s(self._id) < least_s or await some_unaccounted(self._api, self._rows):
            await self._rest()
            return None
        if note.cancelled:
            raise not_taken_up()
        # should RunPod have it after all, it must not begin beside the next attempt
        left = await withheld(self._receipts, self._id)
        if note.job is None and not left.cancelled:
            # it has just begun
            return None
        raise RunLost("RunPod does not know its job", executed=self._executed or bool(note.job))

    async def _take_back(self) -> None:
        """Let no worker begin it any more; its job's next state tells whether one has.

        While workers carry out other jobs, its turn comes: submitted anew, it would wait longer.
        """
        try:
            workers = (await self._api.health()).workers
        except BackendUnreachable:
            workers = {}
        if workers.get("running", 0) > 0:
            return
        note = await noted(self._receipts, self._id)
        if note.job is not None:
            # it has just begun
            return
        try:
            # before the cancel: after a restart it tells why the job was cancelled
            await self._receipts.cancel(self._id)
        except StorageError as error:
            raise BackendUnreachable(f"a receipt cannot be written: {error}") from error
        await self._api.cancel(self._job)
        self._pause_s = FIRST_S / 10
