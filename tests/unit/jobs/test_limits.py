"""How many jobs may wait, and how seldom they are counted."""

import math

import pytest

from gateway.errors import InvalidParameters, QueueFull
from gateway.jobs import limits
from gateway.jobs.limits import QueueLimits


class Queue:
    """What waits, and how often it was counted."""

    def __init__(self, **waiting: int) -> None:
        self.waiting = waiting
        self.counted = 0
        self.place_s: float | None = None

    async def count(self) -> dict[str, int]:
        self.counted += 1
        return dict(self.waiting)

    async def one_place_s(self) -> float | None:
        return self.place_s

    def limits(self, *, per_caller: int = 0, total: int = 0) -> QueueLimits:
        return QueueLimits(
            count=self.count, one_place_s=self.one_place_s, per_caller=per_caller, total=total
        )


async def test_a_caller_with_as_many_waiting_as_may_is_refused_and_others_are_not() -> None:
    allowed = Queue(alice=9).limits(per_caller=10)
    await allowed.let_in("alice")
    with pytest.raises(QueueFull, match="You have 10 jobs waiting, and at most 10 may"):
        await allowed.let_in("alice")
    await allowed.let_in("bob")


async def test_all_callers_together_are_bounded() -> None:
    allowed = Queue(alice=5, bob=4).limits(per_caller=100, total=10)
    await allowed.let_in("carol")
    with pytest.raises(QueueFull, match="10 jobs are waiting here, and at most 10 may"):
        await allowed.let_in("dave")


async def test_a_batch_is_let_in_whole_or_not_at_all() -> None:
    allowed = Queue(alice=1).limits(per_caller=10)
    with pytest.raises(QueueFull):
        await allowed.let_in("alice", 10)
    await allowed.let_in("alice", 9)


@pytest.mark.parametrize("limits_", [{"per_caller": 10, "total": 20}, {"total": 10}])
async def test_a_batch_that_no_empty_queue_has_room_for_is_not_to_be_sent_again(
    limits_: dict[str, int],
) -> None:
    allowed = Queue().limits(**limits_)
    with pytest.raises(InvalidParameters, match="items: must have at most 10 items"):
        await allowed.let_in("alice", 11)
    await allowed.let_in("alice", 10)


async def test_a_batch_is_told_to_wait_for_all_the_places_it_needs() -> None:
    queue = Queue(alice=8)
    queue.place_s = 2.5
    with pytest.raises(QueueFull) as refused:
        await queue.limits(per_caller=10).let_in("alice", 6)
    assert refused.value.retry_after == 10


async def test_no_limit_counts_nothing() -> None:
    queue = Queue(alice=10**9)
    await queue.limits().let_in("alice", 10**6)
    assert queue.counted == 0


async def test_far_from_full_a_thousand_submits_count_once() -> None:
    queue = Queue()
    allowed = queue.limits(per_caller=20_000, total=100_000)
    for _ in range(1000):
        await allowed.let_in("alice")
    assert queue.counted == 1


async def test_what_began_meanwhile_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FRESH_S", 0)
    monkeypatch.setattr(limits, "SHARE_OF_TIME", math.inf)
    queue = Queue(alice=10)
    allowed = queue.limits(per_caller=10)
    with pytest.raises(QueueFull):
        await allowed.let_in("alice")
    queue.waiting["alice"] = 9
    await allowed.let_in("alice")


@pytest.mark.parametrize(("place_s", "told"), [(None, 30), (0.2, 1), (7.1, 8), (10**6, 3600)])
async def test_when_to_try_again_follows_the_estimate(place_s: float | None, told: int) -> None:
    queue = Queue(alice=1)
    queue.place_s = place_s
    with pytest.raises(QueueFull) as refused:
        await queue.limits(per_caller=1).let_in("alice")
    assert refused.value.retry_after == told
