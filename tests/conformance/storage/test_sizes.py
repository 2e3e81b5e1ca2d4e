"""Files of every size, of every storage: where parts begin and end, and large ones by stream."""

import hashlib
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from gateway.storage.s3_upload import PART
from tests.conformance.storage.conftest import Place, of_rclone
from tests.conformance.storage.test_storage import HOUR, KEY, content, put, read

MIB = 1024 * 1024
LARGE = 200_000_000
_BLOCK = content(MIB)


async def made(size: int) -> AsyncIterator[bytes]:
    """So many bytes, never all of them in memory; no two blocks are the same."""
    for n in range(0, size, MIB):
        block = n.to_bytes(8, "big") + _BLOCK[8:]
        yield block[: min(MIB, size - n)]


async def digest(chunks: AsyncIterator[bytes]) -> tuple[int, str]:
    size, hashed = 0, hashlib.sha256()
    async for chunk in chunks:
        size += len(chunk)
        hashed.update(chunk)
    return size, hashed.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 5_000_001, PART - 1, PART, PART + 1, 3 * PART + 5])
async def test_what_is_written_is_there_byte_by_byte(place: Place, size: int) -> None:
    written = await place.storage.write(KEY, "video/mp4", made(size))
    expected = await digest(made(size))
    assert (written.bytes, written.sha256) == expected
    assert await digest(place.storage.read(KEY)) == expected
    stored = await place.storage.stat(KEY)
    assert stored is not None
    assert (stored.bytes, stored.media_type) == (size, "video/mp4")


@pytest.mark.parametrize("size", [5_000_001, PART + 1])
async def test_what_is_put_is_there_byte_by_byte(place: Place, size: int) -> None:
    data = content(size)
    assert (await put(place, KEY, data, "video/mp4")).is_success
    assert await read(place, KEY) == data
    stored = await place.storage.stat(KEY)
    assert stored is not None
    assert stored.md5 in {None, hashlib.md5(data).hexdigest()}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 0),
        (0, 1),
        (PART - 1, PART + 1),
        (2 * PART, 3 * PART),
        (3 * PART + 4, 3 * PART + 5),
        (3 * PART, None),
        (3 * PART + 5, None),
        (7, 10 * PART),
        (10 * PART, 11 * PART),
    ],
)
async def test_a_part_of_a_large_file_is_read_exactly(
    place: Place, start: int, end: int | None
) -> None:
    size = 3 * PART + 5
    await place.storage.write(KEY, "video/mp4", made(size))
    whole = b"".join([chunk async for chunk in made(size)])
    assert await read(place, KEY, start, end) == whole[start:end]


async def test_of_an_empty_file_every_part_is_empty(place: Place) -> None:
    await place.storage.write(KEY, "video/mp4", made(0))
    for start, end in ((0, None), (0, 0), (0, 5), (5, 9)):
        assert await read(place, KEY, start, end) == b""


@pytest.mark.timeout(600)
async def test_200_mb_go_in_and_out_and_memory_stays_flat(place: Place) -> None:
    tracemalloc.start()
    try:
        await place.storage.write(KEY, "video/mp4", made(LARGE))
        found = await digest(place.storage.read(KEY))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == await digest(made(LARGE))
    assert peak < 64 * MIB


@of_rclone
async def test_a_large_file_leaves_by_its_link_too(place: Place) -> None:
    await place.storage.write(KEY, "video/mp4", made(LARGE // 4))
    async with place.http.stream("GET", place.storage.link(KEY, HOUR)) as answer:
        assert answer.headers["content-length"] == str(LARGE // 4)
        assert await digest(answer.aiter_bytes()) == await digest(made(LARGE // 4))
