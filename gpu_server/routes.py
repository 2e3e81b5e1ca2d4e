"""The routes of the GPU service: runs by id, health, workflows, and the plain call."""

import base64
import secrets
import sqlite3
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gpu_server import __version__
from gpu_server.catalogue import WorkflowMismatch
from gpu_server.comfy import RunFailed
from gpu_server.finish import Finishing
from gpu_server.problems import Problem
from gpu_server.protocol import (
    VERSION,
    Engine,
    Event,
    FileOptions,
    Health,
    RunRequest,
    RunStatus,
    WorkflowRef,
    Workflows,
)
from gpu_server.run import Run, Story
from gpu_server.runs import AtCapacity
from gpu_server.service import Service
from gpu_server.workflow import ParamError, Workflow, WorkflowError

HEARTBEAT_S = 10
MAX_REQUEST_BYTES = 8 * 1024**2
MAX_INLINE_BYTES = 64 * 1024**2
"""Largest picture a plain call answers with."""
_BUSY_AFTER_S = "1"
_AWAY_AFTER_S = "5"
Message = TypeVar("Message", bound=BaseModel)
_PROTOCOL = [f"v{VERSION}", "previews", "files", "check", "ours", "sized"]


def service_of(request: Request) -> Service:
    """Return the service that the app's lifespan built."""
    return request.app.state.service


def has_token(request: Request) -> bool:
    """Tell whether the caller may do more than look at the health."""
    token = service_of(request).settings.gpu_service_token
    if token is None:
        return True
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value()
    return scheme.lower() == "bearer" and secrets.compare_digest(
        given.strip().encode(), expected.encode()
    )


def require_token(request: Request) -> None:
    """Refuse a caller without the shared token."""
    if not has_token(request):
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "unauthorized",
            "Send the shared token: Authorization: Bearer <GPU_SERVICE_TOKEN>.",
            headers={"www-authenticate": "Bearer"},
        )


Here = Annotated[Service, Depends(service_of)]

guarded = APIRouter(dependencies=[Depends(require_token)])
open_to_all = APIRouter()


@guarded.put("/runs/{run_id}", response_model=RunStatus)
async def put_run(run_id: uuid.UUID, request: Request, service: Here) -> JSONResponse:
    """Start a run, or return the one that has this id, which takes over the new slots.

    With `If-Match: *` nothing is started: a run that is not known is answered as GET answers it.
    """
    wanted = await message(request, RunRequest)
    known = service.runs.get(str(run_id)) or await _recalled(service, str(run_id))
    if known is not None:
        await _renew(service, known, wanted)
        return _status(known.status, HTTPStatus.OK)
    if request.headers.get("if-match", "").strip() == "*":
        raise _not_found()
    try:
        workflow = service.catalogue.find(wanted)
    except WorkflowMismatch as error:
        raise Problem(
            HTTPStatus.CONFLICT, "workflow_mismatch", f"{error}; send graph and manifest inline."
        ) from None
    except WorkflowError as error:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "workflow_invalid", str(error), param="graph"
        ) from None
    return _status(_accept(service, str(run_id), wanted, workflow).status, HTTPStatus.CREATED)


@guarded.get("/runs/{run_id}", response_model=RunStatus)
async def get_run(run_id: uuid.UUID, service: Here) -> JSONResponse:
    """Tell how a run stands."""
    return _status(_run(service, run_id).status, HTTPStatus.OK)


@guarded.get("/runs/{run_id}/events")
async def run_events(
    run_id: uuid.UUID, service: Here, *, previews: bool = False
) -> StreamingResponse:
    """Follow a run by server-sent events until its end."""
    return StreamingResponse(
        _lines(_run(service, run_id), previews=previews),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@guarded.delete("/runs/{run_id}")
async def delete_run(run_id: uuid.UUID, service: Here) -> Response:
    """Cancel a run that is not over (200 with its status), forget one that is (204)."""
    try:
        status = await service.runs.remove(str(run_id))
    except sqlite3.Error:
        raise _no_journal("written") from None
    if status is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    return _status(status, HTTPStatus.OK)


@guarded.get("/workflows", response_model=Workflows)
async def get_workflows(service: Here) -> JSONResponse:
    """Tell which workflows are ready, and which model files may be chosen."""
    return JSONResponse((await service.catalogue.report()).model_dump(mode="json"))


class GenerateRequest(BaseModel):
    """The plain call's body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    workflow: str
    """Name of a workflow of this service."""
    params: dict[str, JsonValue] = Field(default_factory=dict)
    keep_metadata: bool = False
    """Leave prompt and workflow in the file."""


class GenerateAnswer(BaseModel):
    """The plain call's answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: Literal["done", "failed"]
    image: str | None = None
    """The first file, in base64."""
    error: str | None = None
    engine: Engine | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)
    """Every value really used, the seed included."""


@guarded.post("/generate")
async def generate(wanted: GenerateRequest, service: Here) -> GenerateAnswer:
    """Run a workflow and answer with its first file, for use without a gateway."""
    workflow = service.catalogue.workflows.get(wanted.workflow)
    if workflow is None:
        names = ", ".join(sorted(service.catalogue.workflows))
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "workflow_not_found",
            f"There is no such workflow; there are: {names}.",
            param="workflow",
        )
    run_id = str(uuid.uuid4())
    ref = WorkflowRef(name=workflow.name, digest=workflow.digest)
    request = RunRequest(workflow=ref, params=wanted.params)
    _check_available(service)
    try:
        plan = await service.executor.plan(run_id, request, workflow)
    except ParamError as error:
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, error.code, error.message, param=error.param
        ) from None
    except RunFailed as error:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, error.failure.code, error.failure.message
        ) from None
    # The seed drawn for the check is the one that is used.
    request = request.model_copy(update={"params": plan.params})
    run = _accept(service, run_id, request, workflow, deliver=False)
    try:
        status = await run.wait()
        options = FileOptions(keep_metadata=wanted.keep_metadata)
        image = await _first_file(service, run, options) if status.state == "completed" else None
    except RunFailed as error:
        return GenerateAnswer(status="failed", error=error.failure.message)
    finally:
        service.runs.cancel(run)
        service.runs.drop_soon(run)
    return GenerateAnswer(
        status="failed" if image is None else "done",
        image=image,
        error=_why(status) if image is None else None,
        engine=status.engine,
        params=status.params,
    )


@open_to_all.get("/health")
async def health(request: Request, service: Here) -> JSONResponse:
    """Tell how the service is; 503 only when it can't work at all."""
    broken = await service.journal_trouble()
    comfy = service.comfy
    status = "unhealthy" if broken else "healthy" if comfy.available else "degraded"
    notes = [
        broken,
        f"{comfy.trouble}." if comfy.trouble else None,
        service.models_trouble,
        service.cleaner.trouble,
    ]
    report = Health(
        status=status,
        comfyui_available=comfy.available,
        version=__version__,
        protocol=_PROTOCOL,
        engine=comfy.engine,
        comfyui_version=comfy.version,
        capacity=service.settings.capacity,
        detail=" ".join(note for note in notes if note) or None,
    )
    public = None if has_token(request) else {"status", "comfyui_available", "service", "version"}
    return JSONResponse(
        report.model_dump(mode="json", include=public),
        status_code=HTTPStatus.SERVICE_UNAVAILABLE if broken else HTTPStatus.OK,
    )


@open_to_all.get("/ready")
async def ready(service: Here) -> dict[str, bool]:
    """Answer 200 once ComfyUI is connected."""
    _check_available(service)
    return {"ready": True}


def _accept(
    service: Service, run_id: str, request: RunRequest, workflow: Workflow, *, deliver: bool = True
) -> Run:
    _check_available(service)
    try:
        return service.runs.accept(run_id, request, workflow, deliver=deliver)
    except AtCapacity:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "at_capacity",
            f"ComfyUI has {service.settings.capacity} runs already.",
            headers={"retry-after": _BUSY_AFTER_S},
        ) from None


def _check_available(service: Service) -> None:
    if not service.comfy.available:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "comfyui_unavailable",
            f"{service.comfy.trouble}.",
            headers={"retry-after": _AWAY_AFTER_S},
        )


async def message(request: Request, kind: type[Message]) -> Message:
    """Read a message of the contract from a body of bounded size."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST_BYTES:
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                f"A request has at most {MAX_REQUEST_BYTES} bytes.",
            )
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        raise Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "invalid_request",
            f"{place}: {first['msg']}",
            param=place,
        ) from None


async def _recalled(service: Service, run_id: str) -> Story | None:
    try:
        return await service.runs.recall(run_id)
    except sqlite3.Error:
        raise _no_journal("read") from None


async def _renew(service: Service, known: Story, wanted: RunRequest) -> None:
    try:
        await service.runs.renew(known, wanted.outputs)
    except sqlite3.Error:
        raise _no_journal("written") from None


def _no_journal(why: str) -> Problem:
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "journal_unavailable",
        f"The journal can't be {why}; ask again.",
        headers={"retry-after": _AWAY_AFTER_S},
    )


def _run(service: Service, run_id: uuid.UUID) -> Story:
    run = service.runs.get(str(run_id))
    if run is None:
        raise _not_found()
    return run


def _not_found() -> Problem:
    return Problem(
        HTTPStatus.NOT_FOUND, "run_not_found", "This service never had the run, or lost it."
    )


def _status(status: RunStatus, code: HTTPStatus) -> JSONResponse:
    return JSONResponse(status.model_dump(mode="json", exclude_none=True), status_code=code)


async def _lines(run: Story, *, previews: bool) -> AsyncGenerator[bytes]:
    events = run.events(heartbeat_s=HEARTBEAT_S, previews=previews)
    # closed when the follower leaves, not when the collector finds it: it counts as a viewer
    async with aclosing(events):
        async for event in events:
            yield b": still here\n\n" if event is None else _line(event)


def _line(event: Event) -> bytes:
    data = event.model_dump_json(exclude_none=True)
    return f"event: {event.type}\ndata: {data}\n\n".encode()


async def _first_file(service: Service, run: Run, wanted: FileOptions) -> str | None:
    if not run.produced:
        return None
    content = bytearray()
    async with (
        Finishing(service.comfy, run.produced[0], wanted, service.settings.finishing_path) as file,
        file.opened() as body,
    ):
        async for chunk in body.chunks():
            content += chunk
            if len(content) > MAX_INLINE_BYTES:
                raise RunFailed("usage", "too_large", "the result is too large for a plain call")
    return base64.b64encode(content).decode("ascii")


def _why(status: RunStatus) -> str:
    if status.failure is not None:
        return status.failure.message
    return "cancelled" if status.state == "cancelled" else "the workflow made no file"
