"""Many stored files as one ZIP archive, made while it is sent.

Entries are stored as they are (pictures and videos are compressed already), their sizes behind
them, because nothing is read before it is sent. What is held is one piece of one file, and the
name of every file for the directory at the end.
"""

import io
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.storage.base import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file: its name in the archive, where it lies, when it was made."""

    name: str
    key: str
    at: datetime


class _Outlet(io.RawIOBase):
    """Takes what the archive writes until it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: "bytes | bytearray | memoryview", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  # zipfile writes nothing else
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


async def archive(storage: Storage, entries: AsyncIterator[Entry]) -> AsyncGenerator[bytes]:
    """The archive in pieces; a file that is gone is left out. Raises StorageError."""
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, "w", zipfile.ZIP_STORED) as made:
        async for entry in entries:
            pieces = storage.read(entry.key)
            try:
                # an archive is closed only once its entries are
                async with aclosing(_entry(made, outlet, entry, pieces)) as parts:
                    async for part in parts:
                        yield part
            except KeyError:
                continue
            finally:
                if isinstance(pieces, AsyncGenerator):
                    # a reader that leaves must not keep the file open until it is collected
                    await pieces.aclose()
    yield outlet.take()


async def _entry(
    made: zipfile.ZipFile, outlet: _Outlet, entry: Entry, pieces: AsyncIterator[bytes]
) -> AsyncGenerator[bytes]:
    # read before its header is written: a file that is gone has no entry
    piece = await anext(pieces, b"")
    info = zipfile.ZipInfo(entry.name, entry.at.astimezone(UTC).timetuple()[:6])
    # whether it is larger than 4 GiB shows only once it has been sent
    with made.open(info, "w", force_zip64=True) as file:
        while piece:
            file.write(piece)
            yield outlet.take()
            piece = await anext(pieces, b"")
