"""The files a run reads: from their addresses into ComfyUI's input folder, pictures looked at."""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO

from gpu_server.comfy import ComfyClient, RunFailed
from gpu_server.fetch import CHUNK, Fetcher, FetchError
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
    "model/gltf-binary": ".glb",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
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

    def __init__(self, comfy: ComfyClient, fetcher: Fetcher) -> None:
        self._comfy = comfy
        self._fetcher = fetcher

    async def upload(
        self, run_id: str, request: RunRequest, workflow: Workflow, *, trusted: Collection[str]
    ) -> Uploads:
        """Upload a run's files under names that never hold a caller's string.

        Raises RunFailed, its message `<param>: <why>`; `param` is `<name>.<n>` where it has
        several files.
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
                    trusted=trusted,
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

    async def _picture(self, upload: "_Upload") -> tuple[str, Size]:
        """Keep a picture here until it is known to be one: ComfyUI would only say it failed."""
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:
            async with self._fetched(upload, MAX_PICTURE_BYTES, _PICTURES_TIMEOUT_S) as chunks:
                async for chunk in chunks:
                    # a large one goes to disk
                    await asyncio.to_thread(kept.write, chunk)
            try:
                picture = await look_at(kept)
            except UnfitPicture as unfit:
                message = f"{upload.param}: {unfit.message}"
                raise RunFailed("usage", unfit.code, message) from None
            laid = await on_white(kept) if upload.on_white else None
            if laid is not None:
                with laid:
                    return await self._sent(upload, "image/png", _pieces(laid)), picture.size
            kept.seek(0)
            return await self._sent(upload, picture.media_type, _pieces(kept)), picture.size

    async def _other(self, upload: "_Upload") -> tuple[str, None]:
        async with self._fetched(upload, MAX_INPUT_BYTES, _TIMEOUT_S) as chunks:
            return await self._sent(upload, upload.file.media_type, chunks), None

    async def _sent(self, upload: "_Upload", media_type: str, chunks: AsyncIterator[bytes]) -> str:
        return await self._comfy.upload(
            name=f"{upload.stem}{_ENDINGS.get(media_type, '.bin')}",
            subfolder=upload.folder,
            media_type=media_type,
            chunks=chunks,
        )

    @asynccontextmanager
    async def _fetched(
        self, upload: "_Upload", max_bytes: int, within_s: float
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Fetch a file; its bytes are compared with what was announced."""
        file, param = upload.file, upload.param
        opened = self._fetcher.open(
            file.url,
            max_bytes=max_bytes,
            timeout_s=max(1.0, upload.began + within_s - time.monotonic()),
            allow_origins=upload.trusted,
        )
        try:
            async with opened as download:
                yield _verified(download.chunks, file.sha256, param)
        except FetchError as error:
            kind = "transient" if error.retryable else "usage"
            raise RunFailed(kind, error.code, f"{param}: {error.message}") from None


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
    on_white: bool
    """Its transparent parts become white."""


async def _pieces(kept: IO[bytes]) -> AsyncGenerator[bytes]:
    while piece := await asyncio.to_thread(kept.read, CHUNK):
        yield piece


async def _verified(
    chunks: AsyncIterator[bytes], sha256: str | None, param: str
) -> AsyncGenerator[bytes]:
    digest, first = hashlib.sha256(), True
    async for chunk in chunks:
        if first and chunk.lstrip().startswith(b"<"):
            # ComfyUI would only say that a node failed
            message = f"{param}: the address leads to a web page or other text, not to such a file"
            raise RunFailed("usage", "unreadable_input", message)
        first = False
        digest.update(chunk)
        yield chunk
    if sha256 is not None and digest.hexdigest() != sha256:
        # Raised before the form is closed: ComfyUI drops the unfinished upload.
        raise RunFailed(
            "transient", "input_changed", f"{param}: the file is not what was announced"
        )
