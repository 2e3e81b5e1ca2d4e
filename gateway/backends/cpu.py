"""The gateway's own processes as a backend: work on meshes.

Every gateway has one, and all of them have one name: a run can go on at any of them after a
takeover. Yet each knows the runs of its own process alone, and what another one has begun is lost
with it. That is a death of the run, unless the process had time to stop cleanly: `close` then says
so of each run before the jobs are given back.

A run is carried out while it is followed: who stops following it, as it ended elsewhere, stops it.
"""

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.backends.base import (
    BackendUnreachable,
    Kind,
    Order,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
    WorkflowReadiness,
)
from gateway.backends.cpu_files import Transfers
from gateway.job import Produced
from gateway.operations import NORMALISE, OPERATIONS, RESCALE
from gpu_server.mesh.calls import ENGINE, INPUT, NORMALISED, failure_of, rescaled, sizes
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import MeshOrder, MeshReport
from gpu_server.mesh.pool import MeshPool
from gpu_server.protocol import Failure

NAME = "cpu"

_TOLD_WITHIN_S = 5.0
"""How long a clean stop waits until the jobs know what it has broken off."""
_OLD_S = 3600.0
"""No work lasts that long: a folder of that age is one of a process that was killed."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    order: Order
    work: asyncio.Task[Produced] | None = None
    sending: asyncio.Event = field(default_factory=asyncio.Event)
    """The file is made, and what is left is that storage takes it."""


class CpuBackend:
    """Carries out the operations of `gateway.operations`; `folder` is for files under work."""

    def __init__(self, *, pool: MeshPool, workers: int, transfers: Transfers, folder: Path) -> None:
        self._pool = pool
        self._workers = workers
        self._transfers = transfers
        self._folder = folder
        self._runs: dict[str, _Run] = {}
        self._followed: set[str] = set()
        self._closing = False
        self._broken_off: set[str] = set()
        self._untold: set[str] = set()
        self._told = asyncio.Event()

    @property
    def name(self) -> str:
        """The same on every gateway."""
        return NAME

    @property
    def kind(self) -> Kind:
        """The gateway's own CPU."""
        return "cpu"

    @property
    def billed(self) -> bool:
        """It costs nothing."""
        return False

    @property
    def capacity(self) -> int:
        """Runs it takes at once, over all gateways."""
        return 0 if self._closing else self._workers

    @property
    def engine(self) -> str:
        """What its results say made them."""
        return ENGINE

    @property
    def installed(self) -> Mapping[str, frozenset[str]] | None:
        """No models: None, or it would say that there are none anywhere."""
        return None

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:
        """Its operations are always ready; whatever has a graph is not its own."""
        del digest
        return WorkflowReadiness(readiness="ready") if workflow in OPERATIONS else None

    async def open(self) -> None:
        """Make the folder, and remove from it what killed processes left."""
        await asyncio.to_thread(_tidied, self._folder)

    async def close(self) -> None:
        """Stop the work under way; return once its rows say that no death was meant.

        To be closed before the jobs are stopped, which write that down.
        """
        self._closing = True
        at_work = {id_: run for id_, run in self._runs.items() if not _is_done(run)}
        self._broken_off = set(at_work)
        # nobody ever writes of one that is not followed
        self._untold = self._broken_off & self._followed
        for run_id in at_work:
            await self._drop(run_id)
        await self._pool.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TOLD_WITHIN_S):
                while self._untold:
                    self._told.clear()
                    await self._told.wait()
        await self._transfers.close()

    async def start(self, order: Order) -> str:
        """Take the run; work begins with the first look at it. Its reference is its id."""
        if self._closing:
            raise BackendUnreachable("this gateway stops")
        run = self._runs.setdefault(order.run_id, _Run(order=order))
        run.order = order
        return order.run_id

    async def renew(self, order: Order) -> None:
        """Nothing changes for a run of this process: its slots are as good as new ones."""
        if order.run_id not in self._runs:
            raise self._lost(order.run_id)

    async def follow(
        self, run_id: str, reference: str
    ) -> AsyncGenerator[Progressed | Produced, None]:
        """Carry it out; one whose generator is closed before its end is dropped."""
        del reference
        run = self._runs.get(run_id)
        if run is None:
            raise self._lost(run_id)
        self._followed.add(run_id)
        delivered = lost = False
        try:
            # never more before its end: the row must not say that it executes, or a clean stop
            # would count as a death
            yield Progressed(fraction=0)
            if run.work is None and run_id in self._runs:
                run.work = asyncio.create_task(self._carry_out(run), name=f"cpu {run_id}")
            if run.work is not None:
                if await _sends(run, run.work):
                    yield Progressed(fraction=0, waits_for="storage")
                await asyncio.wait({run.work})
            if run.work is None or run.work.cancelled():
                lost = self._closing
                raise self._lost(run_id) if lost else RunCancelled(NAME)
            produced = run.work.result()
            delivered = True
            yield produced
        finally:
            self._followed.discard(run_id)
            if not lost and not delivered:
                # it ended by another's hand: who followed it writes nothing that says so here
                self._is_told(run_id)
            if not delivered:
                await self._drop(run_id)

    async def cancel(self, run_id: str, reference: str | None) -> None:
        """Stop it; one that is another process's is stopped by who follows it there."""
        del reference
        self._is_told(run_id)
        await self._drop(run_id)

    async def forget(self, run_id: str, reference: str) -> None:
        """Its file is safe."""
        del reference
        self._is_told(run_id)
        self._runs.pop(run_id, None)

    def _is_told(self, run_id: str) -> None:
        self._untold.discard(run_id)
        self._told.set()

    def _lost(self, run_id: str) -> RunLost:
        """What to say of a run that is not under way here and had been started."""
        stopped = run_id in self._broken_off
        return RunLost("stopped" if stopped else "begun by another process", executed=not stopped)

    async def _drop(self, run_id: str) -> None:
        run = self._runs.pop(run_id, None)
        if run is not None and run.work is not None:
            run.work.cancel()
            # what it ends in is nobody's business any more
            await asyncio.gather(run.work, return_exceptions=True)

    async def _carry_out(self, run: _Run) -> Produced:
        began, order = time.monotonic(), run.order
        try:
            async with self._work_folder() as folder:
                return await self._in_folder(run, folder, began)
        except MeshError as error:
            ours = INPUT in order.call.made_inputs
            raise RunFailed(failure_of(error, ours=ours), executed=True) from None
        except OSError as error:
            _log.warning("run %s: %s", order.run_id, error)
            failure = Failure(
                kind="transient", code="disk_full", message="The gateway could not write its files."
            )
            raise RunFailed(failure, executed=True) from None

    async def _in_folder(self, run: _Run, folder: Path, began: float) -> Produced:
        order = run.order
        call = order.call
        work = MeshOrder.model_validate(
            {
                "source": folder / "source.glb",
                "target": folder / "target",
                "steps": NORMALISED if call.workflow == NORMALISE else rescaled(call.params),
                "format": call.params.get("format", "glb"),
            }
        )
        (slot,) = order.slots
        report = await self._worked(order, work)
        # It costs no work, and what the stages before have cost is spent: so it has no end of its
        # own. Who follows the run stops it at the job's deadline.
        run.sending.set()
        sent = await self._transfers.deliver(work, slot, faces=report.faces)
        return Produced(
            outputs=(sent,),
            params={**call.params, **(sizes(report) if call.workflow == RESCALE else {})},
            engine=ENGINE,
            duration_seconds=round(time.monotonic() - began, 3),
        )

    async def _worked(self, order: Order, work: MeshOrder) -> MeshReport:
        (file,) = order.inputs[INPUT]
        seconds = order.call.timeout_s
        within = asyncio.timeout(seconds)
        try:
            async with within:
                await self._transfers.fetch(file, work.source)
                return await self._pool.run(work)
        except TimeoutError:
            if not within.expired():
                # the system's: a disk behind a network
                raise
            message = f"The execution took longer than {seconds:g} seconds."
            failure = Failure(kind="fatal", code="timeout", message=message)
            raise RunFailed(failure, executed=True) from None

    @contextlib.asynccontextmanager
    async def _work_folder(self) -> AsyncGenerator[Path]:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._folder))
        try:
            yield folder
        finally:
            # a handful of files: as good as at once, and it must not be interrupted
            shutil.rmtree(folder, ignore_errors=True)


async def _sends(run: _Run, work: asyncio.Task[Produced]) -> bool:
    """Return once it is sending its file, or false when it is over before that."""
    sending = asyncio.create_task(run.sending.wait())
    try:
        await asyncio.wait({work, sending}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sending.cancel()
    return not work.done()


def _is_done(run: _Run) -> bool:
    return run.work is not None and run.work.done()


def _tidied(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        if time.time() - left.stat().st_mtime > _OLD_S:
            shutil.rmtree(left, ignore_errors=True)
