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
from gateway.backends.sidecar import Sidecar
from gateway.catalogue import Catalogue
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.db.trained_models import TrainedModels
from gateway.jobs.engine import Jobs, JobSettings
from gateway.security.api_keys import RequireKey
from gateway.security.signing import SignedFileNames, Signer, load_secret
from gateway.settings import Settings
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

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Start in order of need, stop in the reverse; raises SchemaOutdated before anything."""
        context = self.context
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.http.aclose)
            stack.push_async_callback(self.db.close)
            await self.db.check_schema()
            for sidecar in self.sidecars:
                stack.push_async_callback(sidecar.close)
                await sidecar.start_watching()
            stack.push_async_callback(context.jobs.stop)
            await context.jobs.start()
            announcing = asyncio.create_task(_announce_simulators(self.sidecars))
            stack.callback(announcing.cancel)
            for notice in notices(context):
                logger.warning("%s", notice)
            context.started.set()
            try:
                yield
            finally:
                context.stopping.set()


def build(settings: Settings, backends: Sequence[WatchedBackend] | None = None) -> Runtime:
    """Build a gateway from its settings; nothing is started and nothing connects yet.

    `backends` stand in for the GPU services the settings name.
    """
    signer = Signer(load_secret(settings.data / "secret"))
    db = Database(settings.database)
    http = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False)
    workflows = load_workflows(settings.workflows, on_error=_bad_workflow)
    storage = LocalStorage(settings.files, signer, slots_address(settings))
    sidecars = () if backends is not None else _sidecars(settings, http, workflows)
    places = sidecars if backends is None else backends
    catalogue = Catalogue(tools=TOOLS, workflows=workflows, backends=places)
    models = TrainedModels(db)
    jobs = Jobs(
        db=db,
        backends=places,
        storage=storage,
        names=SignedFileNames(signer),
        settings=JobSettings(backend_lost_after_s=settings.backend_lost_after),
        clock=SystemClock(),
    )
    for sidecar in sidecars:
        sidecar.on_change = jobs.look_again
    key = settings.gateway_api_key
    context = Context(
        settings=settings,
        signer=signer,
        key=RequireKey(key.get_secret_value() if key else None),
        models=models,
        storage=storage,
        backends=places,
        catalogue=catalogue,
        jobs=jobs,
        submission=Submission(catalogue=catalogue, models=models, jobs=jobs),
    )
    return Runtime(context=context, db=db, http=http, sidecars=sidecars)


def _sidecars(
    settings: Settings, http: httpx.AsyncClient, workflows: Mapping[str, Workflow]
) -> tuple[Sidecar, ...]:
    token = settings.gpu_service_token
    secret = token.get_secret_value() if token else None
    return tuple(
        Sidecar(f"gpu-{n}", url, secret, http, workflows)
        for n, url in enumerate(settings.gpu_service_url, start=1)
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
