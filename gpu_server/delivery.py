"""One output file from ComfyUI into its slot: streamed, hashed on the way, tried again."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from http import HTTPStatus

import httpx

from gpu_server.comfy import ComfyClient, ComfyFile, ComfyUnavailable, RunFailed
from gpu_server.fetch import tls_context
from gpu_server.media_types import HEAD, picture_size, sniff
from gpu_server.protocol import OutputFile, Slot
from gpu_server.run import Slots

_log = logging.getLogger(__name__)

_CHUNK = 256 * 1024
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 3.0
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class _TryAgain(Exception):
    """This attempt failed in a way the next one may not."""


class Deliverer:
    """Streams files from ComfyUI's `/view` into slots over one kept connection pool."""

    def __init__(self, comfy: ComfyClient) -> None:
        self._comfy = comfy
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
        """Bring a file into its slot, however long the slot or ComfyUI is away meanwhile.

        Args:
            file: a file ComfyUI has just produced.
            name: the slot it goes into.
            slots: its address, looked up at each attempt; a new one is tried at once.
            within_s: how long it is tried; the GPU time in the file is worth the patience.

        Raises:
            RunFailed: (transient) the slot refuses it, ComfyUI lost it, or the time is over.
        """
        until, delay, told = time.monotonic() + within_s, _FIRST_DELAY_S, ""
        while True:
            renewed = slots.renewed
            try:
                return await self._attempt(file, slots[name])
            except (_TryAgain, ComfyUnavailable) as error:
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

    async def _attempt(self, file: ComfyFile, slot: Slot) -> OutputFile:
        async with self._comfy.view(file) as source:
            body = await _Body.start(source)
            media_type = sniff(body.head, file.filename)
            headers = {"content-type": media_type}
            if body.length is not None:
                headers["content-length"] = body.length
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
        size = picture_size(body.head) or (None, None)
        return OutputFile(
            slot=slot.name,
            media_type=media_type,
            bytes=body.count,
            sha256=body.digest.hexdigest(),
            width=size[0],
            height=size[1],
        )


def _undelivered(message: str) -> RunFailed:
    return RunFailed("transient", "delivery_failed", message)


class _Body:
    """A response's bytes passed on, counted and hashed."""

    def __init__(self, first: bytes, rest: AsyncIterator[bytes], length: str | None) -> None:
        self.head = first[:HEAD]
        self.length = length
        self.count = 0
        self.digest = hashlib.sha256()
        self._first = first
        self._rest = rest

    @classmethod
    async def start(cls, source: httpx.Response) -> "_Body":
        """Read the first bytes: the request's headers depend on them."""
        encoded = "content-encoding" in source.headers
        # large pieces: each costs a round through both HTTP stacks, whatever its size
        rest = source.aiter_bytes(_CHUNK) if encoded else source.aiter_raw(_CHUNK)
        try:
            first = await anext(rest, b"")
        except httpx.TransportError as error:
            raise _TryAgain(f"ComfyUI broke off ({type(error).__name__})") from None
        length = None if encoded else source.headers.get("content-length")
        return cls(first, rest, length)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The bytes, hashed as they pass: a millisecond a piece, less than a thread would cost."""
        yield self._pass(self._first)
        self._first = b""
        async for chunk in self._rest:
            yield self._pass(chunk)

    def _pass(self, chunk: bytes) -> bytes:
        self.digest.update(chunk)
        self.count += len(chunk)
        return chunk
