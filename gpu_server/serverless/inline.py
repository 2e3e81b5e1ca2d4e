"""Files that come inside a plain call, as `data:` addresses."""

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from urllib.parse import unquote_to_bytes

from gpu_server.addresses import FetchError
from gpu_server.fetch import Download, Fetcher

_SCHEME = "data:"


class InlineFetcher(Fetcher):
    """A fetcher that takes `data:` addresses too: RunPod bounds a call to 10 MB before it comes."""

    @asynccontextmanager
    async def open(
        self, url: str, *, max_bytes: int, timeout_s: float, allow_origins: Collection[str] = ()
    ) -> AsyncGenerator[Download]:
        """Start a download, or read what the address itself holds. Raises FetchError."""
        if url[: len(_SCHEME)].lower() != _SCHEME:
            opened = super().open(
                url, max_bytes=max_bytes, timeout_s=timeout_s, allow_origins=allow_origins
            )
            async with opened as download:
                yield download
            return
        media_type, content = _read(url)
        if len(content) > max_bytes:
            raise FetchError("file_too_large", f"the file is larger than {max_bytes} bytes")
        yield Download(media_type=media_type, size=len(content), chunks=_pieces(content))


def media_type_of(url: str) -> str | None:
    """Read the media type off a `data:` address; None for any other."""
    if url[: len(_SCHEME)].lower() != _SCHEME:
        return None
    return url[len(_SCHEME) :].partition(",")[0].partition(";")[0].strip().lower() or None


def _read(url: str) -> tuple[str | None, bytes]:
    head, comma, body = url[len(_SCHEME) :].partition(",")
    if not comma:
        raise FetchError("url_refused", "not a valid data: address")
    raw = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return media_type_of(url), raw
    try:
        return media_type_of(url), base64.b64decode(raw, validate=True)
    except binascii.Error:
        raise FetchError("url_refused", "the data: address is no valid base64") from None


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content
