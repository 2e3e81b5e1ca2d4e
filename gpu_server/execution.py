"""What carrying out one run takes: files in, graph, ComfyUI, files out, verdict."""

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from functools import partial
from typing import cast

from pydantic import BaseModel, ConfigDict

from gpu_server.addresses import origin_of
from gpu_server.blank import is_blank
from gpu_server.catalogue import Catalogue
from gpu_server.comfy import (
    ComfyClient,
    ComfyFile,
    ComfyUnavailable,
    Finished,
    Produced,
    RunCancelled,
    RunFailed,
    Started,
    Stepped,
)
from gpu_server.delivery import Deliverer, Patience
from gpu_server.inputs import Uploader, Uploads
from gpu_server.journal import FinalState, Journal
from gpu_server.protocol import Failure, Progress, RunRequest, RunState, RunStatus, Slot
from gpu_server.run import Plan, PlannedOutput, Run, plan_outputs
from gpu_server.workflow import BoundGraph, ParamError, Workflow, WorkflowError
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

_STOP_S = 10
_PATIENT_S = 7 * 86_400
"""No job's deadline is later: a gateway that is there ends its runs before."""
_FINAL: dict[RunState, FinalState] = {
    "completed": "delivered",
    "failed": "failed",
    "cancelled": "cancelled",
}


class JournalEntry(BaseModel):
    """A run as the journal keeps it; `plan` once the graph is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: RunRequest
    plan: Plan | None = None


class Executor:
    """Carries out runs; `carry_out` ends each of them in one of the final states."""

    def __init__(
        self,
        *,
        comfy: ComfyClient,
        catalogue: Catalogue,
        journal: Journal,
        uploader: Uploader,
        deliverer: Deliverer,
    ) -> None:
        self._comfy = comfy
        self._catalogue = catalogue
        self._journal = journal
        self._uploader = uploader
        self._deliverer = deliverer
        self._connected = asyncio.Event()
        comfy.on_connect(self._connected.set)

    async def carry_out(self, run: Run) -> None:
        """Bring a run to its end; raises nothing but cancellation of the process's own stop."""
        try:
            await self._carry_out(run)
            status = run.decide("completed", engine=self._comfy.engine)
        except asyncio.CancelledError:
            # A cancelled run that ComfyUI still has is never ended here but by ComfyUI: so the
            # process stops, and the next one has to see to it.
            if not run.cancel_asked or run.in_comfyui:
                raise
            status = run.decide("cancelled")
        except Exception as error:  # noqa: BLE001 - the outermost ring: a run always ends
            status = _verdict(run, error)
        try:
            # Written before it is told: whoever heard of the end finds it after a restart as well.
            await self._journal.end(
                run.run_id, _FINAL[status.state], status.model_dump_json().encode()
            )
        except sqlite3.Error:
            _log.exception("the end of run %s could not be written down", run.run_id)
        run.end(status)
        seconds = status.duration_seconds
        _log.info(
            "run %s %s%s%s",
            run.run_id,
            status.state,
            f" ({status.failure.code})" if status.failure else "",
            f" after {seconds} s of execution" if seconds is not None else "",
        )

    async def _carry_out(self, run: Run) -> None:
        plan = run.plan or await self._prepare(run)
        run.planned(plan)
        try:
            await self._follow(run, plan)
        except BaseExceptionGroup as group:
            # One cause reaches the caller: the first, whatever it tore down with it.
            cause = next(_leaves(group))
            if run.in_comfyui:
                await self._stop(run)
            raise cause from None
        _check_complete(run, plan)

    async def _prepare(self, run: Run) -> Plan:
        """Upload the inputs and make the graph; the journal has the plan before ComfyUI has it."""
        request, workflow = run.request, run.workflow
        if workflow is None:
            raise RunFailed("transient", "lost", "the service was restarted before the run began")
        workflow.check_names(request.params, request.inputs)
        await self._reached(request.timeout_s)
        if request.inputs and run.deliver:
            await self._record(run)
        trusted = {origin_of(slot.url) for slot in request.outputs}
        uploads = await self._uploader.upload(run.run_id, request, workflow, trusted=trusted)
        plan = await self.plan(run.run_id, request, workflow, uploads=uploads)
        # before it is written down: a renewal in between must not write the run without it
        run.plan = plan
        if run.deliver:
            await self._record(run)
        return plan

    async def plan(
        self,
        run_id: str,
        request: RunRequest,
        workflow: Workflow,
        *,
        uploads: Uploads | None = None,
    ) -> Plan:
        """Make a run's graph; raises ParamError, or RunFailed when ComfyUI lacks something."""
        if request.models:
            raise RunFailed("usage", "unsupported", "this service does not fetch models")
        files = uploads or Uploads()

        def bind(object_info: ObjectInfo) -> BoundGraph:
            return workflow.bind(
                request.params,
                run_id=run_id,
                object_info=object_info,
                uploads=files.names,
                sizes=files.sizes,
            )

        try:
            bound = bind(await self._catalogue.ready(workflow))
        except ParamError as error:
            if error.code != "model_not_installed":
                raise
            # The file may be younger than what is known of ComfyUI.
            bound = bind(await self._catalogue.ready(workflow, refresh=True))
        return Plan(graph=bound.graph, params=bound.params, outputs=dict(plan_outputs(workflow)))

    async def _reached(self, timeout_s: float) -> None:
        """Wait for the first connection: a resumed run may be earlier than it."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise ComfyUnavailable from None

    async def renew(self, run: Run, slots: Iterable[Slot]) -> None:
        """Send its files to new addresses, after a restart as well; raises sqlite3.Error."""
        if run.renew(slots):
            await self._journal.renew(run.run_id, _entry(run))

    async def _record(self, run: Run) -> None:
        await self._journal.put(run.run_id, _entry(run))

    async def _follow(self, run: Run, plan: Plan) -> None:
        """Pass on what ComfyUI tells; each file is on its way while later nodes still run."""
        collector = _Collector(run, plan)
        run.in_comfyui = True
        events = self._comfy.run(run.run_id, plan.graph, timeout_s=run.request.timeout_s)
        async with aclosing(events), asyncio.TaskGroup() as deliveries:
            while True:
                try:
                    event = await anext(events)
                except (StopAsyncIteration, RunFailed, RunCancelled) as end:
                    # ComfyUI is done with it: there is nothing left there to interrupt.
                    run.left_comfyui()
                    if isinstance(end, StopAsyncIteration):
                        break
                    raise
                match event:
                    case Started():
                        run.started(self._comfy.engine)
                    case Stepped():
                        run.stepped(_progress(event))
                    case Produced():
                        for file, name in collector.take(event):
                            output = plan.outputs[name.rpartition("/")[0]]
                            deliveries.create_task(self._deliver(run, output, file, name))
                    case Finished():
                        pass
            if run.cancel_asked:
                # The interrupt came too late: ComfyUI had finished. Files are no longer wanted.
                raise RunCancelled

    async def _deliver(self, run: Run, output: PlannedOutput, file: ComfyFile, name: str) -> None:
        if output.blank_is_nothing and await is_blank(self._comfy, file):
            raise RunFailed("usage", "object_not_found", "there is no such thing in the picture")
        asked = run.request
        patience = Patience(
            comfyui_s=asked.timeout_s, storage_s=_PATIENT_S if asked.patient else asked.timeout_s
        )
        at_storage = partial(run.at_storage, name)
        sent = await self._deliverer.deliver(file, name, run.slots, patience, at_storage=at_storage)
        if not asked.details:
            sent = sent.model_copy(update={"duration_s": None, "faces": None})
        run.delivered(sent)

    async def _stop(self, run: Run) -> None:
        """Spare the GPU a run whose result nobody can get."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._comfy.interrupt(run.run_id)
        except (RunFailed, TimeoutError):
            _log.warning("run %s could not be interrupted", run.run_id)


class _Collector:
    """Sorts what nodes produce into the run's outputs and slots."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._taken: Counter[str] = Counter()

    def take(self, event: Produced) -> list[tuple[ComfyFile, str]]:
        """Return what goes into which slot; raises RunFailed when there are too many files."""
        found: list[tuple[ComfyFile, str]] = []
        for name, output in self._plan.outputs.items():
            if output.node != event.node:
                continue
            if output.kind == "text":
                self._run.said(name, event.texts)
                continue
            files = [f for f in event.files if output.key in (None, f.key)]
            if self._run.deliver:
                found += [(file, self._slot(name)) for file in files]
            else:
                self._run.produced.extend(files)
        return found

    def _slot(self, name: str) -> str:
        number = self._taken[name]
        self._taken[name] += 1
        slot = f"{name}/{number}"
        if slot not in self._run.slots:
            raise RunFailed(
                "fatal", "too_many_outputs", f"the workflow made more {name} than {number}"
            )
        return slot


def _entry(run: Run) -> bytes:
    return JournalEntry(request=run.request, plan=run.plan).model_dump_json().encode()


def _check_complete(run: Run, plan: Plan) -> None:
    for name, output in plan.outputs.items():
        if output.kind == "text":
            count = len(run.status.texts.get(name, ()))
        elif run.deliver:
            count = sum(o.slot.startswith(f"{name}/") for o in run.status.outputs)
        else:
            count = sum(f.node == output.node for f in run.produced)
        if count < output.min:
            raise RunFailed("fatal", "no_output", f"the workflow made no {name}")


def _progress(event: Stepped) -> Progress:
    return Progress(fraction=event.fraction, node=event.node, step=event.step, steps=event.steps)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield error


def _verdict(run: Run, error: Exception) -> RunStatus:
    if run.cancel_asked or isinstance(error, RunCancelled):
        return run.decide("cancelled")
    match error:
        case RunFailed():
            failure = error.failure
        case ParamError():
            failure = Failure(kind="usage", code=error.code, message=error.message)
        case WorkflowError():
            failure = Failure(kind="fatal", code="workflow_invalid", message=str(error))
        case sqlite3.Error() | OSError():
            _log.error("run %s failed", run.run_id, exc_info=error)
            failure = Failure(
                kind="transient",
                code="run_lost",
                message="the GPU service could not write down the run",
            )
        case _:
            _log.error("run %s failed", run.run_id, exc_info=error)
            failure = Failure(kind="fatal", code="internal_error", message="the GPU service failed")
    return run.decide("failed", failure=failure)
