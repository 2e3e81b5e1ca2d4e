"""The backends that the settings name, built."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from gateway.agreement import (
    service_addresses,
    slots_address,
    worker_address,
    workflows_served,
)
from gateway.api.hooks import webhook_path
from gateway.backends.cpu import CpuBackend
from gateway.backends.cpu_files import Transfers
from gateway.backends.runpod import Endpoint, Runpod
from gateway.backends.runpod_submit import Addresses
from gateway.backends.sidecar import Sidecar
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.db.serverless import ServerlessRows
from gateway.own_workflows.registry import StoredWorkflows
from gateway.receipts import Receipts
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.base import Storage
from gateway.storage.disk import DiskSpace
from gpu_server.addresses import FetchRules
from gpu_server.mesh.order import MeshLimits
from gpu_server.mesh.pool import MeshPool
from gpu_server.workflow import Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Backends by their kind."""

    sidecars: tuple[Sidecar, ...] = ()
    serverless: tuple[Runpod, ...] = ()
    cpu: CpuBackend | None = None

    @property
    def watched(self) -> tuple[Sidecar | Runpod, ...]:
        """Those that are looked at all the time."""
        return (*self.sidecars, *self.serverless)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What backends are built of."""

    settings: Settings
    http: httpx.AsyncClient
    db: Database
    storage: Storage
    signer: Signer
    disk: DiskSpace
    workflows: Mapping[str, Workflow]
    brought: StoredWorkflows


def built(parts: Parts) -> Built:
    """Build every backend of the settings; nothing is started. Raises Misconfigured."""
    return Built(sidecars=_sidecars(parts), serverless=_serverless(parts), cpu=_cpu(parts))


def _sidecars(parts: Parts) -> tuple[Sidecar, ...]:
    token = parts.settings.gpu_service_token
    secret = token.get_secret_value() if token else None
    brought = parts.brought.for_backends
    return tuple(
        Sidecar(name, url, secret, parts.http, parts.workflows, brought=brought)
        for name, url in service_addresses(parts.settings).items()
    )


def _serverless(parts: Parts) -> tuple[Runpod, ...]:
    settings, key = parts.settings, parts.settings.runpod_api_key
    served = workflows_served(settings, parts.workflows)
    if not served or key is None:
        return ()
    receipts = Receipts(parts.storage, parts.signer)
    ours, theirs = slots_address(settings), worker_address(settings)

    def reach(url: str) -> str:
        ours_too = theirs is not None and url.startswith(f"{ours}/")
        return f"{theirs}{url[len(ours) :]}" if ours_too else url

    def webhook(run_id: str) -> str | None:
        return None if theirs is None else theirs + webhook_path(parts.signer, run_id)

    return tuple(
        Runpod(
            Endpoint(
                id=endpoint,
                url=f"{settings.runpod_api_url}/{endpoint}",
                key=key.get_secret_value(),
                workflows=workflows,
                max_jobs=settings.runpod_max_jobs,
                queue_s=settings.runpod_queue_s,
                previews=settings.runpod_previews,
            ),
            parts.http,
            receipts=receipts,
            rows=ServerlessRows(parts.db),
            addresses=Addresses(receipt=receipts.addresses, reach=reach, webhook=webhook),
            clock=SystemClock(),
        )
        for endpoint, workflows in served.items()
    )


def _cpu(parts: Parts) -> CpuBackend:
    limits, settings = MeshLimits(), parts.settings
    return CpuBackend(
        pool=MeshPool(limits, workers=settings.mesh_workers),
        workers=settings.mesh_workers,
        transfers=Transfers(
            http=parts.http,
            disk=parts.disk,
            most=limits.file_bytes,
            public=slots_address(settings),
            local=settings.local_url,
            rules=FetchRules.of(settings.fetch_ports, settings.fetch_allow_networks),
        ),
        folder=settings.data / "meshes",
    )
