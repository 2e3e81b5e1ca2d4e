"""One output file from ComfyUI into its slot: finished, streamed, tried again."""

import asyncio
import logging
import time
from http import HTTPStatus
from pathlib import Path

import httpx

from gpu_server.comfy import ComfyClient, ComfyFile, ComfyUnavailable, RunFailed
from gpu_server.fetch import tls_context
from gpu_server.finish import Finishing, NotPrepared
from gpu_server.protocol import OutputFile, Slot
from gpu_server.run import Slots

_log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 3.0
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class _TryAgain(Exception):
    """This attempt failed in a way the next one may not."""


class Deliverer:
    """Streams files from ComfyUI's `/view` into slots over one kept connection pool."""

    def __init__(self, comfy: ComfyClient, folder: Path) -> None:
        """`folder`: where files lie that have to be made first."""
        self._comfy = comfy
        self._folder = folder
        # A slot is a signed address the gateway chose; an environment's proxy has no part in it.
        self._http = httpx.AsyncClient(
            trust_env=False,
            verify=tls_context(),
            timeout=httpx.Timeout(60, connect=5),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def deliver(
        self, file: ComfyFile, name: str, slots: Slots, *, within_s: float
    ) -> OutputFile:
        """Bring a file into its slot, however long the slot, ComfyUI or room is away.

        Args:
            file: a file ComfyUI has just produced.
            name: the slot it goes into.
            slots: its address, looked up at each attempt; a new one is tried at once.
            within_s: how long it is tried; the GPU time in the file is worth the patience.

        Raises:
            RunFailed: (transient) the slot refuses it, ComfyUI lost it, or the time is over; also
                when it can't be read or turned into what the slot wants.
        """
        async with Finishing(self._comfy, file, slots[name], self._folder) as finishing:
            return await self._deliver(finishing, name, slots, within_s=within_s)

    async def _deliver(
        self, file: Finishing, name: str, slots: Slots, *, within_s: float
    ) -> OutputFile:
        until, delay, told = time.monotonic() + within_s, _FIRST_DELAY_S, ""
        while True:
            renewed = slots.renewed
            try:
                return await self._attempt(file, slots[name])
            except (_TryAgain, ComfyUnavailable, NotPrepared) as error:
                reason = str(error)
            if reason != told:
                _log.warning("slot %s: %s; it is tried again", name, reason)
                told = reason
            left = until - time.monotonic()
            if left <= 0:
                raise _undelivered(f"output {name} could not be delivered")
            try:
                async with asyncio.timeout(min(delay, left)):
                    await renewed.wait()
            except TimeoutError:
                delay = min(2 * delay, _LONGEST_DELAY_S)
            else:
                delay = _FIRST_DELAY_S

    async def _attempt(self, file: Finishing, slot: Slot) -> OutputFile:
        async with file.opened() as body:
            headers = {"content-type": body.media_type}
            if body.length is not None:
                headers["content-length"] = str(body.length)
            try:
                answer = await self._http.put(slot.url, content=body.chunks(), headers=headers)
            except httpx.UnsupportedProtocol:
                raise _undelivered(f"the slot {slot.name} has no usable address") from None
            except httpx.TransportError as error:
                raise _TryAgain(f"the transfer broke off ({type(error).__name__})") from None
        if answer.is_server_error or answer.status_code in _AGAIN:
            raise _TryAgain(f"the slot answered {answer.status_code}")
        if not answer.is_success:
            raise _undelivered(f"the slot {slot.name} refused the file ({answer.status_code})")
        return OutputFile(slot=slot.name, **body.told)


def _undelivered(message: str) -> RunFailed:
    return RunFailed("transient", "delivery_failed", message)
