"""A lock that proves this process alone works on a data folder; it dies with the process."""

import fcntl
import os
from pathlib import Path
from typing import Protocol


class FolderInUse(Exception):
    """Another process holds the folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"Another gateway already works on the data folder {folder}. SQLite serves one "
            "gateway: stop the other one, or choose another folder."
        )


class SoleOwnership(Protocol):
    """Proof that no other process works on the database."""

    def acquire(self) -> None:
        """Take it. Raises FolderInUse."""
        ...

    def release(self) -> None:
        """Give it back; not held is no error."""
        ...


class FolderLock:
    """An flock on one file of the folder: the kernel drops it however the process ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None

    def acquire(self) -> None:
        """Take it. Raises FolderInUse."""
        file = os.open(self._folder / "gateway.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise FolderInUse(self._folder) from None
        self._file = file

    def release(self) -> None:
        """Give it back; not held is no error."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
