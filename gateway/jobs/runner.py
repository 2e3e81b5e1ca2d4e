"""Driving one run: from whatever state its row is in to its end."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from gateway.backends.base import (
    Backend,
    BackendError,
    BackendFull,
    BackendUnreachable,
    Order,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gateway.clock import Clock
from gateway.db import DatabaseUnavailable
from gateway.db.runs import OwnershipLost, RunRows
from gateway.job import Artifact, JobError, Outcome, Produced, Run
from gateway.jobs.fetches import blamed
from gateway.jobs.files import NotDelivered, RunFiles
from gateway.jobs.patience import Patience, backoff
from gateway.jobs.placement import Placement
from gateway.jobs.previews import Previews
from gateway.jobs.settings import JobSettings
from gateway.jobs.wait import Hub
from gateway.storage.base import StorageError

_log = logging.getLogger(__name__)

FORGET_AFTER_S = 0.2
"""How long after a job's end its backend is told to forget it."""


class BackendLost(Exception):
    """It has not answered for too long, or is not configured any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What every drive of this replica shares."""

    owner: str
    rows: RunRows
    backends: Mapping[str, Backend]
    files: RunFiles
    hub: Hub
    previews: Previews
    placement: Placement
    settings: JobSettings
    clock: Clock
    rng: random.Random
    starting: set[str]
    """Runs whose backend is being asked to start them; cancelling waits for its answer."""
    doubtful: set[str]
    """Runs that were asked for here and a start of which may still be on its way."""
    in_background: Callable[[Coroutine[Any, Any, None]], None]
    tell_backends: Callable[[], None]
    """Runs have ended whose backends do not know it yet."""

    def patience(self, limit_s: float | None) -> Patience:
        """Fresh patience with something that does not answer."""
        return Patience(
            first_s=self.settings.reconnect_s,
            longest_s=self.settings.reconnect_max_s,
            limit_s=limit_s,
            rng=self.rng,
        )


async def drive(engine: Engine, run_id: str) -> None:
    """Carry a run on until it ends, waits again, or is somebody else's.

    Safe to enter at any time and again: it goes by the row alone, and the backend adopts by the
    run's id what an earlier drive began. Raises DatabaseUnavailable.
    """
    while True:
        run = await engine.rows.load(run_id, engine.owner)
        if run is None or run.state == "waiting":
            break
        try:
            await _Drive(engine, run).to_its_end()
        except OwnershipLost:
            # ended or taken over: the next load finds nothing and we stop without a word. Or a
            # write of ours went through whose answer we did not live to see: then go on from there
            continue
        except asyncio.CancelledError:
            # it ended by another's hand, or this process stops: nobody here asks for it again
            engine.doubtful.discard(run_id)
            raise
        break
    engine.doubtful.discard(run_id)


class _Drive:
    """One pass over a run, which is kept as its row is."""

    def __init__(self, engine: Engine, run: Run) -> None:
        self._engine = engine
        self._run = run
        self._executed = run.executed
        self._taken_up = run.state == "started"

    async def to_its_end(self) -> None:
        """Take every step that is left, or write down why it cannot be taken."""
        if self._run.deaths >= self._engine.settings.max_deaths:
            await self._poisoned(tell_backend=True)
            return
        left = self._left().total_seconds()
        if left <= 0:
            await self._overdue()
            return
        deadline = asyncio.timeout(left)
        try:
            async with deadline:
                await self._steps()
        except (OwnershipLost, DatabaseUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # foreign ones are logged and fail the attempt
            if isinstance(error, TimeoutError) and deadline.expired():
                await self._overdue()
            else:
                await self._stopped_by(error)

    async def _stopped_by(self, error: Exception) -> None:
        engine, run = self._engine, self._run
        match error:
            case BackendFull():
                await self._put_back()
            case RunLost():
                await self._lost(executed=error.executed)
            case RunFailed():
                await self._failed(error)
            case RunCancelled():
                await engine.rows.cancelled(run, engine.clock.now())
            case BackendLost():
                await self._again("backend_unreachable", str(error), tell_backend=True)
            case NotDelivered():
                _log.warning("run %s: %s", run.id, error)
                message = "A result file did not reach storage as it was sent."
                await self._again("output_missing", message, failed=True)
            case _:
                _log.error("run %s: not foreseen by the contracts", run.id, exc_info=error)
                message = "Something went wrong on our side."
                await self._again("internal_error", message, failed=True, tell_backend=True)

    async def _steps(self) -> None:
        if self._run.state == "granted":
            await self._start(await self._backend())
        produced = self._run.produced
        if self._run.state == "started":
            backend = await self._backend()
            with self._engine.previews.source(self._run, backend):
                produced = await self._follow(backend)
        if produced is None:
            raise NotDelivered("the row names no outputs")
        await self._deliver(produced)

    async def _start(self, backend: Backend) -> None:
        """Begin or adopt it, and keep the reference before anything waits on it."""
        engine, run = self._engine, self._run
        order = engine.files.order(run, self._left())
        patience = engine.patience(engine.settings.backend_lost_after_s)
        while (reference := await self._asked_to_start(backend, order)) is None:
            if not await patience.pause():
                raise BackendLost(f"{backend.name} does not answer")
            if await engine.rows.load(run.id, engine.owner) is None:
                raise OwnershipLost(run.id)
        try:
            self._run = await engine.rows.started(run, reference, engine.clock.now())
        except OwnershipLost:
            # it ended while it was being started: the backend may have heard of the end first
            if await engine.rows.tell_again(run.id):
                engine.tell_backends()
            raise

    async def _asked_to_start(self, backend: Backend, order: Order) -> str | None:
        """Ask once; None = no answer, or none that counts, and it may have begun all the same."""
        engine = self._engine
        # An unanswered start may take effect at any time later, whatever is answered to the next
        # one. The row tells of those of other processes: with its owner, a granted run loses its
        # `granted_at`. Those of this process are kept in memory, as they end with it.
        first = order.run_id not in engine.doubtful and not self._run.handed_over
        engine.doubtful.add(order.run_id)
        engine.starting.add(order.run_id)
        try:
            return await backend.start(order)
        except BackendUnreachable:
            return None
        except BackendFull:
            if first:
                engine.doubtful.discard(order.run_id)
                raise
            # It has no room, yet an earlier start may still take effect there. So the run keeps its
            # place and is asked for again: waiting anew, it might get a place elsewhere and execute
            # twice
            return None
        except BackendError:
            if first:
                engine.doubtful.discard(order.run_id)
            raise
        finally:
            engine.starting.discard(order.run_id)

    async def _follow(self, backend: Backend) -> Produced:
        """Look at it until it is over there; looking again is free, starting again is not."""
        engine, run = self._engine, self._run
        patience = engine.patience(engine.settings.backend_lost_after_s)
        written = asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    if self._taken_up:
                        # its slots may lead to a gateway that never comes back
                        await backend.renew(engine.files.order(run, self._left()))
                        self._taken_up = False
                    async with aclosing(backend.follow(run.id, run.reference or "")) as events:
                        async for event in events:
                            patience.answered()
                            if isinstance(event, Produced):
                                return event
                            written = await self._progressed(event, written)
                except BackendUnreachable:
                    _log.info("run %s: %s does not answer", run.id, backend.name)
                if not await patience.pause():
                    raise BackendLost(f"{backend.name} does not answer")
        finally:
            engine.hub.stopped_following(run.job_id)
            # room is made there, however it ended
            engine.placement.wake(room=True)

    async def _progressed(self, event: Progressed, written: float) -> float:
        engine, now = self._engine, asyncio.get_running_loop().time()
        self._executed = self._executed or event.fraction > 0
        engine.hub.progressed(self._run.job_id, event)
        if not self._executed or now - written < engine.settings.progress_write_s:
            return written
        await engine.rows.progressed(self._run, event.fraction)
        return now

    async def _deliver(self, produced: Produced) -> None:
        """Completed means delivered: look at each file where it lies, then say so."""
        engine = self._engine
        files = await self._verified(produced)
        run = self._run
        outcome = Outcome(
            params=produced.params,
            engine=produced.engine,
            backend=run.backend or "",
            duration_seconds=produced.duration_seconds,
            texts=produced.texts,
        )
        await engine.rows.delivered(run, outcome, files, engine.clock.now())
        backend = engine.backends.get(run.backend or "")
        if backend is not None:
            engine.in_background(_forget(backend, run))

    async def _verified(self, produced: Produced) -> tuple[Artifact, ...]:
        # the GPU time is spent: no attempt is begun anew because storage is away
        patience = self._engine.patience(None)
        while True:
            try:
                return await self._engine.files.verified(self._run, produced)
            except StorageError as error:
                _log.warning("run %s: storage does not answer: %s", self._run.id, error)
            if self._run.state == "started":
                # it may take long: whoever goes on from here need not ask the backend again
                self._run = await self._engine.rows.produced(self._run, produced)
                self._engine.placement.wake(room=True)
            await patience.pause()

    async def _put_back(self) -> None:
        engine, run = self._engine, self._run
        pause = timedelta(seconds=engine.settings.backend_full_pause_s)
        await engine.rows.put_back(run, not_before=engine.clock.now() + pause)
        engine.placement.pause(run.backend or "")

    async def _failed(self, error: RunFailed) -> None:
        last = self._run.failures + 1 >= self._engine.settings.max_attempts
        failure = blamed(self._run.call, error.failure, last=last)
        self._executed = self._executed or error.executed
        # refused now, but an earlier start of it may still come and be taken
        tell = self._run.state == "granted" and self._run.id in self._engine.doubtful
        if failure.kind != "transient" or self._no_better(failure.code):
            job_error = JobError(code=failure.code, message=failure.message, kind=failure.kind)
            await self._end(job_error, tell_backend=tell)
        else:
            await self._again(failure.code, failure.message, failed=True, tell_backend=tell)

    def _no_better(self, code: str) -> bool:
        """Memory was freed after the first time: what fails so again is too large."""
        return code == "out_of_memory" and self._run.failures > 0

    async def _lost(self, *, executed: bool) -> None:
        """It is known to be gone there: only now may it be done again."""
        self._executed = self._executed or executed
        if self._executed and self._run.deaths + 1 >= self._engine.settings.max_deaths:
            await self._poisoned(tell_backend=True)
            return
        message = "The run was lost where it ran."
        # the service may have lost it while ComfyUI still has it
        await self._again("run_lost", message, died=self._executed, tell_backend=True)

    async def _poisoned(self, *, tell_backend: bool) -> None:
        message = (
            f"The process working on this job died {self._engine.settings.max_deaths} times, so it "
            "is not tried again."
        )
        await self._end(JobError(code="poison", message=message), tell_backend=tell_backend)

    async def _overdue(self) -> None:
        await self._end(deadline_exceeded(), tell_backend=True)

    async def _end(self, error: JobError, *, tell_backend: bool = False) -> None:
        engine = self._engine
        await engine.rows.failed(self._run, error, engine.clock.now(), tell_backend=tell_backend)
        if tell_backend:
            engine.tell_backends()

    async def _again(
        self,
        code: str,
        message: str,
        *,
        failed: bool = False,
        died: bool = False,
        tell_backend: bool = False,
    ) -> None:
        """Let the next attempt wait, or end the job when this was its last."""
        engine, run, settings = self._engine, self._run, self._engine.settings
        error = JobError(code=code, message=message, kind="transient")
        failures = run.failures + failed
        if failures >= settings.max_attempts:
            await self._end(error, tell_backend=tell_backend)
            return
        first_s, longest_s = settings.retry_backoff_s, settings.retry_backoff_max_s
        wait_s = backoff(run.attempt, first_s, longest_s, engine.rng)
        now = engine.clock.now()
        await engine.rows.next_attempt(
            run,
            error,
            failures=failures,
            deaths=run.deaths + died,
            not_before=now + timedelta(seconds=wait_s),
            now=now,
            tell_backend=tell_backend,
        )
        engine.placement.wake_in(wait_s)
        if tell_backend:
            engine.tell_backends()

    async def _backend(self) -> Backend:
        """Where it runs; one that no living gateway can reach is waited for like a silent one."""
        engine, name = self._engine, self._run.backend or ""
        patience = engine.patience(engine.settings.backend_lost_after_s)
        while (backend := engine.backends.get(name)) is None:
            if not await patience.pause():
                raise BackendLost(f"{name} is not configured any more")
            if await engine.rows.load(self._run.id, engine.owner) is None:
                raise OwnershipLost(self._run.id)
        return backend

    def _left(self) -> timedelta:
        return self._run.deadline_at - self._engine.clock.now()


def deadline_exceeded() -> JobError:
    """Why a job ends that took longer than it may."""
    return JobError(code="deadline_exceeded", message="The job was not done before its deadline.")


async def _forget(backend: Backend, run: Run) -> None:
    # those who wait for the job are answered first
    await asyncio.sleep(FORGET_AFTER_S)
    try:
        await backend.forget(run.id, run.reference or "")
    except BackendUnreachable as error:
        _log.info("run %s: %s was not told to forget it: %s", run.id, backend.name, error)
    except Exception:  # noqa: BLE001  # the job is done: whatever it raises changes nothing
        _log.info("run %s: %s was not told to forget it", run.id, backend.name, exc_info=True)
