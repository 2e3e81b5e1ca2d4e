"""What lets a caller in, and what does not, by sums a test says."""

import asyncio
from dataclasses import dataclass

import pytest

from gateway import quota as module
from gateway.db.usage import Stored
from gateway.errors import QuotaExceeded
from gateway.quota import MEGABYTE, Quota


@dataclass
class Rows:
    """What the database would say, and how often it was asked."""

    n: int = 0
    asked: int = 0

    async def stored(self, caller: str) -> Stored:
        assert caller == "alice"
        self.asked += 1
        await asyncio.sleep(0)
        return Stored(uploads=self.n // 2, results=self.n - self.n // 2)


@pytest.fixture(autouse=True)
def a_new_sum_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # else how long the reading took would decide whether it is repeated
    monkeypatch.setattr(module, "SHARE_OF_TIME", float("inf"))


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def quota(rows: Rows) -> Quota:
    return Quota(stored=rows.stored, most_mb=1)


async def test_without_a_limit_nothing_is_asked() -> None:
    rows = Rows(n=10**12)
    unlimited = Quota(stored=rows.stored, most_mb=0)
    await unlimited.require("alice", 10**12)
    async with unlimited.room("alice", 10**12) as room:
        await room.need(2 * 10**12)
    assert (unlimited.limit, rows.asked) == (None, 0)


async def test_what_lets_in_is_asked_seldom(quota: Quota, rows: Rows) -> None:
    for _ in range(10):
        await quota.require("alice")
    assert rows.asked == 1


async def test_nobody_is_refused_by_an_old_sum(quota: Quota, rows: Rows) -> None:
    rows.n = MEGABYTE
    with pytest.raises(QuotaExceeded):
        await quota.require("alice")
    rows.n = 0
    await quota.require("alice")


@pytest.mark.parametrize("more", [0, 1])
async def test_the_last_byte_may_be_used_and_none_behind_it(
    quota: Quota, rows: Rows, more: int
) -> None:
    rows.n = MEGABYTE - 1
    await quota.require("alice", more)
    rows.n = MEGABYTE
    async with quota.room("alice", 1):
        with pytest.raises(QuotaExceeded):
            await quota.require("alice", more)


async def test_a_refusal_says_how_much_there_is_and_what_to_delete(
    quota: Quota, rows: Rows
) -> None:
    rows.n = 3 * MEGABYTE // 2
    with pytest.raises(QuotaExceeded) as refused:
        await quota.require("alice", MEGABYTE // 2)
    for said in ("1.5 MB", "1.0 MB", "0.5 MB", "DELETE /api/jobs/{job_id}", "/api/usage"):
        assert said in refused.value.detail
    assert (refused.value.status, refused.value.code) == (403, "quota_exceeded")


async def test_files_on_their_way_in_take_room_from_one_another(quota: Quota, rows: Rows) -> None:
    async with quota.room("alice", MEGABYTE // 2):
        # a new sum does not know of the first one
        with pytest.raises(QuotaExceeded):
            async with quota.room("alice", MEGABYTE // 2 + 1):
                pass
        async with quota.room("alice", MEGABYTE // 2):
            pass
    rows.n = 0


async def test_a_file_that_came_counts_before_the_next_sum(quota: Quota, rows: Rows) -> None:
    async with quota.room("alice", MEGABYTE // 2):
        pass
    async with quota.room("alice", MEGABYTE // 2):
        pass
    assert rows.asked == 1
    rows.n = MEGABYTE
    with pytest.raises(QuotaExceeded):
        await quota.require("alice")


async def test_a_file_that_did_not_come_leaves_its_room_to_others(quota: Quota, rows: Rows) -> None:
    with pytest.raises(ValueError, match="broken off"):
        async with quota.room("alice", MEGABYTE):
            raise ValueError("broken off")
    async with quota.room("alice", MEGABYTE):
        assert rows.asked == 1


async def test_a_file_of_unknown_length_is_broken_off_at_the_limit(
    quota: Quota, rows: Rows
) -> None:
    rows.n = MEGABYTE // 2
    received = 0

    async def receive() -> None:
        nonlocal received
        async with quota.room("alice") as room:
            while received < MEGABYTE:
                received += 64 * 1024
                await room.need(received)

    with pytest.raises(QuotaExceeded):
        await receive()
    assert received == MEGABYTE // 2 + 64 * 1024
    await quota.require("alice", MEGABYTE // 2)


async def test_what_was_taken_meanwhile_is_never_lost(quota: Quota, rows: Rows) -> None:
    async def keep() -> None:
        async with quota.room("alice", 1024):
            await asyncio.sleep(0)

    await asyncio.gather(*(keep() for _ in range(MEGABYTE // 1024)))
    rows.n = MEGABYTE
    with pytest.raises(QuotaExceeded):
        await quota.require("alice")
