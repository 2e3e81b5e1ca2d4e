"""How much a caller may keep: uploads and results together."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.db.usage import Stored
from gateway.errors import QuotaExceeded

FRESH_S = 5.0
"""How long a sum is trusted while it lets things in."""
SHARE_OF_TIME = 0.05
"""To add up many files takes long: no more than this share of the time is spent on it."""
MEGABYTE = 1024 * 1024
_STEP = 8 * MEGABYTE
"""Room is taken in such pieces by a file whose length is not known."""


@dataclass(slots=True)
class _Count:
    """What is known of one caller, in bytes."""

    summed: int = 0
    """What the rows said."""
    added: int = 0
    """Kept here since then."""
    coming: int = 0
    """Room taken by files that are on their way in."""
    summed_at: float | None = None
    took_s: float = 0.0
    summing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def used(self) -> int:
        return self.summed + self.added + self.coming


class Quota:
    """Goes by a sum read now and then, plus what was taken here since.

    Nobody is refused by an old sum as long as reading a new one costs little: what was deleted
    makes room at once. Several gateways on one database may take a little more than the limit: what
    the others took since the last sum. Results count once they are there, so jobs under way may go
    beyond it; then nothing new is taken.
    """

    def __init__(self, *, stored: Callable[[str], Awaitable[Stored]], most_mb: int) -> None:
        self.stored = stored
        """What a caller keeps now."""
        self.limit = most_mb * MEGABYTE or None
        """Bytes a caller may keep; None = as many as there is room for."""
        self._counts: dict[str, _Count] = {}

    async def require(self, caller: str, more: int = 0) -> None:
        """Raise QuotaExceeded unless a byte more may be kept, or that many."""
        if self.limit is None:
            return
        needed = max(more, 1)
        count = self._counts.setdefault(caller, _Count())
        await self._sum(caller, count, FRESH_S)
        if count.used + needed > self.limit:
            await self._sum(caller, count, 0)
        if count.used + needed > self.limit:
            raise _exceeded(count.used, self.limit, more)

    @asynccontextmanager
    async def room(self, caller: str, expected: int = 0) -> "AsyncGenerator[Room]":
        """Keep room for one file while it comes in; it stays taken unless an exception leaves.

        `expected`: bytes it is said to have, 0 when that is not known. Raises QuotaExceeded.
        """
        count = self._counts.setdefault(caller, _Count())
        room = Room(self, caller, count)
        try:
            if self.limit is None:
                yield room
                return
            await (room.need(expected, step=0) if expected else self.require(caller))
            yield room
            count.added += room.used
        finally:
            count.coming -= room.taken

    async def _sum(self, caller: str, count: _Count, trusted_s: float) -> None:
        loop = asyncio.get_running_loop()
        async with count.summing:
            trusted = max(trusted_s, count.took_s / SHARE_OF_TIME)
            if count.summed_at is not None and loop.time() - count.summed_at < trusted:
                return
            before, began = count.added, loop.time()
            count.summed = (await self.stored(caller)).total
            # what was added meanwhile may be in the sum: rather twice than not at all
            count.added -= before
            count.summed_at = loop.time()
            count.took_s = count.summed_at - began


class Room:
    """What one file on its way in may take."""

    def __init__(self, quota: Quota, caller: str, count: _Count) -> None:
        self._quota = quota
        self._caller = caller
        self._count = count
        self.taken = 0
        """Bytes that nobody else can have meanwhile."""
        self.used = 0
        """Bytes the file was said to need so far."""

    async def need(self, total: int, *, step: int = _STEP) -> None:
        """Say how many bytes the file has so far, or will have. Raises QuotaExceeded."""
        limit, count = self._quota.limit, self._count
        self.used = max(self.used, total)
        if limit is None or total <= self.taken:
            return
        await self._quota.require(self._caller, total - self.taken)
        free = limit - count.used
        grown = min(max(total, self.taken + step), self.taken + free)
        count.coming += grown - self.taken
        self.taken = grown


def _exceeded(used: int, limit: int, more: int) -> QuotaExceeded:
    wanted = f", and this needs {_megabytes(more)}" if more else ""
    return QuotaExceeded(
        f"You keep {_megabytes(used)} here of at most {_megabytes(limit)}{wanted}. Delete jobs "
        "(DELETE /api/jobs/{job_id}), uploads (DELETE /api/files/{id}) or cards (DELETE "
        "/api/media/{card_id}) you no longer need; GET /api/usage says how much they are."
    )


def _megabytes(count: int) -> str:
    return f"{count / MEGABYTE:.1f} MB"
