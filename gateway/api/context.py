"""What the routes work with, handed to each router when the app is made."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.backends.base import Backend
from gateway.backends.runpod_looks import Serverless
from gateway.catalogue import Catalogue
from gateway.db.cards import Cards
from gateway.db.styles import Styles
from gateway.db.templates import Templates
from gateway.db.trained_models import TrainedModels
from gateway.jobs.engine import Jobs
from gateway.jobs.webhooks import Webhooks
from gateway.own_workflows.registry import OwnWorkflows
from gateway.quota import Quota
from gateway.security.api_keys import RequireKey
from gateway.security.signing import Signer
from gateway.settings import Settings
from gateway.storage.base import Storage
from gateway.storage.disk import DiskSpace
from gateway.storage.stores import Stores
from gateway.submission import Submission
from gateway.thumbnails.store import Thumbnails
from gateway.uploads import DirectUploads, Intake
from gpu_server.protocol import Health


class WatchedBackend(Backend, Protocol):
    """A backend that says how it is."""

    @property
    def health(self) -> Health | None:
        """What it says of itself; None while it does not answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Everything a route may use."""

    settings: Settings
    signer: Signer
    key: RequireKey
    models: TrainedModels
    templates: Templates
    styles: Styles
    storage: Storage
    stores: Stores
    disk: DiskSpace
    quota: Quota
    cards: Cards
    intake: Intake
    direct: DirectUploads
    thumbnails: Thumbnails
    backends: Sequence[WatchedBackend]
    serverless: Serverless
    catalogue: Catalogue
    own: OwnWorkflows
    jobs: Jobs
    webhooks: Webhooks
    submission: Submission
    started: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set first thing at shutdown: waits and streams end, so that nothing holds it up."""
