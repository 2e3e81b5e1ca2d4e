"""Bytes on their way out of storage."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def closing(pieces: AsyncIterator[bytes]) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Let go of the file or connection behind the pieces, also when not all were wanted."""
    try:
        yield pieces
    finally:
        # left to the garbage collector, a connection would stay open for as long as it likes
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
