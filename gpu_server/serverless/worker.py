"""Jobs of RunPod, carried out by the same runs as the GPU service's."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, cast

from pydantic import JsonValue

from gpu_server.comfy import RunFailed
from gpu_server.protocol import Failure, RunStatus
from gpu_server.run import Run
from gpu_server.runs import AtCapacity
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.calls import Call, is_plain, read_plain, read_request, require_text
from gpu_server.serverless.failing import (
    SICK,
    TOO_LARGE,
    CallFailed,
    told_to_gateway,
    told_to_people,
)
from gpu_server.serverless.meshes import Handover, normalised
from gpu_server.serverless.previews import Post, shown
from gpu_server.serverless.progress import Settled, Tell, report
from gpu_server.serverless.receipts import TakenRun
from gpu_server.serverless.rescaling import rescale
from gpu_server.serverless.resident import Resident, reached
from gpu_server.serverless.results import Result, checked, in_bucket, in_receipt, inside, of_request
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.tools import Endpoint
from gpu_server.service import Service
from gpu_server.workflow import Workflow

_log = logging.getLogger(__name__)

Job = Mapping[str, Any]
_AWAY_S = 60
"""How long a job waits for a ComfyUI that is away."""
_STOP_S = 30
"""How long a cancelled job waits for ComfyUI to have stopped."""


class Worker:
    """Carries out jobs; `handle` is what RunPod's SDK calls, several at a time if it is set so."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        teller: Callable[[Job], Tell],
        settled: Settled,
        poster: Callable[[Job], Post | None],
    ) -> None:
        """`teller` makes what sends a job's progress updates, `poster` what sends its previews."""
        self._settings = settings
        self._teller = teller
        self._settled = settled
        self._poster = poster
        self._resident = Resident(settings)
        self._bucket = Bucket.of(settings)
        self._sick = False
        """A run did not stop when it should: the next one would wait behind it."""

    async def handle(self, job: Job) -> dict[str, JsonValue]:
        """Carry out one job; failures are returned, only a cancelled task raises."""
        raw: object = job.get("input")
        plain = is_plain(raw)
        try:
            async with self._resident.service() as service:
                told, code = await self._answer(service, job, raw), "done"
        except Exception as error:  # noqa: BLE001 - the outermost ring: a job is always answered
            failure = _failure(error, job)
            told = told_to_people(failure) if plain else told_to_gateway(failure)
            code = failure.code
        if self._sick or code in SICK:
            _log.error("the worker gives itself up after this job: %s", code)
            told["refresh_worker"] = True
        return told

    async def _answer(self, service: Service, job: Job, raw: object) -> Result:
        # what is wrong with a call is told without ComfyUI, too
        require_text(raw)
        call = None if is_plain(raw) else read_request(cast("Result", raw), service.catalogue)
        receipt = None if call is None else call.request.receipt
        if call is None or receipt is None:
            if call is None and (rescaled := await self._rescaled(service, raw)) is not None:
                return rescaled
            await reached(service.comfy, _AWAY_S)
            if call is None:
                call = await read_plain(raw, await self._endpoint(service), self._bucket)
            return await self._carried_out(service, job, call, None)
        async with TakenRun(receipt, job_id=str(job.get("id")), run_id=call.run_id) as taken:
            ended = await taken.claim()
            if ended is not None:
                return self._told_before(ended)
            return await self._told(service, job, call, taken)

    async def _rescaled(self, service: Service, raw: object) -> Result | None:
        """Answer a plain call that needs no ComfyUI; None where it is another one."""
        endpoint = await self._endpoint(service)
        if not isinstance(raw, dict) or not endpoint.rescales(asked := cast("Result", raw)):
            return None
        root = service.settings.finishing_path
        result = await rescale(asked, self._settings, root, self._bucket)
        return checked(result, self._settings.result_bytes)

    async def _told(self, service: Service, job: Job, call: Call, taken: TakenRun) -> Result:
        """Carry out a run that is this job's; its receipt tells how it ended, however that was."""
        try:
            await reached(service.comfy, _AWAY_S)
            return await self._carried_out(service, job, call, taken)
        except Exception as error:  # noqa: BLE001 - a bug is an end of the run, too
            failure = _failure(error, job)
            if taken.kept and failure.code == TOO_LARGE:
                return in_receipt(call.run_id)
            await taken.close(RunStatus(run_id=call.run_id, state="failed", failure=failure))
            raise CallFailed.of(failure) from None

    def _told_before(self, ended: RunStatus) -> Result:
        """Answer as the job that ended the run was; its failure says nothing of this worker."""
        if ended.state == "failed":
            return told_to_gateway(_why(ended).failure)
        try:
            return checked(of_request(ended), self._settings.result_bytes)
        except CallFailed:
            return in_receipt(ended.run_id)

    async def _carried_out(
        self, service: Service, job: Job, call: Call, taken: TakenRun | None
    ) -> Result:
        run = await self._begun(service, call)
        try:
            async with AsyncExitStack() as meanwhile:
                post = self._poster(job) if call.request.previews and not call.plain else None
                if post is not None:
                    every_s = self._settings.runpod_preview_s
                    await meanwhile.enter_async_context(shown(run, post, every_s))
                status = await self._followed(run, job)
            if taken is not None and status.state != "cancelled":
                await taken.close(status)
            result = await self._result(service, call, run, status)
        except asyncio.CancelledError:
            # RunPod thinks that it is over, and may hand out the next job at once.
            await _whatever_happens(self._stop(service, run))
            raise
        finally:
            await _whatever_happens(_dropped(service, run))
        return checked(result, self._settings.result_bytes)

    async def _endpoint(self, service: Service) -> Endpoint:
        statuses = (await service.catalogue.report()).workflows
        ready = {status.name for status in statuses if status.readiness == "ready"}

        def is_ready(workflow: Workflow) -> bool:
            return workflow.name in ready

        known = service.catalogue.workflows
        return Endpoint(workflows=known, settings=self._settings, ready=is_ready)

    async def _begun(self, service: Service, call: Call) -> Run:
        known = service.runs.get(call.run_id)
        if isinstance(known, Run) and not known.over:
            # RunPod lost sight of this worker and handed the job out again, to the same one
            await service.runs.renew(known, call.request.outputs)
            return known
        deliver = not call.plain or (self._bucket is not None and call.mesh is None)
        try:
            return service.runs.accept(call.run_id, call.request, call.workflow, deliver=deliver)
        except AtCapacity:
            message = "ComfyUI has as many runs as it shall have (MAX_CONCURRENT_TASKS)"
            raise CallFailed("transient", "at_capacity", message) from None

    async def _followed(self, run: Run, job: Job) -> RunStatus:
        """Return how the run ended, its progress told meanwhile."""
        every_s = self._settings.runpod_progress_s
        telling = asyncio.create_task(report(run, self._teller(job), self._settled, every_s))
        try:
            status = await run.wait()
        finally:
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        # an update that arrived after the result would take its place
        await self._settled()
        return status

    async def _result(self, service: Service, call: Call, run: Run, status: RunStatus) -> Result:
        if status.state != "completed":
            # of the ways to end, a cancelled task comes by another way
            raise _why(status)
        if not call.plain:
            return of_request(status)
        if call.mesh is not None:
            handover = Handover(self._settings, self._bucket)
            return await normalised(call, call.mesh, run, service, handover=handover)
        if self._bucket is not None:
            link_s = self._settings.storage_link_hours * 3600
            return await in_bucket(call, status, self._bucket, link_s)
        folder = service.settings.finishing_path
        most = self._settings.result_bytes
        return await inside(call, run, service.comfy, folder=folder, most_bytes=most)

    async def _stop(self, service: Service, run: Run) -> None:
        service.runs.cancel(run)
        try:
            async with asyncio.timeout(_STOP_S):
                if run.task is not None:
                    await asyncio.wait([run.task])
                if not run.over:
                    # the loop is ending, and has cancelled the run's task with all others
                    await service.comfy.interrupt(run.run_id)
        except TimeoutError:
            _log.error("run %s did not stop", run.run_id)
            self._sick = True


def _why(status: RunStatus) -> CallFailed:
    failure = status.failure
    if failure is None:
        return CallFailed("transient", "interrupted", "the run was cancelled")
    return CallFailed.of(failure)


def _failure(error: Exception, job: Job) -> Failure:
    """Say why a job failed; raises nothing."""
    if isinstance(error, CallFailed | RunFailed):
        return error.failure
    # its text may hold paths and addresses
    _log.error("job %s failed", job.get("id"), exc_info=error)
    return Failure(kind="fatal", code="internal_error", message="the worker failed")


async def _dropped(service: Service, run: Run) -> None:
    """Leave nothing of a run, here and in ComfyUI; one that does not stop is left to it."""
    if not run.over:
        service.runs.drop_soon(run)
        return
    try:
        await service.runs.drop(run)
    except sqlite3.Error:
        _log.exception("run %s could not be forgotten", run.run_id)


async def _whatever_happens(work: Coroutine[Any, Any, None]) -> None:
    """Do work that must be done, though its task is cancelled meanwhile, which is raised after."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
