"""One output file from ComfyUI into its slot: finished, streamed, tried again."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from gpu_server.comfy import ComfyClient, ComfyFile, ComfyUnavailable, RunFailed
from gpu_server.fetch import tls_context
from gpu_server.finish import Finishing, NotPrepared
from gpu_server.protocol import OutputFile, Slot
from gpu_server.run import Slots
from gpu_server.sending import FIRST_DELAY_S, LONGEST_DELAY_S, NotNow, Refused, send

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a file is tried; the GPU time in it is worth a lot."""

    comfyui_s: float
    """While ComfyUI, or room to prepare the file, is away."""
    storage_s: float
    """While its slot does not take it."""


class Deliverer:
    """Brings files from ComfyUI's `/view` into slots over one kept connection pool."""

    def __init__(self, comfy: ComfyClient, folder: Path) -> None:
        """`folder`: where files lie that have to be made first."""
        self._comfy = comfy
        self._folder = folder
        # A slot is a signed address the gateway chose; an environment's proxy has no part in it.
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=tls_context(),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def deliver(
        self,
        file: ComfyFile,
        name: str,
        slots: Slots,
        patience: Patience,
        *,
        at_storage: Callable[[bool], None],
    ) -> OutputFile:
        """Bring a file into its slot, however long the slot, ComfyUI or room is away.

        Args:
            file: a file ComfyUI has just produced.
            name: the slot it goes into.
            slots: its address, looked up at each attempt; a new one is tried at once.
            patience: how long it is tried.
            at_storage: told whether all that is left is that the slot takes it.

        Raises:
            RunFailed: the slot refuses it, ComfyUI lost it, or the time is over; also when it
                can't be read or turned into what the slot wants.
        """
        async with Finishing(self._comfy, file, slots[name], self._folder) as finishing:
            trying = _Trying(name, patience, at_storage)
            try:
                while True:
                    renewed = slots.renewed
                    try:
                        return await self._attempt(finishing, slots[name], at_storage)
                    except (NotNow, ComfyUnavailable, NotPrepared) as error:
                        await trying.again(error, renewed)
                    except Refused as refused:
                        failure = refused.failure
                        raise RunFailed(failure.kind, failure.code, failure.message) from None
            finally:
                at_storage(False)

    async def _attempt(
        self, file: Finishing, slot: Slot, at_storage: Callable[[bool], None]
    ) -> OutputFile:
        async with file.opened(known=slot.sized or slot.content_md5) as body:
            at_storage(True)
            await send(
                self._http,
                slot,
                body.chunks(),
                media_type=body.media_type,
                length=body.length,
                md5=body.md5,
            )
        return OutputFile(slot=slot.name, **body.told)


class _Trying:
    """What went wrong so far with one file, and how long it may go on."""

    def __init__(self, name: str, patience: Patience, at_storage: Callable[[bool], None]) -> None:
        self._name = name
        self._patience = patience
        self._at_storage = at_storage
        self._began = time.monotonic()
        self._storage = False
        self._told = ""
        self._delay = FIRST_DELAY_S

    async def again(
        self, error: NotNow | ComfyUnavailable | NotPrepared, new: asyncio.Event
    ) -> None:
        """Return when the next attempt is due: after a while, or as a new address is there."""
        storage = isinstance(error, NotNow)
        if storage != self._storage:
            self._storage, self._began = storage, time.monotonic()
        self._at_storage(storage)
        if str(error) != self._told:
            _log.warning("slot %s: %s; it is tried again", self._name, error)
            self._told = str(error)
        limit = self._patience.storage_s if storage else self._patience.comfyui_s
        left = self._began + limit - time.monotonic()
        if left <= 0:
            message = f"output {self._name} could not be delivered"
            raise RunFailed("transient", "delivery_failed", message) from None
        try:
            async with asyncio.timeout(min(self._delay, left)):
                await new.wait()
        except TimeoutError:
            self._delay = min(2 * self._delay, LONGEST_DELAY_S)
        else:
            self._delay = FIRST_DELAY_S
