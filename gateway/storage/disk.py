"""Is there room for results? Asked before work is taken, so that the disk never fills up."""

import asyncio
import logging
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from gateway.errors import StorageFull

_log = logging.getLogger(__name__)

FRESH_S = 1.0
MEGABYTE = 1_000_000


def free_bytes(folder: Path) -> int:
    """How many bytes this process may still write there. Raises OSError."""
    return shutil.disk_usage(folder).free


class DiskSpace:
    """The folders this installation writes to, looked at no oftener than once a second."""

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        least_mb: int,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._folders = tuple(dict.fromkeys(folders)) if least_mb else ()
        self._least_mb = least_mb
        self._free = free
        self._looked_at: float | None = None
        self._shortage: str | None = None

    async def require(self) -> None:
        """Return if new work may be taken. Raises StorageFull."""
        said = await self.shortage()
        if said is not None:
            raise StorageFull(f"{said} Nothing new is taken until there is.")

    async def shortage(self) -> str | None:
        """Say what is short; None while there is room."""
        now = asyncio.get_running_loop().time()
        if self._folders and (self._looked_at is None or now - self._looked_at >= FRESH_S):
            # said first: those who ask meanwhile go by what was found before
            self._looked_at = now
            # a network disk may take its time
            self._shortage = await asyncio.to_thread(self._look)
        return self._shortage

    def _look(self) -> str | None:
        try:
            free = min(self._free(folder) for folder in self._folders)
        except OSError:
            _log.warning("the free disk space cannot be read", exc_info=True)
            return None
        if free >= self._least_mb * MEGABYTE:
            return None
        return (
            f"{free // MEGABYTE} MB of disk are free for results and the database, and "
            f"{self._least_mb} MB must be."
        )
