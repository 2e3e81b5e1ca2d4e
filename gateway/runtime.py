"""The only place where things are built."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx

from gateway.agreement import choices_of, policy_of, stores_of, tool_timeouts
from gateway.announcements import (
    announce_bad_workflow,
    announce_simulators,
    announce_trouble,
    notices,
)
from gateway.api.context import Context, WatchedBackend
from gateway.api.views import Views
from gateway.api.webhooks import payload
from gateway.assembly import Built, Parts, built
from gateway.backends.base import Backend
from gateway.backends.runpod_looks import Serverless
from gateway.catalogue import Catalogue
from gateway.choices import Choices
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.db.cards import Cards
from gateway.db.jobs import JobRows
from gateway.db.limits import waiting_by_caller
from gateway.db.own_workflows import OwnWorkflowRows
from gateway.db.pictures import PictureRows
from gateway.db.serverless import ServerlessRows
from gateway.db.styles import Styles
from gateway.db.templates import Templates
from gateway.db.timings import Timings
from gateway.db.trained_models import TrainedModels
from gateway.db.uploads import Uploads
from gateway.db.usage import stored_by
from gateway.inputs import Inputs
from gateway.jobs.engine import Jobs, JobSettings
from gateway.jobs.eta import Etas
from gateway.jobs.files import RunFiles
from gateway.jobs.limits import QueueLimits
from gateway.jobs.receivers import Receivers
from gateway.jobs.sweep import Retention, Sweep
from gateway.jobs.webhooks import Webhooks
from gateway.operations import OPERATIONS
from gateway.own_workflows.registry import ChecksWorkflows, OwnWorkflows, StoredWorkflows
from gateway.own_workflows.tool import OWN
from gateway.quota import Quota
from gateway.security.api_keys import RequireKey
from gateway.security.policy import Policy
from gateway.security.signing import SignedFileNames, Signer, load_secret, webhook_secret
from gateway.settings import Settings
from gateway.storage.base import Storage
from gateway.storage.disk import DiskSpace
from gateway.storage.stores import Stores
from gateway.submission import Submission
from gateway.thumbnails.store import Thumbnails, thumbnails_of
from gateway.tools import TOOLS
from gateway.uploads import DirectUploads, intake_of
from gpu_server.addresses import FetchRules
from gpu_server.workflow import Workflow, load_workflows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A gateway process: what its routes work with, and what must be started and stopped."""

    context: Context
    db: Database
    http: httpx.AsyncClient
    built: Built
    sweep: Sweep

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start in order of need, stop in the reverse; raises SchemaOutdated before anything."""
        context = self.context
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.http.aclose)
            stack.push_async_callback(self.db.close)
            await self.db.check_schema()
            await stack.enter_async_context(context.stores.running())
            await stack.enter_async_context(context.thumbnails.running())
            stack.push_async_callback(context.intake.close)
            await context.intake.open()
            cpu = self.built.cpu
            if cpu is not None:
                await cpu.open()
            for watched in self.built.watched:
                stack.push_async_callback(watched.close)
                await watched.start_watching()
            # started after the jobs and stopped after them: giving runs back waits for no receiver
            stack.push_async_callback(context.webhooks.stop)
            stack.push_async_callback(context.jobs.stop)
            await context.jobs.start()
            if cpu is not None:
                # before the jobs are stopped: they write down what it has broken off
                stack.push_async_callback(cpu.close)
            await context.webhooks.start()
            announcing = asyncio.create_task(announce_simulators(self.built.sidecars))
            stack.callback(announcing.cancel)
            stack.push_async_callback(_stop, asyncio.create_task(announce_trouble(context.stores)))
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
    workflows = load_workflows(settings.workflows, on_error=announce_bad_workflow)
    stores = stores_of(settings, signer)
    storage = stores.storage
    brought = StoredWorkflows(OwnWorkflowRows(db))
    disk = DiskSpace(settings.written_folders, least_mb=settings.min_free_disk_mb)
    parts = Parts(
        settings=settings,
        http=http,
        db=db,
        storage=storage,
        signer=signer,
        disk=disk,
        workflows=workflows,
        brought=brought,
    )
    own = built(parts) if backends is None else Built()
    places = own.sidecars if backends is None else backends
    every: Sequence[Backend] = [*places, *own.serverless, *([own.cpu] if own.cpu else [])]
    catalogue = _catalogue(settings, workflows, every)
    models = TrainedModels(db)
    thumbnails = thumbnails_of(settings, db=db, storage=storage, signer=signer)
    jobs = _jobs(
        settings, db, every, stores, signer, thumbnails=thumbnails, choices=catalogue.choices
    )
    webhooks = _webhooks(settings, secret, db, jobs, storage)
    for watched in own.watched:
        watched.on_change = jobs.look_again
    inputs = _inputs(settings, db, stores, signer)
    submission = _submission(
        settings, db, catalogue, models, jobs, webhooks=webhooks, disk=disk, inputs=inputs
    )
    context = _context(
        _Base(settings=settings, signer=signer, db=db, stores=stores, disk=disk),
        places,
        catalogue=catalogue,
        jobs=jobs,
        webhooks=webhooks,
        submission=submission,
        thumbnails=thumbnails,
        own=_own_workflows(settings, brought, places, submission.policy),
        serverless=Serverless(own.serverless, ServerlessRows(db)),
    )
    sweep = _sweep(settings, db, storage, signer, thumbnails)
    return Runtime(context=context, db=db, http=http, built=own, sweep=sweep)


def _catalogue(
    settings: Settings, workflows: Mapping[str, Workflow], every: Sequence[Backend]
) -> Catalogue:
    choices = choices_of(settings, workflows.values())
    known = {**workflows, **OPERATIONS}
    return Catalogue(tools=TOOLS, workflows=known, backends=every, choices=choices)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What everything else is built on."""

    settings: Settings
    signer: Signer
    db: Database
    stores: Stores
    disk: DiskSpace


def _context(
    base: _Base,
    places: Sequence[WatchedBackend],
    *,
    catalogue: Catalogue,
    jobs: Jobs,
    webhooks: Webhooks,
    submission: Submission,
    thumbnails: Thumbnails,
    own: OwnWorkflows,
    serverless: Serverless,
) -> Context:
    db, storage = base.db, base.stores.storage
    intake = intake_of(
        base.settings,
        db=db,
        storage=storage,
        signer=base.signer,
        disk=base.disk,
        quota=submission.quota,
        thumbnails=thumbnails,
    )
    return Context(
        settings=base.settings,
        signer=base.signer,
        key=_key(base.settings),
        models=TrainedModels(db),
        templates=Templates(db),
        styles=Styles(db),
        storage=storage,
        stores=base.stores,
        disk=base.disk,
        quota=submission.quota,
        cards=Cards(db),
        intake=intake,
        direct=DirectUploads(intake, base.signer),
        thumbnails=thumbnails,
        backends=places,
        catalogue=catalogue,
        jobs=jobs,
        webhooks=webhooks,
        submission=submission,
        own=own,
        serverless=serverless,
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
    settings: Settings,
    db: Database,
    every: Sequence[Backend],
    stores: Stores,
    signer: Signer,
    *,
    thumbnails: Thumbnails,
    choices: Choices,
) -> Jobs:
    return Jobs(
        db=db,
        backends=every,
        storage=stores.storage,
        buckets=stores.inputs,
        names=SignedFileNames(signer),
        thumbnails=thumbnails,
        settings=JobSettings(
            backend_lost_after_s=settings.backend_lost_after,
            choices=choices,
            fallback_after_s=settings.fallback_after_s,
            lease_s=settings.replica_lease_s,
            max_running_per_caller=settings.max_running_per_caller,
        ),
        clock=SystemClock(),
    )


def _key(settings: Settings) -> RequireKey:
    key = settings.gateway_api_key
    return RequireKey(key.get_secret_value() if key else None)


def _sweep(
    settings: Settings, db: Database, storage: Storage, signer: Signer, thumbnails: Thumbnails
) -> Sweep:
    return Sweep(
        db=db,
        storage=storage,
        files=RunFiles(storage, SignedFileNames(signer), JobSettings().slot_lifetime, thumbnails),
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
    etas = Etas(
        history=Timings(db),
        places=catalogue.executes_at_once,
        alike=catalogue.share_places,
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
        quota=Quota(stored=partial(stored_by, db), most_mb=settings.max_stored_mb_per_caller),
        inputs=inputs,
        policy=policy_of(settings),
        check_webhook=webhooks.check,
        timeouts=tool_timeouts(settings),
    )


def _inputs(settings: Settings, db: Database, stores: Stores, signer: Signer) -> Inputs:
    own = (settings.public_url, settings.local_url, f"http://localhost:{settings.backend_port}")
    return Inputs(
        files=JobRows(db),
        uploads=Uploads(db),
        pictures=PictureRows(db),
        buckets=stores.inputs,
        storage=stores.storage,
        names=SignedFileNames(signer),
        clock=SystemClock(),
        paths=frozenset(tool.files_path for tool in (*TOOLS, OWN) if tool.files_path is not None),
        own=tuple(address for address in own if address is not None),
        max_inline_mb=settings.max_image_size_mb,
        rules=FetchRules.of(settings.fetch_ports, settings.fetch_allow_networks),
    )


def _webhooks(
    settings: Settings, secret: bytes, db: Database, jobs: Jobs, storage: Storage
) -> Webhooks:
    tools = {tool.name: tool for tool in TOOLS}
    return Webhooks(
        db=db,
        receivers=Receivers(allow_private=settings.webhook_allow_private),
        secrets=settings.webhook_secrets or [webhook_secret(secret)],
        render=payload(jobs, Views(tools=tools, storage=storage, signer=Signer(secret))),
        clock=SystemClock(),
    )


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
