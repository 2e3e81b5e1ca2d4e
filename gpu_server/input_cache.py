"""Files that runs have read, kept by their SHA-256: the next run that reads one fetches nothing.

A cache never fails a run: where the disk does not play along, files are fetched as if there were
none.
"""

import asyncio
import logging
import os
import re
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

_log = logging.getLogger(__name__)

UNUSED_S = 24 * 3600
"""Seconds a file stays that nobody reads: callers delete theirs, and it is not to outlive that."""
_NAME = re.compile(r"([0-9a-f]{64})\.([0-9]{1,15})")


@dataclass(slots=True)
class _Kept:
    """A file of the cache."""

    size: int
    used: float
    """By the wall clock: it is the file's own time, which a restart reads again."""


class InputCache:
    """At most so many bytes of files in a folder; those unused for longest give way.

    A file's name is its hash and its size. One process per folder; what another does to the files
    costs a fetch and nothing else.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most = most_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._bytes = 0

    async def open(self) -> None:
        """Find what is there; remove what a killed process left, and what is too much by now."""
        try:
            self._kept = await asyncio.to_thread(_found, self._folder)
        except OSError as error:
            _log.warning("inputs are not kept: %s: %s", self._folder, error.strerror)
            self._most = 0
            return
        self._bytes = sum(kept.size for kept in self._kept.values())
        await self.sweep()

    @property
    def size(self) -> int:
        """Bytes of all its files together."""
        return self._bytes

    async def get(self, sha256: str) -> IO[bytes] | None:
        """Open a file, which counts as used now; whoever asked closes it.

        It is still read to its end when the cache gives it up meanwhile. Its size is what it was,
        its content is for the reader to compare.
        """
        kept = self._kept.get(sha256)
        if kept is None:
            return None
        try:
            file = await asyncio.to_thread(_opened, self._path(sha256, kept.size), kept.size)
        except OSError as error:
            _log.warning("a kept input can't be read and is dropped: %s", error)
            await self.drop(sha256)
            return None
        kept.used = time.time()
        if sha256 in self._kept:
            self._kept.move_to_end(sha256)
        return file

    async def drop(self, sha256: str) -> None:
        """Remove a file, if it is there."""
        kept = self._kept.pop(sha256, None)
        if kept is not None:
            self._bytes -= kept.size
            await asyncio.to_thread(_removed, self._path(sha256, kept.size))

    async def sweep(self) -> None:
        """Remove what nobody has read for a day, and what is too much."""
        stale = time.time() - UNUSED_S
        while self._kept:
            sha256, kept = next(iter(self._kept.items()))
            if kept.used > stale and self._bytes <= self._most:
                return
            await self.drop(sha256)

    @asynccontextmanager
    async def incoming(self) -> AsyncGenerator["Incoming"]:
        """Begin to write a file; nothing stays of it unless it is kept."""
        path = self._folder / f"{uuid4().hex}.part"
        incoming = Incoming(path, self._most)
        try:
            yield incoming
        finally:
            await incoming.close()

    async def keep(self, incoming: "Incoming", sha256: str) -> None:
        """Put a file that was written to its end into its place, by its hash."""
        size = await incoming.finish()
        if size is None or sha256 in self._kept:
            return
        try:
            await asyncio.to_thread(incoming.path.replace, self._path(sha256, size))
        except OSError as error:
            _log.warning("an input is not kept: %s", error.strerror)
            return
        # two runs may have brought the same one
        if (before := self._kept.pop(sha256, None)) is not None:
            self._bytes -= before.size
        self._kept[sha256] = _Kept(size=size, used=time.time())
        self._bytes += size
        await self.sweep()

    def _path(self, sha256: str, size: int) -> Path:
        return self._folder / f"{sha256}.{size}"


class Incoming:
    """A file on its way into the cache; it is given up at the first trouble, and never raises."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self._most = most
        self._size = 0
        self._file: IO[bytes] | None = None
        self._given_up = most == 0

    async def write(self, chunk: bytes) -> None:
        """Add to it."""
        self._size += len(chunk)
        if self._size > self._most:
            await self._give_up()
        if self._given_up:
            return
        try:
            if self._file is None:
                self._file = await asyncio.to_thread(self.path.open, "xb")
            await asyncio.to_thread(self._file.write, chunk)
        except OSError as error:
            _log.warning("an input is not kept: %s", error.strerror)
            await self._give_up()

    async def finish(self) -> int | None:
        """Close it; its size, or None where there is nothing to keep."""
        file, self._file = self._file, None
        if file is None:
            return None
        try:
            await asyncio.to_thread(file.close)
        except OSError as error:
            _log.warning("an input is not kept: %s", error.strerror)
            return None
        return self._size

    async def close(self) -> None:
        """Leave nothing behind, unless it was moved to its place."""
        if not self._given_up:
            await self._give_up()

    async def _give_up(self) -> None:
        if self._given_up:
            return
        self._given_up = True
        # at once: a run may be cancelled while it is waited for
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        _removed(self.path)


def _found(folder: Path) -> OrderedDict[str, _Kept]:
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, _Kept]] = []
    for entry in folder.iterdir():
        status = entry.stat()
        named = _NAME.fullmatch(entry.name)
        if named is None or int(named[2]) != status.st_size:
            _removed(entry)
        else:
            found.append((named[1], _Kept(size=status.st_size, used=status.st_mtime)))
    return OrderedDict(sorted(found, key=lambda item: item[1].used))


def _opened(path: Path, size: int) -> IO[bytes]:
    # so that a restart knows what was used last
    os.utime(path)
    file = path.open("rb")
    there = os.fstat(file.fileno()).st_size
    if there != size:
        file.close()
        raise OSError(f"it has {there} bytes, not {size}")
    return file


def _removed(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s can't be removed: %s", path.name, error.strerror)
