"""A folder for files under work, which nothing of outlasts its process for long."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4


class Scratch:
    """A folder of this process's own within `root`; locked, so that others tell it from leavings.

    The lock goes with the process, however that ends, and the next one to start cleans up.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder: Path | None = None
        self._lock: int | None = None

    async def open(self) -> None:
        """Make it, and remove what processes that were killed left. Raises OSError."""
        await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """Remove it."""
        await asyncio.to_thread(self._close)

    @asynccontextmanager
    async def file(self, ending: str = "") -> AsyncGenerator[Path]:
        """A path for one file, which is removed afterwards."""
        if self._folder is None:
            raise RuntimeError("the folder is closed")
        path = self._folder / f"{uuid4().hex}{ending}"
        try:
            yield path
        finally:
            await asyncio.shield(asyncio.to_thread(path.unlink, missing_ok=True))

    def _open(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for left in self._root.iterdir():
            lock = _locked(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(lock)
        self._folder = Path(tempfile.mkdtemp(dir=self._root))
        self._lock = _locked(self._folder)

    def _close(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """A lock on a folder; None where another process has it, or where there is none any more."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
