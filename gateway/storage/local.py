"""Files on the local disk.

A file is written under `.incoming/`, hashed on the way, and renamed to its key when it is whole.
Beside it lies `.<name>.json` with what `stat` answers. That record is only a memory: one that does
not fit the file (or is gone) is made again from the file itself.
"""

import asyncio
import errno
import fcntl
import hashlib
import json
import mimetypes
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from gateway.security.signing import Signer
from gateway.storage.base import (
    DEFAULT_MAX_BYTES,
    ListedFile,
    NoRoom,
    StorageError,
    StoredFile,
    TooManyBytes,
    is_key,
)
from gateway.storage.walk import listed, record_path

SLOTS_PATH = "/api/slots/"

_INCOMING = ".incoming"
_PIECE = 512 * 1024
_READ = 1024 * 1024
_PLACE_ATTEMPTS = 5


class LocalStorage:
    """A folder of files, its PUT slots served by this process."""

    def __init__(
        self, root: Path, signer: Signer, base_url: str, *, max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self.max_bytes = max_bytes
        self._root = root
        self._signer = signer
        self._base_url = base_url.rstrip("/")
        (root / _INCOMING).mkdir(parents=True, exist_ok=True)
        _sweep(root / _INCOMING)

    @property
    def is_remote(self) -> bool:
        """False: its slots and links lead to this gateway."""
        return False

    @property
    def wants_length(self) -> bool:
        """False: whatever comes is counted."""
        return False

    @property
    def wants_md5(self) -> bool:
        """False: whatever comes is hashed."""
        return False

    def path(self, key: str) -> Path | None:
        """Where the file is, or would be; None for what is no key."""
        return self._path(key)

    def address(self, key: str) -> str:
        """`local://files/<key>`."""
        return f"local://files/{key}"

    def key_of(self, address: str) -> str | None:
        """The key that a `local://files/` address names."""
        key = address.removeprefix("local://files/")
        return key if key != address and is_key(key) else None

    def slot(self, key: str, lifetime: timedelta, *, length: int | None = None) -> str:
        """An address that takes the file's bytes by PUT until it expires."""
        del length
        self._place_of(key)
        return self._base_url + self._signer.slot(SLOTS_PATH + key, lifetime)

    def link(self, key: str, lifetime: timedelta, *, disposition: str | None = None) -> str:
        """An address that gives the file's bytes by GET until it expires."""
        del disposition
        self._place_of(key)
        return self._base_url + self._signer.link(SLOTS_PATH + key, lifetime)

    async def stat(self, key: str) -> StoredFile | None:
        """What lies under the key; None when nothing does."""
        path = self._path(key)
        return None if path is None else await asyncio.to_thread(_stat, key, path)

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes `start..end` (end exclusive) in pieces of at most 1 MiB."""
        path = self._path(key)
        if path is None:
            raise KeyError(key)
        left = sys.maxsize if end is None else max(end - start, 0)
        file, piece = await asyncio.to_thread(_open_at, path, start, left)
        if file is None:
            raise KeyError(key)
        with file:
            while piece:
                yield piece
                left -= len(piece)
                piece = await asyncio.to_thread(_read, file, left) if left else b""

    async def delete(self, key: str) -> None:
        """Remove the file, and the folders it leaves empty."""
        path = self._path(key)
        if path is not None:
            await asyncio.to_thread(_delete, path, self._root)

    async def pages(self) -> AsyncIterator[Sequence[ListedFile]]:
        """Every key there is, a page at a time; also one of which only the record is left."""
        found = listed(self._root)
        while page := await asyncio.to_thread(_next, found):
            yield [file for file in page if is_key(file.key)]

    async def tidy(self, before: datetime) -> None:
        """Remove what uploads left behind that broke off before that time."""
        await asyncio.to_thread(_sweep, self._root / _INCOMING, before.timestamp())

    async def write(self, key: str, media_type: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Take a file in; it appears under its key once it is whole and on disk.

        Raises TooManyBytes, StorageError; whatever `chunks` raises leaves nothing behind.
        """
        place = self._place_of(key)
        making = asyncio.create_task(asyncio.to_thread(_Upload, self._root / _INCOMING))
        try:
            upload = await asyncio.shield(making)
        except asyncio.CancelledError:
            # it is made all the same, and nobody would know of it
            with suppress(StorageError):
                await asyncio.to_thread((await making).discard)
            raise
        try:
            rest = await self._receive(upload, chunks)
            return await asyncio.to_thread(upload.finish, rest, key, media_type, place)
        except BaseException:
            await asyncio.to_thread(upload.discard)
            raise

    async def _receive(self, upload: "_Upload", chunks: AsyncIterator[bytes]) -> list[bytes]:
        """Write and hash in a thread while the next piece arrives; return the last, unwritten one.

        Two pieces are held at most.
        """
        writing: asyncio.Task[None] | None = None
        piece: list[bytes] = []
        size = total = 0
        try:
            async for chunk in chunks:
                piece.append(chunk)
                size += len(chunk)
                total += len(chunk)
                if total > self.max_bytes:
                    raise TooManyBytes(self.max_bytes)
                if size >= _PIECE:
                    if writing is not None:
                        await writing
                    writing = asyncio.create_task(asyncio.to_thread(upload.write, piece))
                    piece, size = [], 0
        finally:
            if writing is not None:
                await writing
        return piece

    def _path(self, key: str) -> Path | None:
        return self._root / key if is_key(key) else None

    def _place_of(self, key: str) -> Path:
        path = self._path(key)
        if path is None:
            raise StorageError(f"not a storage key: {key!r}")
        return path


class _Upload:
    """One file on its way in. Every method runs in a thread; the lock keeps them apart.

    A cancelled request leaves its last `write` running, so `discard` may come beside it.
    """

    def __init__(self, incoming: Path) -> None:
        self._path = incoming / secrets.token_hex(16)
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._bytes = 0
        try:
            self._file: BinaryIO = self._path.open("xb")
            # the lock dies with the process: what the next start finds unlocked is left over
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            raise _translated(error) from error

    def write(self, piece: list[bytes]) -> None:
        with self._lock:
            if not self._file.closed:
                self._write(piece)

    def finish(self, rest: list[bytes], key: str, media_type: str, place: Path) -> StoredFile:
        with self._lock:
            self._write(rest)
            try:
                return self._finish(key, media_type, place)
            except OSError as error:
                with suppress(OSError):  # it tells of a file that did not come
                    record_path(place).unlink(missing_ok=True)
                raise _translated(error) from error

    def _write(self, piece: list[bytes]) -> None:
        try:
            for chunk in piece:
                self._file.write(chunk)
                self._hash.update(chunk)
                self._bytes += len(chunk)
        except OSError as error:
            raise _translated(error) from error

    def _finish(self, key: str, media_type: str, place: Path) -> StoredFile:
        sha256 = self._hash.hexdigest()
        before = _stat(key, place)
        if before is not None and (before.bytes, before.sha256) == (self._bytes, sha256):
            self._drop()
            return before
        self._file.flush()
        os.fsync(self._file.fileno())
        status = os.fstat(self._file.fileno())
        record = _record(status, sha256, media_type)
        for attempt in range(_PLACE_ATTEMPTS):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                _remember(place, record)
                self._path.replace(place)
                break
            except FileNotFoundError:
                # a delete beside us has just pruned the folder
                if attempt == _PLACE_ATTEMPTS - 1:
                    raise
        self._file.close()
        _sync_folder(place.parent)
        return StoredFile(
            key=key, bytes=self._bytes, sha256=sha256, etag=sha256, media_type=media_type
        )

    def discard(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        with suppress(OSError):  # a full disk does not take what is still held, and need not
            self._file.close()
        self._path.unlink(missing_ok=True)


def _translated(error: OSError) -> StorageError:
    # strerror alone: the whole text names the path
    kind = NoRoom if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
    return kind(error.strerror or type(error).__name__)


def _next(found: Iterator[tuple[ListedFile, ...]]) -> tuple[ListedFile, ...]:
    try:
        return next(found, ())
    except OSError as error:
        raise _translated(error) from error


def _record(status: os.stat_result, sha256: str, media_type: str) -> dict[str, str | int]:
    return {
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": sha256,
        "media_type": media_type,
    }


def _remember(path: Path, record: dict[str, str | int]) -> None:
    # not atomic: a torn record is no record, and is made again
    record_path(path).write_text(json.dumps(record))


def _stat(key: str, path: Path) -> StoredFile | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _translated(error) from error
    record = _recalled(path, status) or _recomputed(path, status)
    if record is None:
        return None
    sha256 = str(record["sha256"])
    return StoredFile(
        key=key,
        bytes=status.st_size,
        sha256=sha256,
        etag=sha256,
        media_type=str(record["media_type"]),
    )


def _recalled(path: Path, status: os.stat_result) -> dict[str, str | int] | None:
    try:
        record: dict[str, str | int] = json.loads(record_path(path).read_bytes())
        fits = (record["bytes"], record["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        return record if fits and record["sha256"] and record["media_type"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recomputed(path: Path, status: os.stat_result) -> dict[str, str | int] | None:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        record = _record(status, sha256, media_type)
        _remember(path, record)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translated(error) from error
    return record


def _open_at(path: Path, start: int, left: int) -> tuple[BinaryIO | None, bytes]:
    """The file and its first piece: one trip to a thread for most pictures."""
    try:
        file = path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        return None, b""
    except OSError as error:
        raise _translated(error) from error
    try:
        file.seek(start)
        return file, _read(file, left)
    except BaseException:
        file.close()
        raise


def _read(file: BinaryIO, left: int) -> bytes:
    try:
        return file.read(min(_READ, left))
    except OSError as error:
        raise _translated(error) from error


def _delete(path: Path, root: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        record_path(path).unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise _translated(error) from error
    with suppress(OSError):  # the first folder that is not empty ends it
        for folder in path.parents:
            if folder == root:
                break
            folder.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(incoming: Path, before: float | None = None) -> None:
    """Remove what uploads of dead processes left; one still locked belongs to a living process.

    `before`: only what was last written before that time.
    """
    for leftover in incoming.iterdir():
        try:
            with leftover.open("rb") as file:
                if before is not None and os.fstat(file.fileno()).st_mtime >= before:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            # being written, or just done
            continue
        leftover.unlink(missing_ok=True)
