"""A file's bytes: as they come from ComfyUI, and as they are sent."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import httpx

from gpu_server.comfy import ComfyUnavailable
from gpu_server.finish.facts import Facts
from gpu_server.media_types import HEAD, sniff

_CHUNK = 256 * 1024
"""Large pieces: each costs a round through both HTTP stacks, whatever its size."""


class Filter(Protocol):
    """Takes a file piece by piece and gives back what is to be sent of it."""

    facts: Facts
    removed: int
    """Bytes left out; final once it is `settled`."""
    settled: bool
    blocks: bool
    """Until it is settled it is nothing for the event loop."""

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes, return those that are ready."""
        ...

    def end(self) -> bytes:
        """Return what was held back."""
        ...


class Source:
    """A file as ComfyUI hands it over, its first bytes read."""

    def __init__(self, response: httpx.Response, filename: str) -> None:
        encoded = "content-encoding" in response.headers
        length = None if encoded else response.headers.get("content-length")
        self.length = None if length is None else int(length)
        self._rest = response.aiter_bytes(_CHUNK) if encoded else response.aiter_raw(_CHUNK)
        self._filename = filename
        self._first = b""

    async def begin(self) -> None:
        """Read the first bytes: what becomes of the file depends on them."""
        self._first = await self._next()

    @property
    def head(self) -> bytes:
        """The first bytes."""
        return self._first[:HEAD]

    @property
    def media_type(self) -> str:
        """What it is."""
        return sniff(self.head, self._filename)

    async def pieces(self) -> AsyncGenerator[bytes]:
        """All of it; what goes wrong on the way is httpx's own error."""
        first, self._first = self._first, b""
        yield first
        async for piece in self._rest:
            yield piece

    async def through(self, passed: Filter | None, facts: Facts) -> "Body":
        """Send it as it comes, through a filter if one is given. Raises ComfyUnavailable."""
        media_type, length = self.media_type, self.length
        if passed is None:
            return Body(self.pieces(), media_type=media_type, length=length, facts=facts)
        ahead: list[bytes] = []
        piece = self._first
        while piece:
            feed = passed.feed
            ahead.append(await asyncio.to_thread(feed, piece) if passed.blocks else feed(piece))
            piece = b"" if passed.settled else await self._next()
        if not passed.settled:
            ahead.append(passed.end())
        return Body(
            _following(b"".join(ahead), self._rest, passed),
            media_type=media_type,
            length=None if length is None else length - passed.removed,
            facts=passed.facts,
        )

    async def _next(self) -> bytes:
        try:
            return await anext(self._rest, b"")
        except httpx.TransportError as error:
            raise _broke_off(error) from None


class Body:
    """Bytes on their way out, counted and hashed."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        media_type: str,
        length: int | None,
        facts: Facts,
        md5: str | None = None,
    ) -> None:
        self.media_type = media_type
        self.length = length
        """How many there will be, where known."""
        self.facts = facts
        self.md5 = md5
        """Of all of them, where that was asked for."""
        self._pieces = pieces
        self._count = 0
        self._digest = hashlib.sha256()

    @property
    def told(self) -> dict[str, Any]:
        """What an `OutputFile` says of the file, once it is sent."""
        return {
            "media_type": self.media_type,
            "bytes": self._count,
            "sha256": self._digest.hexdigest(),
            "md5": self.md5,
            **asdict(self.facts),
        }

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The bytes, hashed as they pass: a millisecond a piece, less than a thread would cost."""
        async for piece in self._pieces:
            self._digest.update(piece)
            self._count += len(piece)
            yield piece


async def save(pieces: AsyncIterator[bytes], path: Path) -> None:
    """Write to the disk what comes of a file. Raises ComfyUnavailable, OSError."""
    file = await asyncio.to_thread(path.open, "wb")
    try:
        async for piece in pieces:
            await asyncio.to_thread(file.write, piece)
    except httpx.TransportError as error:
        raise _broke_off(error) from None
    finally:
        await asyncio.to_thread(file.close)


async def from_disk(path: Path) -> AsyncGenerator[bytes]:
    """Read a file in pieces."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
    finally:
        await asyncio.to_thread(file.close)


def _broke_off(error: httpx.TransportError) -> ComfyUnavailable:
    return ComfyUnavailable(f"ComfyUI broke off ({type(error).__name__})")


async def _following(
    ahead: bytes, rest: AsyncIterator[bytes], passed: Filter
) -> AsyncGenerator[bytes]:
    yield ahead
    async for piece in rest:
        if out := passed.feed(piece):
            yield out
    if out := passed.end():
        yield out
