"""How many jobs may wait: of one caller, and altogether."""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable

from gateway.errors import FieldError, InvalidParameters, QueueFull

FRESH_S = 1.0
FAR_FROM_FULL_S = 30.0
"""How long a count is trusted while it is less than half of what may wait."""
SHARE_OF_TIME = 0.05
"""To count a long queue takes long: no more than this share of the time is spent on it."""
RETRY_S = 30
"""When to try again where no estimate is known."""
LONGEST_RETRY_S = 3600


class QueueLimits:
    """Goes by a count read now and then, plus what was let in here since.

    So it costs a submit next to nothing, and several gateways on one database may let in a little
    more than the limit: what the others took since the last count.
    """

    def __init__(
        self,
        *,
        count: Callable[[], Awaitable[dict[str, int]]],
        one_place_s: Callable[[], Awaitable[float | None]],
        per_caller: int,
        total: int,
    ) -> None:
        self._count = count
        self._one_place_s = one_place_s
        self._per_caller = per_caller
        self._total = total
        self._waiting = Counter[str]()
        self._all = 0
        self._counted_at: float | None = None
        self._took_s = 0.0
        self._counting = asyncio.Lock()

    async def let_in(self, caller: str, jobs: int = 1) -> None:
        """Count jobs about to be written; raises QueueFull where they are more than may wait.

        Raises InvalidParameters for a batch that would be too many for an empty queue.
        """
        if not self._per_caller and not self._total:
            return
        self._require_possible(jobs)
        await self._recount(caller, jobs)
        mine = self._waiting[caller]
        if self._per_caller and mine + jobs > self._per_caller:
            raise await self._full(
                f"You have {mine} jobs waiting, and at most {self._per_caller} may",
                mine + jobs - self._per_caller,
            )
        if self._total and self._all + jobs > self._total:
            raise await self._full(
                f"{self._all} jobs are waiting here, and at most {self._total} may",
                self._all + jobs - self._total,
            )
        self._waiting[caller] += jobs
        self._all += jobs

    def _require_possible(self, jobs: int) -> None:
        most = min(limit for limit in (self._per_caller, self._total) if limit)
        if jobs > most:
            message = f"must have at most {most} items: no more jobs may wait here at a time"
            raise InvalidParameters([FieldError(field="items", code="too_long", message=message)])

    async def _recount(self, caller: str, jobs: int) -> None:
        loop = asyncio.get_running_loop()
        near = self._near(self._waiting[caller] + jobs, self._per_caller) or self._near(
            self._all + jobs, self._total
        )
        trusted_s = max(FRESH_S if near else FAR_FROM_FULL_S, self._took_s / SHARE_OF_TIME)
        async with self._counting:
            if self._counted_at is not None and loop.time() - self._counted_at < trusted_s:
                return
            began = loop.time()
            counted = await self._count()
            self._counted_at = loop.time()
            self._took_s = self._counted_at - began
            self._waiting = Counter(counted)
            self._all = sum(counted.values())

    @staticmethod
    def _near(count: int, most: int) -> bool:
        return bool(most) and 2 * count >= most

    async def _full(self, said: str, places: int) -> QueueFull:
        place_s = await self._one_place_s()
        retry = (
            RETRY_S
            if place_s is None
            else max(1, math.ceil(min(LONGEST_RETRY_S, places * place_s)))
        )
        return QueueFull(f"{said}: send it again later.", retry_after=retry)
