"""The files a run reads: from their addresses into ComfyUI's input folder, by stream."""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection

from gpu_server.comfy import ComfyClient, RunFailed
from gpu_server.fetch import Fetcher, FetchError
from gpu_server.protocol import InputFile

MAX_INPUT_BYTES = 2 * 1024**3
_TIMEOUT_S = 600

_ENDINGS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
}


class Uploader:
    """Streams a run's inputs from their addresses into ComfyUI."""

    def __init__(self, comfy: ComfyClient, fetcher: Fetcher) -> None:
        self._comfy = comfy
        self._fetcher = fetcher

    async def upload(
        self,
        run_id: str,
        param: str,
        file: InputFile,
        *,
        place: tuple[int, int],
        trusted: Collection[str],
    ) -> str:
        """Upload one file and return its name in ComfyUI, which never holds a caller's string.

        `place` counts the parameters with files, and the files of this one. What goes wrong is
        told as `<param>: <why>`; `param` is `<name>.<n>` where it has several files.
        """
        name = f"{place[0]}-{place[1]}{_ENDINGS.get(file.media_type, '.bin')}"
        opened = self._fetcher.open(
            file.url, max_bytes=MAX_INPUT_BYTES, timeout_s=_TIMEOUT_S, allow_origins=trusted
        )
        try:
            async with opened as download:
                return await self._comfy.upload(
                    name=name,
                    subfolder=f"jobs/{run_id}",
                    media_type=file.media_type,
                    chunks=_verified(download.chunks, file.sha256, param),
                )
        except FetchError as error:
            kind = "transient" if error.retryable else "usage"
            raise RunFailed(kind, error.code, f"{param}: {error.message}") from None


async def _verified(
    chunks: AsyncIterator[bytes], sha256: str | None, param: str
) -> AsyncGenerator[bytes]:
    digest, first = hashlib.sha256(), True
    async for chunk in chunks:
        if first and chunk.lstrip().startswith(b"<"):
            # ComfyUI would only say that a node failed
            raise RunFailed(
                "usage", "unreadable_input", f"{param}: the address leads to a web page, not a file"
            )
        first = False
        digest.update(chunk)
        yield chunk
    if sha256 is not None and digest.hexdigest() != sha256:
        # Raised before the form is closed: ComfyUI drops the unfinished upload.
        raise RunFailed(
            "transient", "input_changed", f"{param}: the file is not what was announced"
        )
