"""Waiting longer after each failure, and knowing when to give up."""

import asyncio
import random

LEAST_TRIES = 4


def backoff(nth: int, first: float, longest: float, rng: random.Random) -> float:
    """Seconds before repetition `nth` (from 0): doubling, capped, jittered by a quarter."""
    return min(first * 2 ** min(nth, 30), longest) * (0.75 + rng.random() / 2)


class Patience:
    """Repeats something that does not answer, until it has not for `limit_s`.

    Only time spent asking and waiting counts, as far as that was meant to take: a process that was
    stopped, or a machine that slept, has not been looking meanwhile.
    """

    def __init__(
        self, *, first_s: float, longest_s: float, limit_s: float | None, rng: random.Random
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._limit_s = limit_s
        self._rng = rng
        self._silent_s = 0.0
        self._asked_at: float | None = None
        self._tries = 0

    def answered(self) -> None:
        """It does answer: patience is whole again."""
        self._silent_s = 0.0
        self._asked_at = None
        self._tries = 0

    async def pause(self) -> bool:
        """Wait before the next try; False once it has been silent for too long."""
        loop = asyncio.get_running_loop()
        if self._limit_s is not None:
            if self._asked_at is not None:
                # no single try, however long, decides alone
                asked_s = loop.time() - self._asked_at
                self._silent_s += min(asked_s, self._limit_s / LEAST_TRIES)
            if self._silent_s >= self._limit_s:
                return False
        wait_s = backoff(self._tries, self._first_s, self._longest_s, self._rng)
        await asyncio.sleep(wait_s)
        self._silent_s += wait_s
        self._tries += 1
        self._asked_at = loop.time()
        return True
