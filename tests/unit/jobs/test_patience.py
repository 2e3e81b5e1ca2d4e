"""When to try again, and when to give up."""

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.jobs.patience import Patience, backoff


@given(nth=st.integers(0, 1000), seed=st.integers())
def test_waits_grow_to_their_limit_and_never_vanish(nth: int, seed: int) -> None:
    wait = backoff(nth, 0.5, 60, random.Random(seed))
    longest = min(0.5 * 2 ** min(nth, 30), 60)
    assert longest * 0.75 <= wait <= longest * 1.25


def patience(limit_s: float | None) -> Patience:
    return Patience(first_s=0.001, longest_s=0.001, limit_s=limit_s, rng=random.Random(1))


async def test_patience_without_a_limit_never_ends() -> None:
    endless = patience(None)
    assert [await endless.pause() for _ in range(20)] == [True] * 20


async def test_patience_ends_after_its_limit_and_is_whole_again_after_an_answer() -> None:
    limited = patience(0.005)
    tries = 0
    while await limited.pause():
        tries += 1
    assert tries >= 2
    limited.answered()
    assert await limited.pause()


async def test_one_long_try_does_not_use_it_up() -> None:
    limited = patience(0.2)
    assert await limited.pause()
    # as if this process had been stopped, or one request had hung, for longer than the limit
    await asyncio.sleep(0.3)
    assert await limited.pause()
