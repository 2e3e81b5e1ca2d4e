"""Whether this process lives, is ready, and what stands behind it."""

import logging
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from gateway.api.context import Context, WatchedBackend
from gateway.api.views import as_json
from gateway.backends.base import Kind
from gateway.backends.runpod import Runpod

logger = logging.getLogger(__name__)


class BackendHealth(BaseModel):
    """One place where work is carried out."""

    name: str
    kind: Kind
    status: Literal["healthy", "degraded", "unreachable"]
    engine: str | None = Field(description="`comfyui`, `simulator`, or null while not known.")
    comfyui_version: str | None
    capacity: int
    detail: str | None
    workers: dict[str, int] | None = Field(
        default=None, description="Of a serverless endpoint, by state, as its provider counts them."
    )
    jobs: dict[str, int] | None = Field(
        default=None, description="The same of its jobs: `inQueue`, `inProgress` and so on."
    )


class Health(BaseModel):
    """The gateway and its GPU services."""

    status: Literal["healthy", "degraded", "unhealthy"]
    gpu_available: bool
    version: str
    service: Literal["gateway"] = "gateway"
    backends: list[BackendHealth] = []
    detail: str | None = Field(default=None, description="What is amiss here, if anything.")
    jobs_waiting: int = Field(default=0, description="Jobs of this gateway that wait.")
    jobs_in_flight: int = Field(default=0, description="Jobs of this gateway under way.")


class Alive(BaseModel):
    """A process that answers."""

    status: Literal["alive", "ready", "starting", "stopping", "no_database"]


def health_router(context: Context) -> APIRouter:
    """Make the health routes; they need no key."""
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="Health", response_model=Health)
    async def health() -> Response:
        """Always 200: `healthy`, `degraded` (GPU, database, room, bucket) or `unhealthy`."""
        try:
            view = _health(context, await _trouble(context))
        except Exception:
            # The answer to "are you well?" must not be a 500, whatever broke.
            logger.exception("the health check failed")
            version = context.settings.api_version
            view = Health(status="unhealthy", gpu_available=False, version=version)
        return as_json(view)

    @router.get("/livez", summary="The process answers", response_model=Alive)
    async def livez() -> Response:
        """200 as long as the process serves requests."""
        return as_json(Alive(status="alive"))

    @router.get(
        "/readyz",
        summary="The process takes work",
        response_model=Alive,
        responses={
            503: {"model": Alive, "description": "It starts, stops, or misses its database."}
        },
    )
    async def readyz() -> Response:
        """200 between start and stop, with its database; what a load balancer asks."""
        if context.stopping.is_set():
            return as_json(Alive(status="stopping"), 503)
        if not context.started.is_set():
            return as_json(Alive(status="starting"), 503)
        if not context.jobs.database_answers:
            return as_json(Alive(status="no_database"), 503)
        return as_json(Alive(status="ready"))

    return router


async def _trouble(context: Context) -> str | None:
    if not context.jobs.database_answers:
        return "The database does not answer."
    return await context.disk.shortage() or await context.stores.trouble()


def _health(context: Context, trouble: str | None) -> Health:
    backends = [_backend(backend) for backend in context.backends]
    backends += [_serverless(backend) for backend in context.serverless.backends]
    healthy = any(b.status == "healthy" for b in backends)
    reached = any(b.status != "unreachable" for b in backends)
    counts = context.jobs.counts()
    return Health(
        status="healthy" if healthy and trouble is None else "degraded",
        gpu_available=reached,
        detail=trouble,
        version=context.settings.api_version,
        backends=backends,
        jobs_waiting=counts.waiting,
        jobs_in_flight=counts.in_flight,
    )


def _backend(backend: WatchedBackend) -> BackendHealth:
    said = backend.health
    if said is None:
        status, detail = "unreachable", "It does not answer."
    elif said.status == "healthy":
        status, detail = "healthy", said.detail
    else:
        status, detail = "degraded", said.detail
    return BackendHealth(
        name=backend.name,
        kind=backend.kind,
        status=status,
        engine=said.engine if said else None,
        comfyui_version=said.comfyui_version if said else None,
        capacity=backend.capacity,
        detail=detail,
    )


def _serverless(backend: Runpod) -> BackendHealth:
    counts = backend.counts
    return BackendHealth(
        name=backend.name,
        kind=backend.kind,
        status="unreachable" if counts is None else "healthy",
        engine=backend.engine,
        comfyui_version=None,
        capacity=backend.capacity,
        detail=backend.trouble,
        workers=None if counts is None else counts.workers,
        jobs=None if counts is None else counts.jobs,
    )
