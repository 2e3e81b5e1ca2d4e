"""The files a run reads: from their addresses into ComfyUI's input folder, pictures looked at."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from gpu_server.addresses import FetchError, origin_of
from gpu_server.comfy import ComfyClient, RunFailed
from gpu_server.fetch import CHUNK, Fetcher
from gpu_server.input_cache import Incoming, InputCache
from gpu_server.media_types import HEAD, mesh_damage, sniff
from gpu_server.protocol import InputFile, RunRequest
from gpu_server.workflow import Size, UnfitPicture, Workflow, look_at, on_white

MAX_INPUT_BYTES = 2 * 1024**3
MAX_PICTURE_BYTES = 512 * 1024**2
_TIMEOUT_S = 600
_PICTURES_TIMEOUT_S = 150
"""For all of a run's: while they come, the run holds a place that another could have."""
_IN_MEMORY = 8 * 1024**2

_ENDINGS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "video/x-matroska": ".mkv",
    "model/gltf-binary": ".glb",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
}


class _Kind(NamedTuple):
    """What files of a kind are."""

    media_types: frozenset[str]
    words: str


_NEEDED = {
    "video": _Kind(
        frozenset({"video/mp4", "video/quicktime", "video/webm", "video/x-matroska"}),
        "a video (MP4, MOV or WebM)",
    ),
    "model": _Kind(frozenset({"model/gltf-binary"}), "a mesh (GLB)"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploads:
    """A run's files in ComfyUI, in the order of the call."""

    names: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """By parameter, as ComfyUI calls them."""
    sizes: dict[str, list[Size | None]] = field(default_factory=dict[str, list[Size | None]])
    """Of those that are pictures."""


class Uploader:
    """Brings a run's inputs from their addresses into ComfyUI."""

    def __init__(
        self,
        comfy: ComfyClient,
        fetcher: Fetcher,
        *,
        cache: InputCache | None = None,
        gateway: str | None = None,
    ) -> None:
        self._comfy = comfy
        self._fetcher = fetcher
        self._cache = cache
        self._gateway = {origin_of(gateway)} if gateway is not None else set[str]()

    async def upload(
        self, run_id: str, request: RunRequest, workflow: Workflow, *, trusted: Collection[str]
    ) -> Uploads:
        """Upload a run's files under names that never hold a caller's string.

        `trusted` are the origins of the run's slots: a former gateway does not say which addresses
        are its own. Raises RunFailed, its message `<param>: <why>`; `param` is `<name>.<n>` where
        it has several files.
        """
        done = Uploads()
        params = workflow.manifest.params
        pictures = {name for name, param in params.items() if param.is_picture}
        white = {name for name, param in params.items() if param.background == "white"}
        began = time.monotonic()
        for i, (name, files) in enumerate(request.inputs.items()):
            done.names[name], done.sizes[name] = [], []
            for n, file in enumerate(files):
                upload = _Upload(
                    folder=f"jobs/{run_id}",
                    stem=f"{i}-{n}",
                    param=name if len(files) == 1 else f"{name}.{n}",
                    file=file,
                    began=began,
                    trusted=self._trusted(file, trusted),
                    kind=params[name].upload if name in params else None,
                    on_white=name in white,
                )
                way = self._picture if name in pictures else self._other
                uploaded, size = await way(upload)
                done.names[name].append(uploaded)
                done.sizes[name].append(size)
        for misfit in workflow.misfits(request.params, done.sizes):
            several = len(request.inputs[misfit.param]) > 1
            place = f"{misfit.param}.{misfit.number}" if several else misfit.param
            raise RunFailed("usage", misfit.code, f"{place}: {misfit.message}")
        return done

    def _trusted(self, file: InputFile, slots: Collection[str]) -> Collection[str]:
        """Origins an address is fetched from unchecked: its own, where the gateway made it."""
        if file.ours is None:
            return self._gateway.union(slots)
        return {origin_of(file.url)} if file.ours else ()

    async def _picture(self, upload: "_Upload") -> tuple[str, Size]:
        """Keep a picture here until it is known to be one: ComfyUI would only say it failed."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:
            async with self._reading(upload) as reading:
                opened = self._fetched(reading, MAX_PICTURE_BYTES, _PICTURES_TIMEOUT_S)
                async with opened as chunks:
                    async for chunk in chunks:
                        # a large one goes to disk
                        await asyncio.to_thread(kept.write, chunk)
                try:
                    picture = await look_at(kept)
                except UnfitPicture as unfit:
                    message = f"{upload.param}: {unfit.message}"
                    raise RunFailed("usage", unfit.code, message) from None
                await reading.keep()
            laid = await on_white(kept) if upload.on_white else None
            if laid is not None:
                with laid:
                    return await self._sent(upload, "image/png", _pieces(laid)), picture.size
            kept.seek(0)
            return await self._sent(upload, picture.media_type, _pieces(kept)), picture.size

    async def _other(self, upload: "_Upload") -> tuple[str, None]:
        async with self._reading(upload) as reading:
            async with self._fetched(reading, MAX_INPUT_BYTES, _TIMEOUT_S) as chunks:
                begin = await anext(chunks, b"")
                media_type = _media_type(upload, begin)
                name = await self._sent(upload, media_type, _after(begin, chunks))
            await reading.keep()
            return name, None

    async def _sent(self, upload: "_Upload", media_type: str, chunks: AsyncIterator[bytes]) -> str:
        return await self._comfy.upload(
            name=f"{upload.stem}{_ENDINGS.get(media_type, '.bin')}",
            subfolder=upload.folder,
            media_type=media_type,
            chunks=chunks,
        )

    @asynccontextmanager
    async def _reading(self, upload: "_Upload") -> AsyncGenerator["_Reading"]:
        """Open it in the cache, or there a place for what is going to be fetched."""
        cache, sha256 = self._cache, upload.file.sha256
        if cache is None:
            yield _Reading(upload)
            return
        if sha256 is not None and (known := await cache.get(sha256)) is not None:
            with known:
                yield _Reading(upload, cache, known=known)
            return
        async with cache.incoming() as incoming:
            yield _Reading(upload, cache, incoming=incoming)

    @asynccontextmanager
    async def _fetched(
        self, reading: "_Reading", max_bytes: int, within_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Fetch a file; its bytes are compared with its hash.

        Of one that is in the cache only the beginning of the answer is waited for: that it is
        still to be had, as its owner may have deleted it.
        """
        upload = reading.upload
        opened = self._fetcher.open(
            upload.file.url,
            max_bytes=max_bytes,
            timeout_s=max(1.0, upload.began + within_s - time.monotonic()),
            allow_origins=upload.trusted,
        )
        try:
            async with opened as download:
                if reading.known is None:
                    yield reading.verified(download.chunks)
            if reading.known is not None:
                yield reading.verified(_pieces(reading.known))
        except FetchError as error:
            if error.code == "file_not_found":
                await reading.drop()
            kind = "transient" if error.retryable else "usage"
            raise RunFailed(kind, error.code, f"{upload.param}: {error.message}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Upload:
    """One file on its way."""

    folder: str
    stem: str
    param: str
    """As it is named in messages."""
    file: InputFile
    began: float
    """When the first file of the run was asked for, by `time.monotonic`."""
    trusted: Collection[str]
    """Origins that need no check."""
    kind: str | None
    """What its parameter reads: `video`, `model`, …."""
    on_white: bool
    """Its transparent parts become white."""


class _Reading:
    """A file's bytes while they come, and their hash once they are there."""

    def __init__(
        self,
        upload: _Upload,
        cache: InputCache | None = None,
        *,
        known: IO[bytes] | None = None,
        incoming: Incoming | None = None,
    ) -> None:
        self.upload = upload
        self.known = known
        """It was in the cache."""
        self._cache = cache
        self._incoming = incoming
        self._digest = hashlib.sha256()

    async def keep(self) -> None:
        """Let the next run find the file here; to be called once it is known to be good."""
        if self._cache is not None and self._incoming is not None:
            await self._cache.keep(self._incoming, self._digest.hexdigest())

    async def drop(self) -> None:
        """Keep it no longer, if it was in the cache."""
        sha256 = self.upload.file.sha256
        if self._cache is not None and self.known is not None and sha256 is not None:
            await self._cache.drop(sha256)

    async def verified(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Pass the bytes on; raises RunFailed at their end when they are not what was announced."""
        param, sha256, first, size = self.upload.param, self.upload.file.sha256, True, 0
        head = b""
        async for chunk in chunks:
            head, size = head or chunk[:HEAD], size + len(chunk)
            if first and chunk.lstrip().startswith(b"<"):
                # ComfyUI would only say that a node failed
                what = "the address leads to a web page or other text, not to such a file"
                raise RunFailed("usage", "unreadable_input", f"{param}: {what}")
            first = False
            self._digest.update(chunk)
            if self._incoming is not None:
                await self._incoming.write(chunk)
            yield chunk
        damage = mesh_damage(head, size) if self.upload.kind == "model" else None
        if damage is not None:
            raise RunFailed("usage", "damaged_file", f"{param}: {damage}")
        if sha256 is None or self._digest.hexdigest() == sha256:
            return
        # where the disk has changed it the next attempt fetches
        await self.drop()
        # Raised before the form is closed: ComfyUI drops the unfinished upload.
        raise RunFailed(
            "transient", "input_changed", f"{param}: the file is not what was announced"
        )


def _media_type(upload: _Upload, begin: bytes) -> str:
    """Tell what a file is by its first bytes; raises RunFailed where its parameter reads another.

    Sound is left to ComfyUI: not every MP3 can be told from its beginning.
    """
    found = sniff(begin[:HEAD], "")
    needed = _NEEDED.get(upload.kind or "")
    if needed is None or found in needed.media_types:
        return found if found in _ENDINGS else upload.file.media_type
    message = f"{upload.param}: must be {needed.words}; its content is something else"
    raise RunFailed("usage", "wrong_kind", message)


async def _after(begin: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    if begin:
        yield begin
    async for chunk in chunks:
        yield chunk


async def _pieces(kept: IO[bytes]) -> AsyncGenerator[bytes]:
    while piece := await asyncio.to_thread(kept.read, CHUNK):
        yield piece
