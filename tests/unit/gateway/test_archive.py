"""ZIP archives made while they are sent."""

import io
import zipfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from gateway.api.archive import Entry, archive
from gateway.storage.base import StorageError

PIECE = bytes(range(256)) * 4096
AT = datetime(2026, 3, 9, 12, 30, 8, tzinfo=UTC)
SMALL_CHANGE = 4096
"""Bytes a header or a directory entry may take at most."""


class CountingStorage:
    """Files of so many pieces; knows what was read and which files are open."""

    def __init__(self, pieces: dict[str, int], *, breaks: str | None = None) -> None:
        self.pieces = pieces
        self.breaks = breaks
        self.read_bytes = 0
        self.open: set[str] = set()

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        assert (start, end) == (0, None)
        if key not in self.pieces:
            raise KeyError(key)
        self.open.add(key)
        try:
            for _ in range(self.pieces[key]):
                self.read_bytes += len(PIECE)
                yield PIECE
            if key == self.breaks:
                raise StorageError("away")
        finally:
            self.open.discard(key)


async def entries(*names: str) -> AsyncIterator[Entry]:
    for name in names:
        yield Entry(name=f"0/{name}", key=name, at=AT)


async def whole(storage: CountingStorage, *names: str) -> zipfile.ZipFile:
    made = b"".join([part async for part in archive(storage, entries(*names))])
    return zipfile.ZipFile(io.BytesIO(made))


async def test_the_archive_holds_every_file_as_it_is() -> None:
    made = await whole(
        CountingStorage({"a.png": 1, "b.png": 3, "empty.txt": 0}), *["a.png", "b.png", "empty.txt"]
    )
    assert made.testzip() is None
    assert made.namelist() == ["0/a.png", "0/b.png", "0/empty.txt"]
    assert made.read("0/a.png") == PIECE
    assert made.read("0/b.png") == PIECE * 3
    assert made.read("0/empty.txt") == b""
    assert all(info.compress_type == zipfile.ZIP_STORED for info in made.infolist())
    assert made.infolist()[0].date_time == (2026, 3, 9, 12, 30, 8)


async def test_a_file_that_is_gone_is_left_out() -> None:
    made = await whole(CountingStorage({"a.png": 1, "c.png": 1}), "a.png", "b.png", "c.png")
    assert made.testzip() is None
    assert made.namelist() == ["0/a.png", "0/c.png"]


async def test_an_archive_of_nothing_is_an_archive() -> None:
    assert (await whole(CountingStorage({}))).namelist() == []


async def test_no_more_than_one_piece_is_held_however_large_the_archive() -> None:
    files = {f"{n}.png": 40 for n in range(8)}
    storage = CountingStorage(files)
    sent = 0
    async for part in archive(storage, entries(*files)):
        assert len(part) <= len(PIECE) + SMALL_CHANGE
        sent += len(part)
        held = storage.read_bytes - sent
        assert held <= len(PIECE)
        assert len(storage.open) <= 1
    assert sent > 300 * len(PIECE)
    assert storage.read_bytes == 320 * len(PIECE)


async def test_a_reader_that_leaves_ends_the_reading_and_closes_the_file() -> None:
    storage = CountingStorage({"a.png": 1000})
    parts = archive(storage, entries("a.png"))
    await anext(parts)
    assert storage.open == {"a.png"}
    await parts.aclose()
    assert storage.open == set()
    assert storage.read_bytes <= 2 * len(PIECE)


async def test_a_file_that_breaks_off_breaks_the_archive_off() -> None:
    storage = CountingStorage({"a.png": 2}, breaks="a.png")
    with pytest.raises(StorageError):
        await whole(storage, "a.png")
