"""A file on its way into storage: its first bytes, its length, its hash, and a copy to look at."""

import asyncio
import errno
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from gateway.errors import StorageFull
from gateway.thumbnails.scratch import Scratch

T = TypeVar("T")
_PIECE = 512 * 1024


class Passing:
    """Lets the pieces of a file through and remembers what they were together."""

    def __init__(self, path: Path | None, copy: BinaryIO | None) -> None:
        self.bytes = 0
        self.path = path
        """Where the copy is; whole once the last piece has passed. None: none is made."""
        self._copy = copy
        self._hash = hashlib.sha256()
        self._held: list[bytes] = []
        self._size = 0
        self._writing: asyncio.Task[None] | None = None

    @property
    def sha256(self) -> str:
        """Hash of what has passed; once the last piece has."""
        return self._hash.hexdigest()

    async def through(self, head: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Give on the first bytes and the rest. Raises StorageFull."""
        await self._keep(head)
        yield head
        async for piece in rest:
            await self._keep(piece)
            yield piece
        await self._flush()

    async def settled(self) -> None:
        """Return once no thread writes any more: a cancelled request leaves its last one at it."""
        if self._writing is not None:
            await asyncio.wait({self._writing})
            # told already, or to nobody
            self._writing.exception()

    async def _keep(self, piece: bytes) -> None:
        self.bytes += len(piece)
        self._held.append(piece)
        self._size += len(piece)
        if self._size >= _PIECE:
            await self._flush()

    async def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        self._writing = asyncio.create_task(_on_disk(self._write, held))
        await asyncio.shield(self._writing)

    def _write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self._hash.update(piece)
            if self._copy is not None:
                self._copy.write(piece)
        if self._copy is not None:
            # another process reads it
            self._copy.flush()


@asynccontextmanager
async def passing(scratch: Scratch | None) -> AsyncGenerator[Passing]:
    """Make one; with a folder it keeps a copy of what passes, for as long as this is open.

    Raises StorageFull.
    """
    if scratch is None:
        made = Passing(None, None)
        try:
            yield made
        finally:
            await made.settled()
        return
    async with scratch.file() as path:
        file = await _on_disk(lambda: path.open("xb"))
        made = Passing(path, file)
        try:
            yield made
        finally:
            await made.settled()
            await asyncio.to_thread(_closed, file)


async def beginning(chunks: AsyncIterator[bytes], least: int) -> bytes:
    """Read the first bytes, `least` of them unless there are fewer; `chunks` goes on behind."""
    head = b""
    async for piece in chunks:
        head += piece
        if len(head) >= least:
            break
    return head


async def _on_disk(work: Callable[..., T], *given: object) -> T:
    try:
        return await asyncio.to_thread(work, *given)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull("The disk is full: the file was not kept.") from error
        raise


def _closed(file: BinaryIO) -> None:
    with suppress(OSError):  # a full disk does not take what is still held, and need not
        file.close()
