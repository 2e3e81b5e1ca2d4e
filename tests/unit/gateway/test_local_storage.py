"""What only the local disk can get wrong."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from gateway.security.signing import Signer
from gateway.storage import walk
from gateway.storage.base import StorageError
from gateway.storage.local import LocalStorage, TooManyBytes

JOB = "01890000-0000-7000-8000-000000000000"
KEY = f"generated/2026/03/09/{JOB}/0a1b2c.png"
MIB = 1024 * 1024

UNSAFE = [
    "",
    "/etc/passwd",
    "../secret",
    f"generated/../../2026/03/09/{JOB}/a.png",
    f"generated/2026/03/09/{JOB}/../a.png",
    f"generated/2026/03/09/{JOB}/.a.png.json",
    f"generated/2026/03/09/{JOB}/a",
    f"generated/2026/03/09/{JOB}/a.png\n",
    f"generated/2026/03/09/{JOB}/a\0.png",
    f"/generated/2026/03/09/{JOB}/a.png",
    f".incoming/2026/03/09/{JOB}/a.png",
    f"generated\\2026\\03\\09\\{JOB}\\a.png",
    f"Generated/2026/03/09/{JOB}/a.png",
    f"generated/26/3/9/{JOB}/a.png",
]


def storage_at(root: Path, **options: int) -> LocalStorage:
    return LocalStorage(root, Signer(bytes(32)), "http://127.0.0.1:8000", **options)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.mark.parametrize("key", UNSAFE)
async def test_only_our_own_pattern_is_a_key(tmp_path: Path, key: str) -> None:
    storage = storage_at(tmp_path / "files")
    with pytest.raises(StorageError):
        storage.slot(key, timedelta(hours=1))
    with pytest.raises(StorageError):
        await storage.write(key, "image/png", chunks(b"x"))
    assert await storage.stat(key) is None
    with pytest.raises(KeyError):
        await anext(storage.read(key))
    await storage.delete(key)
    assert tree(tmp_path) == ["files", "files/.incoming"]


async def test_a_file_above_the_limit_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    storage = storage_at(tmp_path, max_bytes=10)
    with pytest.raises(TooManyBytes):
        await storage.write(KEY, "image/png", chunks(b"12345", b"678901"))
    assert tree(tmp_path) == [".incoming"]
    assert (await storage.write(KEY, "image/png", chunks(b"12345", b"67890"))).bytes == 10


async def test_a_source_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        raise ConnectionResetError

    storage = storage_at(tmp_path)
    with pytest.raises(ConnectionResetError):
        await storage.write(KEY, "image/png", broken())
    assert tree(tmp_path) == [".incoming"]


async def test_a_cancelled_write_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            begun.set()
            await asyncio.sleep(0)

    storage = storage_at(tmp_path)
    writing = asyncio.create_task(storage.write(KEY, "image/png", endless()))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert tree(tmp_path) == [".incoming"]


async def test_deleting_prunes_the_folders_it_empties_and_no_more(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    other = KEY.replace("2026/03/09", "2026/03/10")
    await storage.write(KEY, "image/png", chunks(b"a"))
    await storage.write(other, "image/png", chunks(b"b"))
    await storage.delete(KEY)
    assert "generated/2026/03/09" not in tree(tmp_path)
    assert "generated/2026/03/10" in tree(tmp_path)
    await storage.delete(other)
    assert tree(tmp_path) == [".incoming"]


async def test_leftovers_of_a_crash_are_swept_at_start_but_no_upload_in_progress(
    tmp_path: Path,
) -> None:
    storage_at(tmp_path)
    (tmp_path / ".incoming" / "dead").write_bytes(b"half a file")
    with (tmp_path / ".incoming" / "alive").open("wb") as upload:
        fcntl.flock(upload, fcntl.LOCK_EX)
        storage_at(tmp_path)
        assert tree(tmp_path / ".incoming") == ["alive"]
    storage_at(tmp_path)
    assert tree(tmp_path / ".incoming") == []


async def test_tidying_removes_what_broke_off_long_ago_and_no_upload_in_progress(
    tmp_path: Path,
) -> None:
    storage = storage_at(tmp_path)
    old, busy = (tmp_path / ".incoming" / name for name in ("old", "busy"))
    for path in (old, busy):
        path.write_bytes(b"half")
    now = datetime.now(UTC)
    with busy.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        await storage.tidy(now - timedelta(hours=1))
        assert tree(tmp_path) == [".incoming", ".incoming/busy", ".incoming/old"]
        await storage.tidy(now + timedelta(hours=1))
    assert tree(tmp_path) == [".incoming", ".incoming/busy"]


async def test_a_record_whose_file_is_gone_is_listed_so_that_it_can_be_deleted(
    tmp_path: Path,
) -> None:
    storage = storage_at(tmp_path)
    await storage.write(KEY, "image/png", chunks(b"abc"))
    (tmp_path / KEY).unlink()
    (tmp_path / "generated" / "stray.txt").write_text("none of ours")
    assert [file.key async for page in storage.pages() for file in page] == [KEY]
    await storage.delete(KEY)
    assert tree(tmp_path) == [".incoming", "generated", "generated/stray.txt"]


async def test_a_long_list_comes_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "PAGE", 3)
    storage = storage_at(tmp_path)
    keys = {KEY.replace("0a1b2c", f"f{n}") for n in range(8)}
    for key in keys:
        await storage.write(key, "image/png", chunks(b"abc"))
    pages = [page async for page in storage.pages()]
    assert [len(page) for page in pages] == [3, 3, 2]
    assert {file.key for page in pages for file in page} == keys


@pytest.mark.parametrize("record", [None, b"", b"{", b"[]", b"{}"])
async def test_a_lost_or_torn_record_is_made_again_from_the_file(
    tmp_path: Path, record: bytes | None
) -> None:
    storage = storage_at(tmp_path)
    written = await storage.write(KEY, "image/png", chunks(b"abc"))
    beside = tmp_path / KEY.replace("0a1b2c.png", ".0a1b2c.png.json")
    if record is None:
        beside.unlink()
    else:
        beside.write_bytes(record)
    assert await storage.stat(KEY) == written
    assert beside.stat().st_size > 50


async def test_a_record_that_does_not_fit_the_file_is_not_believed(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    await storage.write(KEY, "image/png", chunks(b"abc"))
    (tmp_path / KEY).write_bytes(b"xyz")
    os.utime(tmp_path / KEY, (1, 1))
    stored = await storage.stat(KEY)
    assert stored is not None
    assert stored.sha256 == hashlib.sha256(b"xyz").hexdigest()


async def test_what_the_disk_says_does_not_name_a_path(tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    (tmp_path / "generated").write_bytes(b"a file where a folder belongs")
    with pytest.raises(StorageError) as caught:
        await storage.write(KEY, "image/png", chunks(b"abc"))
    assert str(tmp_path) not in str(caught.value)
    assert await storage.stat(KEY) is None
    assert tree(tmp_path / ".incoming") == []


async def test_memory_stays_flat_while_150_mb_go_in_and_out(tmp_path: Path) -> None:
    size = 150 * MIB
    storage = storage_at(tmp_path)
    process = psutil.Process()
    base = process.memory_info().rss
    peak = base
    piece = os.urandom(64 * 1024)

    async def body() -> AsyncIterator[bytes]:
        nonlocal peak
        for _ in range(size // len(piece)):
            yield piece
            peak = max(peak, process.memory_info().rss)

    await storage.write(KEY, "video/mp4", body())
    count = 0
    async for chunk in storage.read(KEY):
        count += len(chunk)
        peak = max(peak, process.memory_info().rss)
    assert count == size
    assert peak - base < 64 * MIB
