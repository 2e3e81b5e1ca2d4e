"""Driving one run: from whatever state its row is in to its end."""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta

from gateway.backends.base import (
    Backend,
    BackendError,
    BackendFull,
    BackendUnreachable,
    Order,
    Progressed,
)
from gateway.choices import BILLED
from gateway.db import DatabaseUnavailable
from gateway.db.runs import OwnershipLost
from gateway.job import Artifact, Outcome, Produced, Run
from gateway.jobs.endings import BackendLost, Ending
from gateway.jobs.files import NotDelivered, RunFiles, made_inputs
from gateway.jobs.patience import Patience
from gateway.jobs.shared import Engine
from gateway.storage.base import StorageError

_log = logging.getLogger(__name__)

FORGET_AFTER_S = 0.2
"""How long after a job's end its backend is told to forget it."""


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
        self._furthest = 0.0
        self._taken_up = run.state == "started"
        # nobody writes down what was produced unless storage is away
        self._at_storage = run.state == "produced"

    async def to_its_end(self) -> None:
        """Take every step that is left, or write down why it cannot be taken."""
        if self._run.deaths >= self._engine.settings.max_deaths:
            await self._ending().poisoned()
            return
        left = self._left().total_seconds()
        if left <= 0:
            await self._ending().overdue(at_storage=self._at_storage)
            return
        deadline = asyncio.timeout(left)
        try:
            async with deadline:
                await self._steps()
        except (OwnershipLost, DatabaseUnavailable):
            raise
        except Exception as error:  # noqa: BLE001  # foreign ones are logged and fail the attempt
            if isinstance(error, TimeoutError) and deadline.expired():
                await self._ending().overdue(at_storage=self._at_storage)
            else:
                await self._ending().stopped_by(error)

    def _ending(self) -> Ending:
        return Ending(self._engine, self._run, executed=self._executed)

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
        patience = self._patience(backend.billed)
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
            return await backend.start(order if first else replace(order, again=True))
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
        patience = self._patience(backend.billed)
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
                    self._at_storage = False
                if not await patience.pause():
                    raise BackendLost(f"{backend.name} does not answer")
        finally:
            engine.hub.stopped_following(run.job_id)
            # room is made there, however it ended
            engine.placement.wake(room=True)

    async def _progressed(self, event: Progressed, written: float) -> float:
        engine, now = self._engine, asyncio.get_running_loop().time()
        self._executed = self._executed or event.fraction > 0
        self._at_storage = event.waits_for == "storage"
        # looked at anew after silence, a backend may know less than it has told
        self._furthest = max(self._furthest, event.fraction)
        event = replace(event, fraction=self._run.progress(self._furthest))
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
        ).after(run.before)
        now = engine.clock.now()
        if run.call.then is None:
            await engine.rows.delivered(run, outcome, files, now)
        else:
            inputs = made_inputs(run.call.then, files)
            await engine.rows.next_stage(run, run.call.then, inputs, outcome, now)
            engine.placement.wake(queued=True, room=True)
        backend = engine.backends.get(run.backend or "")
        if backend is not None:
            engine.in_background(_forget(backend, run))
        if run.call.made_inputs:
            engine.in_background(_remove_read(engine.files, run))

    async def _verified(self, produced: Produced) -> tuple[Artifact, ...]:
        # the GPU time is spent: no attempt is begun anew because storage is away
        self._at_storage = True
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

    async def _backend(self) -> Backend:
        """Where it runs; one that no living gateway can reach is waited for like a silent one."""
        engine, name = self._engine, self._run.backend or ""
        # one that was taken out of the settings is known by its name alone
        patience = self._patience(name.startswith(BILLED))
        while (backend := engine.backends.get(name)) is None:
            if not await patience.pause():
                raise BackendLost(f"{name} is not configured any more")
            if await engine.rows.load(self._run.id, engine.owner) is None:
                raise OwnershipLost(self._run.id)
        return backend

    def _patience(self, billed: bool) -> Patience:  # noqa: FBT001  # as the backend has it
        """How long to ask a silent backend; one whose runs are paid for until the deadline.

        It goes on there and costs what it costs: begun elsewhere, it would be paid for twice.
        """
        limit_s = None if billed else self._engine.settings.backend_lost_after_s
        return self._engine.patience(limit_s)

    def _left(self) -> timedelta:
        return self._run.deadline_at - self._engine.clock.now()


async def _forget(backend: Backend, run: Run) -> None:
    # those who wait for the job are answered first
    await asyncio.sleep(FORGET_AFTER_S)
    try:
        await backend.forget(run.id, run.reference or "")
    except BackendUnreachable as error:
        _log.info("run %s: %s was not told to forget it: %s", run.id, backend.name, error)
    except Exception:  # noqa: BLE001  # the job is done: whatever it raises changes nothing
        _log.info("run %s: %s was not told to forget it", run.id, backend.name, exc_info=True)


async def _remove_read(files: RunFiles, run: Run) -> None:
    try:
        await files.remove_read(run)
    except StorageError as error:
        # the search for files of nobody finds them
        _log.info("run %s: the files it has read stay: %s", run.id, error)
