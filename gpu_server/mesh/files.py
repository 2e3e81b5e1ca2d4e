"""A mesh from its address into a file, and the finished one into its slot, by stream."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path

import httpx

from gpu_server.addresses import FetchError, origin_of
from gpu_server.fetch import Fetcher
from gpu_server.mesh.calls import INPUT
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import MEDIA_TYPES, MeshOrder
from gpu_server.protocol import Failure, InputFile, OutputFile, Slot
from gpu_server.sending import FIRST_DELAY_S, LONGEST_DELAY_S, NotNow, send

_CHUNK = 1024 * 1024
_FETCH_S = 600
_md5 = partial(hashlib.md5, usedforsecurity=False)

_log = logging.getLogger(__name__)


class NotFetched(Exception):
    """The mesh did not come; `failure` says why, in words for the caller."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.failure = failure


async def fetch(fetcher: Fetcher, file: InputFile, path: Path, *, most: int) -> None:
    """Bring a mesh here; only an address of our own making is trusted.

    Raises NotFetched, MeshError (too large), OSError.
    """
    try:
        fetched = await fetcher.to_path(
            file.url,
            path,
            max_bytes=most,
            timeout_s=_FETCH_S,
            allow_origins={origin_of(file.url)} if file.ours else (),
        )
    except FetchError as error:
        if error.code == "file_too_large":
            raise MeshError("mesh_too_large", f"At most {most} bytes.") from None
        kind = "transient" if error.retryable else "usage"
        message = f"{INPUT}: {error.message}"
        raise NotFetched(Failure(kind=kind, code=error.code, message=message)) from None
    if file.sha256 is not None and fetched.sha256 != file.sha256:
        message = f"{INPUT}: not what was announced"
        raise NotFetched(Failure(kind="transient", code="input_changed", message=message))


async def deliver(
    http: httpx.AsyncClient, work: MeshOrder, slot: Slot, *, faces: int
) -> OutputFile:
    """Bring a finished file into its slot, as often as it takes, until it is cancelled.

    Raises Refused when the slot takes no such file, OSError.
    """
    size, md5 = await asyncio.to_thread(_measured, work.target, hashed=slot.sized)
    media_type, delay, told = MEDIA_TYPES[work.format], FIRST_DELAY_S, ""
    while True:
        digest = hashlib.sha256()
        pieces = _chunks(work.target, digest.update)
        try:
            await send(http, slot, pieces, media_type=media_type, length=size, md5=md5)
        except NotNow as error:
            if str(error) != told:
                _log.warning("slot %s: %s; it is tried again", slot.name, error)
                told = str(error)
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
