"""A mesh from its address into a file, and the finished one into its slot, by stream."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from http import HTTPStatus
from pathlib import Path

import httpx

from gateway.backends.base import RunFailed
from gateway.mesh.errors import MeshError
from gateway.mesh.order import MEDIA_TYPES, MeshOrder
from gateway.storage.disk import DiskSpace
from gpu_server.fetch import Fetcher, FetchError, origin_of
from gpu_server.protocol import Failure, FailureKind, InputFile, OutputFile, Slot

_CHUNK = 1024 * 1024
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 3.0
_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})

_log = logging.getLogger(__name__)


class Transfers:
    """Moves files for the gateway's own processes.

    `most` is the largest that is fetched. Links and slots that begin with `public`, this gateway's
    address for services elsewhere, are taken from `local`: it may not reach itself from outside.
    """

    def __init__(
        self, *, http: httpx.AsyncClient, disk: DiskSpace, most: int, public: str, local: str
    ) -> None:
        self._http = http
        self._disk = disk
        self._most = most
        self._public = f"{public.rstrip('/')}/"
        self._local = f"{local.rstrip('/')}/"
        self._fetcher = Fetcher()

    async def close(self) -> None:
        """Close every connection of its own."""
        await self._fetcher.__aexit__()

    async def fetch(self, file: InputFile, path: Path) -> None:
        """Bring a file here; only this gateway's own links are trusted.

        Raises RunFailed, MeshError (too large), OSError.
        """
        if (short := await self._disk.shortage()) is not None:
            raise _failed("transient", "disk_full", short)
        try:
            fetched = await self._fetcher.to_path(
                self._nearest(file.url),
                path,
                max_bytes=self._most,
                timeout_s=600,
                allow_origins={origin_of(self._local)},
            )
        except FetchError as error:
            if error.code == "file_too_large":
                raise MeshError("mesh_too_large", f"At most {self._most} bytes.") from None
            kind = "transient" if error.retryable else "usage"
            message = f"model_url: {error.message}"
            failure = Failure(kind=kind, code=error.code, message=message)
            raise RunFailed(failure, executed=False) from None
        if file.sha256 is not None and fetched.sha256 != file.sha256:
            raise _failed("transient", "input_changed", "model_url: not what was announced")

    async def deliver(self, work: MeshOrder, slot: Slot, *, faces: int) -> OutputFile:
        """Bring a finished file into its slot, as often as it takes, until it is cancelled.

        Raises RunFailed when the slot refuses it, OSError.
        """
        size = (await asyncio.to_thread(work.target.stat)).st_size
        media_type, delay = MEDIA_TYPES[work.format], _FIRST_DELAY_S
        told = ""
        while True:
            digest = hashlib.sha256()
            try:
                answer = await self._http.put(
                    self._nearest(slot.url),
                    content=_chunks(work.target, digest.update),
                    headers={"content-type": media_type, "content-length": str(size)},
                    timeout=httpx.Timeout(60, connect=5),
                )
            except httpx.TransportError as error:
                answer, reason = None, f"the transfer broke off ({type(error).__name__})"
            else:
                reason = f"the slot answered {answer.status_code}"
            if answer is not None and answer.is_success:
                return OutputFile(
                    slot=slot.name,
                    media_type=media_type,
                    bytes=size,
                    sha256=digest.hexdigest(),
                    faces=faces,
                )
            if answer is not None and not (answer.is_server_error or answer.status_code in _AGAIN):
                message = f"The slot refused the file ({answer.status_code})."
                raise _failed("transient", "delivery_failed", message)
            if reason != told:
                _log.warning("slot %s: %s; it is tried again", slot.name, reason)
                told = reason
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY_S)

    def _nearest(self, url: str) -> str:
        ours = url.startswith(self._public)
        return self._local + url[len(self._public) :] if ours else url


async def _chunks(path: Path, passing: Callable[[bytes], None]) -> AsyncGenerator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            passing(chunk)
            yield chunk
    finally:
        file.close()


def _failed(kind: FailureKind, code: str, message: str) -> RunFailed:
    return RunFailed(Failure(kind=kind, code=code, message=message), executed=False)
