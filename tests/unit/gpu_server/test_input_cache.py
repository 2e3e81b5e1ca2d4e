"""Files that runs have read, kept by their content: what is found again, and what gives way."""

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from gpu_server import input_cache
from gpu_server.comfy import ComfyClient, RunFailed
from gpu_server.fetch import Fetcher
from gpu_server.input_cache import UNUSED_S, InputCache
from gpu_server.inputs import Uploader
from gpu_server.protocol import InputFile, RunRequest
from tests.support.hostile_gpu import reading
from tests.support.reading import picture
from tests.support.slots import Slots

MEBIBYTE = 1024 * 1024


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def opened(folder: Path, most: int = MEBIBYTE) -> InputCache:
    cache = InputCache(folder, most)
    await cache.open()
    return cache


async def keep(cache: InputCache, *pieces: bytes) -> str:
    sha256 = sha256_of(b"".join(pieces))
    async with cache.incoming() as incoming:
        for piece in pieces:
            await incoming.write(piece)
        await cache.keep(incoming, sha256)
    return sha256


async def kept(cache: InputCache, sha256: str) -> bytes | None:
    file = await cache.get(sha256)
    if file is None:
        return None
    with file:
        return file.read()


def lying_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_file_is_found_again_by_its_content_also_after_a_restart(tmp_path: Path) -> None:
    cache = await opened(tmp_path / "a" / "b")
    sha256 = await keep(cache, b"one", b"two")
    assert await kept(cache, sha256) == b"onetwo"
    assert await kept(cache, sha256_of(b"three")) is None
    again = await opened(tmp_path / "a" / "b")
    assert (await kept(again, sha256), again.size) == (b"onetwo", 6)


async def test_what_is_unused_for_longest_gives_way(tmp_path: Path) -> None:
    cache = await opened(tmp_path, most=30)
    first, second, third = [await keep(cache, bytes([n]) * 10) for n in range(3)]
    assert await kept(cache, first) is not None
    fourth = await keep(cache, b"d" * 10)
    assert await kept(cache, second) is None
    assert None not in [await kept(cache, sha256) for sha256 in (first, third, fourth)]
    assert (cache.size, len(lying_in(tmp_path))) == (30, 3)


async def test_a_restart_knows_what_was_used_last(tmp_path: Path) -> None:
    cache = await opened(tmp_path, most=30)
    hashes = [await keep(cache, bytes([n]) * 10) for n in range(3)]
    now = time.time()
    for age, sha256 in zip((10, 30, 20), hashes, strict=True):
        os.utime(tmp_path / f"{sha256}.10", (now - age, now - age))
    again = await opened(tmp_path, most=20)
    assert [await kept(again, sha256) is not None for sha256 in hashes] == [True, False, True]


async def test_a_file_that_gives_way_is_still_read_to_its_end(tmp_path: Path) -> None:
    cache = await opened(tmp_path, most=10)
    first = await keep(cache, b"a" * 10)
    file = await cache.get(first)
    assert file is not None
    with file:
        await keep(cache, b"b" * 10)
        assert await kept(cache, first) is None
        assert file.read() == b"a" * 10


async def test_what_nobody_has_read_for_a_day_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = await opened(tmp_path)
    old, young = await keep(cache, b"old"), await keep(cache, b"young")
    now = time.time()
    monkeypatch.setattr(input_cache.time, "time", lambda: now + UNUSED_S / 2)
    assert await kept(cache, young) is not None
    monkeypatch.setattr(input_cache.time, "time", lambda: now + UNUSED_S + 1)
    await cache.sweep()
    assert [await kept(cache, sha256) for sha256 in (old, young)] == [None, b"young"]
    assert len(lying_in(tmp_path)) == 1


async def test_what_a_killed_process_left_is_removed_at_the_start(tmp_path: Path) -> None:
    cache = await opened(tmp_path)
    whole, cut = await keep(cache, b"whole"), await keep(cache, b"cut off")
    (tmp_path / f"{cut}.7").write_bytes(b"cut")
    for name in ("0123.part", "notes.txt", f"{'a' * 64}.9", "x" * 64):
        (tmp_path / name).write_bytes(b"left")
    again = await opened(tmp_path)
    assert lying_in(tmp_path) == {f"{whole}.5"}
    assert again.size == 5


async def test_nothing_stays_of_a_file_that_breaks_off(tmp_path: Path) -> None:
    cache = await opened(tmp_path)

    async def broken_off() -> None:
        async with cache.incoming() as incoming:
            await incoming.write(b"half")
            raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        await broken_off()
    async with cache.incoming() as incoming:
        await incoming.write(b"not kept")
    assert (lying_in(tmp_path), cache.size) == (set(), 0)


async def test_what_is_larger_than_the_cache_and_what_is_empty_is_not_kept(tmp_path: Path) -> None:
    cache = await opened(tmp_path, most=10)
    large, empty = await keep(cache, b"x" * 6, b"x" * 6), await keep(cache)
    assert [await kept(cache, sha256) for sha256 in (large, empty)] == [None, None]
    assert lying_in(tmp_path) == set()


async def test_a_size_of_nothing_keeps_nothing_and_empties_what_there_is(tmp_path: Path) -> None:
    await keep(await opened(tmp_path), b"before")
    cache = await opened(tmp_path, most=0)
    assert await kept(cache, await keep(cache, b"now")) is None
    assert lying_in(tmp_path) == set()


@pytest.mark.parametrize("change", [b"", b"longer than before"])
async def test_a_file_that_was_changed_under_the_cache_is_dropped(
    tmp_path: Path, change: bytes
) -> None:
    cache = await opened(tmp_path)
    sha256 = await keep(cache, b"as sent")
    (tmp_path / f"{sha256}.7").write_bytes(change)
    assert await kept(cache, sha256) is None
    assert (lying_in(tmp_path), cache.size) == (set(), 0)
    assert await kept(cache, await keep(cache, b"as sent")) == b"as sent"


async def test_a_file_somebody_has_removed_is_fetched_again(tmp_path: Path) -> None:
    cache = await opened(tmp_path)
    sha256 = await keep(cache, b"as sent")
    (tmp_path / f"{sha256}.7").unlink()
    assert await kept(cache, sha256) is None


async def test_two_that_bring_the_same_at_once_leave_one(tmp_path: Path) -> None:
    cache = await opened(tmp_path)
    pieces = [bytes([n]) * 1000 for n in range(20)]
    hashes = await asyncio.gather(*(keep(cache, *pieces) for _ in range(8)))
    assert len(set(hashes)) == 1
    assert await kept(cache, hashes[0]) == b"".join(pieces)
    assert (cache.size, len(lying_in(tmp_path))) == (20_000, 1)


async def test_a_full_disk_only_means_that_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = await opened(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("open", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, place, full)
            sha256 = await keep(cache, b"x")
        assert await kept(cache, sha256) is None
    assert (lying_in(tmp_path), cache.size) == (set(), 0)
    with monkeypatch.context() as patched:
        # as if the disk filled up between opening and writing
        patched.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
        sha256 = await keep(cache, b"x" * MEBIBYTE)
    assert await kept(cache, sha256) is None


async def test_a_folder_that_cannot_be_made_only_means_that_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = await opened(tmp_path / "file" / "cache")
    assert await kept(cache, await keep(cache, b"x")) is None


class Comfy:
    """Remembers what was uploaded."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def upload(self, *, name: str, chunks: AsyncIterator[bytes], **_: Any) -> str:
        self.got.append(b"".join([chunk async for chunk in chunks]))
        return name


class Bench:
    """An uploader over a cache, and the server its files come from."""

    def __init__(self, uploader: Uploader, comfy: Comfy, slots: Slots) -> None:
        self._uploader = uploader
        self._slots = slots
        self.comfy = comfy

    async def read(self, data: bytes | None, sha256: str | None, kind: str = "image") -> bytes:
        """Have a run read a file, which may not be there; returns what ComfyUI got."""
        self._slots.files = {} if data is None else {"/file": data}
        workflow, named = reading(kind)
        file = InputFile(url=f"{self._slots.url}/file", media_type="x/y", sha256=sha256, ours=True)
        request = RunRequest.model_validate({**named, "inputs": {"file": [file]}})
        await self._uploader.upload("run", request, workflow, trusted=())
        return self.comfy.got[-1]


@pytest.fixture
async def bench(tmp_path: Path, slots: Slots) -> AsyncIterator[Bench]:
    comfy, cache = Comfy(), await opened(tmp_path)
    async with Fetcher() as fetcher:
        uploader = Uploader(cast("ComfyClient", comfy), fetcher, cache=cache)
        yield Bench(uploader, comfy, slots)


async def test_a_run_fetches_nothing_that_another_one_has_read(bench: Bench) -> None:
    red, film = picture("red"), b"\0\0\0\x18ftypisom" + bytes(100)
    for data, kind in ((red, "image"), (film, "video")):
        # known by its content, wherever it came from
        assert await bench.read(data, None, kind) == data
        # asked for, as it may have been deleted, and not taken
        assert await bench.read(b"never taken", sha256_of(data), kind) == data


async def test_a_file_that_was_deleted_is_gone_from_the_cache_too(
    bench: Bench, tmp_path: Path
) -> None:
    red = picture("red")
    await bench.read(red, sha256_of(red))
    assert len(lying_in(tmp_path)) == 1
    with pytest.raises(RunFailed) as failed:
        await bench.read(None, sha256_of(red))
    assert failed.value.failure.code == "file_not_found"
    assert lying_in(tmp_path) == set()


async def test_a_run_never_gets_another_file_than_was_announced(
    bench: Bench, tmp_path: Path
) -> None:
    red, blue = picture("red"), picture("blue")
    await bench.read(red, sha256_of(red))
    assert await bench.read(blue, sha256_of(blue)) == blue
    # of the same length: only its content tells
    other = bytearray(red)
    other[-1] ^= 1
    (tmp_path / f"{sha256_of(red)}.{len(red)}").write_bytes(other)
    with pytest.raises(RunFailed) as failed:
        await bench.read(red, sha256_of(red))
    assert (failed.value.failure.kind, failed.value.failure.code) == ("transient", "input_changed")
    # and the next attempt is given the right one
    assert await bench.read(red, sha256_of(red)) == red


async def test_what_is_refused_is_not_kept(bench: Bench, tmp_path: Path) -> None:
    for data, kind in ((picture()[:60], "image"), (b"#EXTM3U\n", "video"), (b"<html>", "image")):
        with pytest.raises(RunFailed):
            await bench.read(data, None, kind)
    with pytest.raises(RunFailed):
        await bench.read(picture(), "0" * 64)
    assert lying_in(tmp_path) == set()
    assert bench.comfy.got == []
