"""The beginning of a file that is still being downloaded: `<name>.part`, and the ETag it is of."""

import fcntl
import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_READ = 1024 * 1024


class PullError(Exception):
    """Why a model file can't be had, in one sentence without a token or a signed address."""


class Part:
    """What is there of a file, and its hash; made by `claimed_part`. Its methods block."""

    def __init__(self, path: Path, file: int) -> None:
        self.path = path
        self.size = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._etag_path = path.with_name(f"{path.name}.etag")
        self.etag: str | None = None
        with suppress(FileNotFoundError):
            self.etag = self._etag_path.read_text() or None

    @property
    def sha256(self) -> str:
        """The hash of what is there."""
        return self._digest.hexdigest()

    def take_up(self, *, verifiable: bool) -> None:
        """Go on behind what an earlier download left, if that can be told to be of one file."""
        if self.etag is None and not verifiable:
            self.restart(None)
            return
        os.lseek(self._file, 0, os.SEEK_SET)
        while chunk := os.read(self._file, _READ):
            self._digest.update(chunk)
            self.size += len(chunk)

    def restart(self, etag: str | None) -> None:
        """Forget what is there; what comes next is of this ETag."""
        # In this order: the old bytes must never lie under the new ETag.
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._digest, self.size, self.etag = hashlib.sha256(), 0, etag
        if etag is None:
            self._etag_path.unlink(missing_ok=True)
        else:
            self._etag_path.write_text(etag)

    def write(self, chunk: bytes) -> None:
        """Add bytes to the end."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._digest.update(chunk)
        self.size += len(chunk)

    def become(self, path: Path) -> None:
        """Be the file: it is whole."""
        os.fsync(self._file)
        self.path.replace(path)
        self._etag_path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove what is there: it is not of the file that is wanted."""
        self.size = 0
        self.path.unlink(missing_ok=True)
        self._etag_path.unlink(missing_ok=True)


@contextmanager
def claimed_part(path: Path) -> Generator[Part]:
    """Open the part for this process alone; it stays unless it is empty at the end."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _claim(file, path)
        part = Part(path, file)
        try:
            yield part
        finally:
            if os.fstat(file).st_size == 0:
                part.discard()
    finally:
        os.close(file)


def _claim(file: int, path: Path) -> None:
    busy = PullError("another process is downloading it")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise busy from None
    # Whoever held it until now may have renamed it: these bytes would then go into the whole file.
    if not path.exists() or os.fstat(file).st_ino != path.stat().st_ino:
        raise busy


def digest_of_file(path: Path) -> str:
    """Hash a file; blocks for as long as it takes to read it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
