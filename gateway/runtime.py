"""The only place where things are built."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx

from gateway.api.context import Context, WatchedBackend
from gateway.api.views import Views
from gateway.api.webhooks import payload
from gateway.backends.base import Backend
from gateway.backends.cpu import NAME as CPU
from gateway.backends.cpu import CpuBackend
from gateway.backends.cpu_files import Transfers
from gateway.backends.sidecar import Sidecar, name_of
from gateway.catalogue import Catalogue
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.db.jobs import JobRows
from gateway.db.limits import waiting_by_caller
from gateway.db.own_workflows import OwnWorkflowRows
from gateway.db.pictures import PictureRows
from gateway.db.styles import Styles
from gateway.db.templates import Templates
from gateway.db.timings import Timings
from gateway.db.trained_models import TrainedModels
from gateway.inputs import Inputs
from gateway.jobs.engine import Jobs, JobSettings
from gateway.jobs.eta import Etas
from gateway.jobs.files import RunFiles
from gateway.jobs.limits import QueueLimits
from gateway.jobs.receivers import Receivers
from gateway.jobs.sweep import Retention, Sweep
from gateway.jobs.webhooks import Webhooks
from gateway.mesh.order import MeshLimits
from gateway.mesh.pool import MeshPool
from gateway.operations import OPERATIONS
from gateway.own_workflows.registry import ChecksWorkflows, OwnWorkflows, StoredWorkflows
from gateway.own_workflows.tool import OWN, is_own
from gateway.security.api_keys import RequireKey
from gateway.security.policy import Policy, PolicyUnusable, load_policy
from gateway.security.signing import SignedFileNames, Signer, load_secret, webhook_secret
from gateway.settings import Settings
from gateway.storage.base import Storage
from gateway.storage.disk import DiskSpace
from gateway.storage.local import LocalStorage
from gateway.submission import Submission
from gateway.tools import TOOLS
from gpu_server.workflow import Workflow, load_workflows

logger = logging.getLogger(__name__)


class Misconfigured(Exception):
    """The settings cannot work together; the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A gateway process: what its routes work with, and what must be started and stopped."""

    context: Context
    db: Database
    http: httpx.AsyncClient
    sidecars: Sequence[Sidecar]
    cpu: CpuBackend | None
    sweep: Sweep

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start in order of need, stop in the reverse; raises SchemaOutdated before anything."""
        context = self.context
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.http.aclose)
            stack.push_async_callback(self.db.close)
            await self.db.check_schema()
            if self.cpu is not None:
                await self.cpu.open()
            for sidecar in self.sidecars:
                stack.push_async_callback(sidecar.close)
                await sidecar.start_watching()
            # started after the jobs and stopped after them: giving runs back waits for no receiver
            stack.push_async_callback(context.webhooks.stop)
            stack.push_async_callback(context.jobs.stop)
            await context.jobs.start()
            if self.cpu is not None:
                # before the jobs are stopped: they write down what it has broken off
                stack.push_async_callback(self.cpu.close)
            await context.webhooks.start()
            announcing = asyncio.create_task(_announce_simulators(self.sidecars))
            stack.callback(announcing.cancel)
            stack.push_async_callback(_stop, asyncio.create_task(self.sweep.run()))
            stack.push_async_callback(_stop, asyncio.create_task(context.own.keep_known()))
            for notice in notices(context):
                logger.warning("%s", notice)
            context.started.set()
            try:
                yield
            finally:
                context.stopping.set()


def build(settings: Settings, backends: Sequence[WatchedBackend] | None = None) -> Runtime:
    """Build a gateway; nothing is started yet. `backends` stand in for the settings' services."""
    secret = load_secret(settings.data / "secret")
    signer = Signer(secret)
    db = Database(settings.database, connections=settings.database_connections)
    http = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False)
    workflows = load_workflows(settings.workflows, on_error=_bad_workflow)
    storage = LocalStorage(settings.files, signer, slots_address(settings))
    brought = StoredWorkflows(OwnWorkflowRows(db))
    sidecars = () if backends is not None else _sidecars(settings, http, workflows, brought)
    places = sidecars if backends is None else backends
    disk = DiskSpace(settings.written_folders, least_mb=settings.min_free_disk_mb)
    cpu = _cpu(settings, http, disk) if backends is None else None
    every: Sequence[Backend] = [*places, *([cpu] if cpu else [])]
    catalogue = Catalogue(tools=TOOLS, workflows={**workflows, **OPERATIONS}, backends=every)
    models = TrainedModels(db)
    jobs = _jobs(settings, db, every, storage, signer)
    webhooks = _webhooks(settings, secret, db, jobs, storage)
    for sidecar in sidecars:
        sidecar.on_change = jobs.look_again
    inputs = _inputs(settings, db, storage, signer)
    submission = _submission(
        settings, db, catalogue, models, jobs, webhooks=webhooks, disk=disk, inputs=inputs
    )
    context = Context(
        settings=settings,
        signer=signer,
        key=_key(settings),
        models=models,
        templates=Templates(db),
        styles=Styles(db),
        storage=storage,
        disk=disk,
        backends=places,
        catalogue=catalogue,
        jobs=jobs,
        webhooks=webhooks,
        submission=submission,
        own=_own_workflows(settings, brought, places, submission.policy),
    )
    return Runtime(
        context=context,
        db=db,
        http=http,
        sidecars=sidecars,
        cpu=cpu,
        sweep=_sweep(settings, db, storage, signer),
    )


def _own_workflows(
    settings: Settings, brought: StoredWorkflows, places: Sequence[object], policy: Policy
) -> OwnWorkflows:
    return OwnWorkflows(
        brought=brought,
        checkers=[place for place in places if isinstance(place, ChecksWorkflows)],
        policy=policy,
        enabled=settings.takes_own_workflows,
        most=settings.own_workflows_max,
    )


def _jobs(
    settings: Settings, db: Database, every: Sequence[Backend], storage: Storage, signer: Signer
) -> Jobs:
    return Jobs(
        db=db,
        backends=every,
        storage=storage,
        names=SignedFileNames(signer),
        settings=JobSettings(
            backend_lost_after_s=settings.backend_lost_after,
            lease_s=settings.replica_lease_s,
            max_running_per_caller=settings.max_running_per_caller,
        ),
        clock=SystemClock(),
    )


def _key(settings: Settings) -> RequireKey:
    key = settings.gateway_api_key
    return RequireKey(key.get_secret_value() if key else None)


def _sweep(settings: Settings, db: Database, storage: LocalStorage, signer: Signer) -> Sweep:
    return Sweep(
        db=db,
        storage=storage,
        files=RunFiles(storage, SignedFileNames(signer), JobSettings().slot_lifetime),
        retention=Retention.of_days(
            jobs=settings.job_retention_days, files=settings.file_retention_days
        ),
        clock=SystemClock(),
    )


def _submission(
    settings: Settings,
    db: Database,
    catalogue: Catalogue,
    models: TrainedModels,
    jobs: Jobs,
    *,
    webhooks: Webhooks,
    disk: DiskSpace,
    inputs: Inputs,
) -> Submission:
    timeouts = dict(settings.tool_timeouts)
    unknown = {name for name in timeouts if not is_own(name)} - {tool.name for tool in TOOLS}
    if unknown:
        known = ", ".join(tool.name for tool in TOOLS)
        raise Misconfigured(f"TOOL_TIMEOUTS: no tool is named {min(unknown)!r}; there is {known}")
    etas = Etas(
        history=Timings(db),
        places=lambda tool: _places(catalogue, tool),
        alike=lambda one, other: _on_cpu(one) == _on_cpu(other),
        clock=SystemClock(),
    )
    limits = QueueLimits(
        count=lambda: waiting_by_caller(db),
        one_place_s=etas.one_place_s,
        per_caller=settings.max_queued_jobs_per_caller,
        total=settings.max_queued_jobs,
    )
    return Submission(
        catalogue=catalogue,
        models=models,
        styles=Styles(db),
        jobs=jobs,
        limits=limits,
        etas=etas,
        disk=disk,
        inputs=inputs,
        policy=_policy(settings),
        check_webhook=webhooks.check,
        timeouts=timeouts,
    )


def _places(catalogue: Catalogue, tool: str | None) -> int:
    """How many jobs of a tool execute at once; None: of all that need a GPU."""
    if _on_cpu(tool):
        return sum(b.capacity for b in catalogue.backends if b.name == CPU)
    # each executes one job at a time; what it holds beyond that waits there
    return sum(b.capacity > 0 for b in catalogue.backends if b.name != CPU)


def _on_cpu(tool: str | None) -> bool:
    return any(operation.tool == tool for operation in OPERATIONS.values())


def _policy(settings: Settings) -> Policy:
    try:
        return load_policy(settings)
    except PolicyUnusable as error:
        raise Misconfigured(str(error)) from None


def _inputs(settings: Settings, db: Database, storage: LocalStorage, signer: Signer) -> Inputs:
    own = (settings.public_url, settings.local_url, f"http://localhost:{settings.backend_port}")
    return Inputs(
        files=JobRows(db),
        pictures=PictureRows(db),
        storage=storage,
        names=SignedFileNames(signer),
        clock=SystemClock(),
        paths=frozenset(tool.files_path for tool in (*TOOLS, OWN) if tool.files_path is not None),
        own=tuple(address for address in own if address is not None),
        max_inline_mb=settings.max_image_size_mb,
    )


def _webhooks(
    settings: Settings, secret: bytes, db: Database, jobs: Jobs, storage: LocalStorage
) -> Webhooks:
    tools = {tool.name: tool for tool in TOOLS}
    return Webhooks(
        db=db,
        receivers=Receivers(allow_private=settings.webhook_allow_private),
        secrets=settings.webhook_secrets or [webhook_secret(secret)],
        render=payload(jobs, Views(tools=tools, storage=storage, signer=Signer(secret))),
        clock=SystemClock(),
    )


def _sidecars(
    settings: Settings,
    http: httpx.AsyncClient,
    workflows: Mapping[str, Workflow],
    brought: StoredWorkflows,
) -> tuple[Sidecar, ...]:
    token = settings.gpu_service_token
    secret = token.get_secret_value() if token else None
    addresses: dict[str, str] = {}
    for url in settings.gpu_service_url:
        if addresses.setdefault(name_of(url), url) != url:
            raise Misconfigured(f"GPU_SERVICE_URL names {name_of(url)} twice")
    return tuple(
        Sidecar(name, url, secret, http, workflows, brought=brought.for_backends)
        for name, url in addresses.items()
    )


def _cpu(settings: Settings, http: httpx.AsyncClient, disk: DiskSpace) -> CpuBackend:
    limits = MeshLimits()
    return CpuBackend(
        pool=MeshPool(limits, workers=settings.mesh_workers),
        workers=settings.mesh_workers,
        transfers=Transfers(
            http=http,
            disk=disk,
            most=limits.file_bytes,
            public=slots_address(settings),
            local=settings.local_url,
        ),
        folder=settings.data / "meshes",
    )


def slots_address(settings: Settings) -> str:
    """Choose how the GPU services reach this gateway; raises Misconfigured."""
    remote = [url for url in settings.gpu_service_url if not _on_this_host(url)]
    if not remote:
        return settings.local_url
    if settings.public_url is None:
        raise Misconfigured(
            f"PUBLIC_URL is needed: the GPU service at {remote[0]} is on another machine and must "
            "be told where to send its files"
        )
    return settings.public_url


def _on_this_host(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def notices(context: Context) -> list[str]:
    """Say what whoever starts this should know."""
    found: list[str] = []
    if context.key.open:
        found.append("GATEWAY_API_KEY is not set: anyone who reaches the port may call this API")
    for tool in context.catalogue.tools:
        for variant in context.catalogue.families(tool):
            bound = [m for m in variant.workflow.models if not m.commercial]
            if variant.name == tool.default_variant and bound:
                terms = ", ".join(f"{m.name} ({m.license})" for m in bound)
                found.append(
                    f"{tool.path}: the default variant {variant.name} is not for commercial use: "
                    f"{terms}"
                )
    return found


def _bad_workflow(name: str, digest: str, error: Exception) -> None:
    del digest
    logger.error("workflow %s is left out: %s", name, error)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


async def _announce_simulators(backends: Sequence[Sidecar]) -> None:
    """Say it loudly once a backend turns out to be a simulator."""
    told: set[str] = set()
    while True:
        for backend in backends:
            if backend.engine == "simulator" and backend.name not in told:
                told.add(backend.name)
                logger.warning("%s is a SIMULATOR: pictures are drawn, not generated", backend.name)
            elif backend.engine == "comfyui":
                told.discard(backend.name)
        await asyncio.sleep(2)
