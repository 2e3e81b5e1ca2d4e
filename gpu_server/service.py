"""The parts of a running service, built in one place and closed in the reverse order."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gpu_server.catalogue import Catalogue
from gpu_server.cleaning import Cleaner
from gpu_server.comfy import ComfyClient, ComfyUnavailable
from gpu_server.delivery import Deliverer
from gpu_server.execution import Executor
from gpu_server.fetch import Fetcher
from gpu_server.finish import tidied
from gpu_server.input_cache import InputCache
from gpu_server.inputs import Uploader
from gpu_server.journal import Journal
from gpu_server.models import models_path_trouble
from gpu_server.runs import Runs
from gpu_server.settings import Settings
from gpu_server.workflow.node_specs import ObjectInfo

_log = logging.getLogger(__name__)

_REFRESH_S = 10
_BUSY_REFRESH_S = 60


@dataclass(slots=True, kw_only=True)
class Service:
    """Everything a request may need."""

    settings: Settings
    journal: Journal
    comfy: ComfyClient
    catalogue: Catalogue
    executor: Executor
    runs: Runs
    cleaner: Cleaner
    cache: InputCache
    models_trouble: str | None = None
    """Why files in MODELS_PATH can't be used."""
    _models_checked: bool = False

    async def journal_trouble(self) -> str | None:
        """Why the journal can't be written, None when it can."""
        try:
            await self.journal.client_id()
        except sqlite3.Error as error:
            return f"The journal can't be written ({error})."
        return None

    async def connected(self) -> None:
        """Learn what this ComfyUI has; called after every connect."""
        try:
            await self.catalogue.refresh()
            if not self._models_checked and self.comfy.engine == "comfyui":
                self._models_checked = True
                path = self.settings.models_path
                self.models_trouble = await models_path_trouble(path, self._ask_anew)
                if self.models_trouble:
                    _log.warning("%s", self.models_trouble)
        except ComfyUnavailable:
            _log.info("ComfyUI went away while it was asked for its nodes")

    async def keep_fresh(self) -> None:
        """Ask ComfyUI anew every 10 s, and forget old runs; never returns."""
        since = 0.0
        while True:
            await asyncio.sleep(_REFRESH_S)
            since += _REFRESH_S
            try:
                # The question stops ComfyUI's event loop for a tenth of a second: while it
                # works it is asked less often.
                if self.comfy.available and (not self.runs.active or since >= _BUSY_REFRESH_S):
                    since = 0.0
                    await self.catalogue.refresh()
                await self.runs.sweep()
                await self.cache.sweep()
            except ComfyUnavailable:
                _log.info("ComfyUI went away while it was asked for its nodes")
            except Exception:  # noqa: BLE001 - one bad round must not end the refreshing
                _log.exception("refreshing failed")

    async def _ask_anew(self) -> ObjectInfo:
        return await self.comfy.object_info(refresh=True)


@asynccontextmanager
async def running_service(
    settings: Settings, *, fetching: type[Fetcher] = Fetcher
) -> AsyncGenerator[Service]:
    """Build and start the service; leaving lets ComfyUI go on with what it has."""
    async with AsyncExitStack() as stack:
        journal = await stack.enter_async_context(Journal(settings.journal_path))
        comfy = ComfyClient(settings.comfyui_api_url, journal)
        stack.push_async_callback(comfy.close)
        fetcher = await stack.enter_async_context(fetching(rules=settings.fetch_rules))
        cache = InputCache(settings.input_cache_path, settings.input_cache_mb * 1024**2)
        await cache.open()
        await asyncio.to_thread(tidied, settings.finishing_path)
        deliverer = Deliverer(comfy, settings.finishing_path)
        stack.push_async_callback(deliverer.close)
        catalogue = Catalogue.load(settings.workflows_path, comfy)
        cleaner = Cleaner(settings.comfyui_path)
        executor = Executor(
            comfy=comfy,
            catalogue=catalogue,
            journal=journal,
            uploader=Uploader(comfy, fetcher, cache=cache, gateway=settings.trusted_origin),
            deliverer=deliverer,
        )
        runs = Runs(
            executor=executor,
            journal=journal,
            comfy=comfy,
            catalogue=catalogue,
            cleaner=cleaner,
            capacity=settings.capacity,
        )
        stack.push_async_callback(runs.close)
        service = Service(
            settings=settings,
            journal=journal,
            comfy=comfy,
            catalogue=catalogue,
            executor=executor,
            runs=runs,
            cleaner=cleaner,
            cache=cache,
        )
        comfy.on_connect(service.connected)
        comfy.on_picture(runs.pictured)
        await comfy.start()
        await runs.resume()
        refreshing = asyncio.create_task(service.keep_fresh(), name="refresh")
        stack.callback(refreshing.cancel)
        yield service
