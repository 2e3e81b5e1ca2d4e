"""A mesh from its address into a file, and the finished one into its slot, by stream."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path

import httpx

from gateway.backends.base import RunFailed
from gateway.mesh.errors import MeshError
from gateway.mesh.order import MEDIA_TYPES, MeshOrder
from gateway.storage.disk import DiskSpace
from gpu_server.addresses import FetchError, FetchRules, origin_of
from gpu_server.fetch import Fetcher
from gpu_server.protocol import Failure, FailureKind, InputFile, OutputFile, Slot
from gpu_server.sending import FIRST_DELAY_S, LONGEST_DELAY_S, NotNow, Refused, send

_CHUNK = 1024 * 1024
_md5 = partial(hashlib.md5, usedforsecurity=False)

_log = logging.getLogger(__name__)


class Transfers:
    """Moves files for the gateway's own processes.

    `most` is the largest that is fetched. Links and slots that begin with `public`, this gateway's
    address for services elsewhere, are taken from `local`: it may not reach itself from outside.
    """

    def __init__(
        self,
        *,
        http: httpx.AsyncClient,
        disk: DiskSpace,
        most: int,
        public: str,
        local: str,
        rules: FetchRules | None = None,
    ) -> None:
        self._http = http
        self._disk = disk
        self._most = most
        self._public = f"{public.rstrip('/')}/"
        self._local = f"{local.rstrip('/')}/"
        self._fetcher = Fetcher(rules=rules)

    async def close(self) -> None:
        """Close every connection of its own."""
        await self._fetcher.__aexit__()

    async def fetch(self, file: InputFile, path: Path) -> None:
        """Bring a file here; only addresses the gateway has made are trusted.

        Raises RunFailed, MeshError (too large), OSError.
        """
        if (short := await self._disk.shortage()) is not None:
            raise _failed("transient", "disk_full", short)
        url = self._nearest(file.url)
        try:
            fetched = await self._fetcher.to_path(
                url,
                path,
                max_bytes=self._most,
                timeout_s=600,
                allow_origins={origin_of(url)} if file.ours else (),
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
        size, md5 = await asyncio.to_thread(_measured, work.target, hashed=slot.sized)
        media_type, delay, told = MEDIA_TYPES[work.format], FIRST_DELAY_S, ""
        nearest = slot.model_copy(update={"url": self._nearest(slot.url)})
        while True:
            digest = hashlib.sha256()
            pieces = _chunks(work.target, digest.update)
            try:
                await send(self._http, nearest, pieces, media_type=media_type, length=size, md5=md5)
            except NotNow as error:
                if str(error) != told:
                    _log.warning("slot %s: %s; it is tried again", slot.name, error)
                    told = str(error)
            except Refused as refused:
                raise RunFailed(refused.failure, executed=False) from None
            else:
                return OutputFile(
                    slot=slot.name,
                    media_type=media_type,
                    bytes=size,
                    sha256=digest.hexdigest(),
                    faces=faces,
                    md5=md5,
                )
            await asyncio.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY_S)

    def _nearest(self, url: str) -> str:
        ours = url.startswith(self._public)
        return self._local + url[len(self._public) :] if ours else url


def _measured(path: Path, *, hashed: bool) -> tuple[int, str | None]:
    """Its length, and its MD5 where that is wanted."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, _md5).hexdigest() if hashed else None
        return path.stat().st_size, digest


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
