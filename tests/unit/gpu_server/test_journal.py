import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from gpu_server.journal import FinalState, Journal


async def test_the_client_id_outlives_the_process(tmp_path: Path) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        first = await journal.client_id()
        assert await journal.client_id() == first
    async with Journal(tmp_path / "j.db") as journal:
        assert await journal.client_id() == first
    async with Journal(tmp_path / "other.db") as journal:
        assert await journal.client_id() != first


async def test_a_run_goes_from_accepted_to_delivered_and_is_unfinished_until_then(
    tmp_path: Path,
) -> None:
    async with Journal(tmp_path / "deep" / "j.db") as journal:
        assert await journal.put("a", b"request")
        assert await journal.claim("a") == "accepted"
        for state in ("posting", "posted"):
            await journal.move("a", state)
            (row,) = await journal.unfinished()
            assert (row.run_id, row.state, row.request) == ("a", state, b"request")
        await journal.end("a", "delivered", b"status")
        assert await journal.unfinished() == []
        row = await journal.get("a")
        assert row is not None
        assert (row.state, row.status, row.request) == ("delivered", b"status", b"")


async def test_what_was_asked_for_changes_only_while_nothing_was_sent(tmp_path: Path) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        assert await journal.put("a", b"first")
        assert await journal.put("a", b"second")
        await journal.claim("a")
        assert not await journal.put("a", b"third")
        row = await journal.get("a")
        assert row is not None
        assert (row.state, row.request) == ("posting", b"second")


async def test_a_claim_tells_what_may_have_been_sent_and_changes_only_what_was_not(
    tmp_path: Path,
) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        assert await journal.claim("a") is None
        assert await journal.claim("a") == "posting"
        await journal.move("a", "posted")
        assert await journal.claim("a") == "posted"
        row = await journal.get("a")
        assert row is not None
        assert (row.state, row.request) == ("posted", b"")


@pytest.mark.parametrize("state", ["delivered", "failed", "cancelled"])
async def test_how_a_run_ended_is_known_to_the_next_process(
    tmp_path: Path, state: FinalState
) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        await journal.end("a", state, b"status")
    async with Journal(tmp_path / "j.db") as journal:
        (row,) = await journal.over(3600)
        assert (row.run_id, row.state, row.status) == ("a", state, b"status")
        assert await journal.claim("a") == state
        assert not await journal.put("a", b"again")
        assert await journal.over(-1) == []
        await journal.delete("a")
        assert await journal.over(3600) == []


async def test_a_cancelled_run_stays_cancelled_until_it_has_ended(tmp_path: Path) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        await journal.put("a", b"request")
        for run_id in ("a", "never put"):
            await journal.cancel(run_id)
            await journal.move(run_id, "posted")
            assert not await journal.put(run_id, b"again")
            assert await journal.claim(run_id) == "cancelled"
            row = await journal.get(run_id)
            assert row is not None
            assert (row.state, row.ended) == ("cancelled", None)
        await journal.end("a", "delivered", b"status")
        await journal.cancel("a")
        row = await journal.get("a")
        assert row is not None
        assert row.state == "delivered"


async def test_only_runs_that_ended_long_ago_are_purged(tmp_path: Path) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        for run_id in ("going", "delivered", "cancelled"):
            await journal.put(run_id, b"")
        await journal.end("delivered", "delivered", b"")
        await journal.end("cancelled", "cancelled", b"")
        assert await journal.purge(3600, cancelled_s=3600) == []
        assert await journal.purge(-1, cancelled_s=3600) == ["delivered"]
        assert await journal.purge(3600, cancelled_s=-1) == ["cancelled"]
        assert [row.run_id for row in await journal.unfinished()] == ["going"]
        await journal.delete("going")
        await journal.delete("going")
        assert await journal.unfinished() == []


async def test_calls_at_once_keep_their_order(tmp_path: Path) -> None:
    async with Journal(tmp_path / "j.db") as journal:
        moves = [journal.move("a", state) for state in ("posting", "posted")]
        await asyncio.gather(*moves, journal.end("a", "delivered", b""))
        row = await journal.get("a")
    assert row is not None
    assert row.state == "delivered"


async def test_a_journal_of_the_first_version_keeps_its_unfinished_runs(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "j.db")) as old:
        old.executescript(
            """
            CREATE TABLE identity (one INTEGER PRIMARY KEY, client_id TEXT NOT NULL) STRICT;
            CREATE TABLE runs (
                run_id TEXT PRIMARY KEY,
                state TEXT NOT NULL CHECK (state IN ('accepted', 'posting', 'posted', 'delivered')),
                request BLOB NOT NULL,
                created REAL NOT NULL
            ) STRICT;
            INSERT INTO identity VALUES (1, 'client');
            INSERT INTO runs VALUES ('going', 'posted', x'61', 1), ('over', 'delivered', x'', 1);
            """
        )
    for _ in range(2):
        async with Journal(tmp_path / "j.db") as journal:
            assert await journal.client_id() == "client"
            (row,) = await journal.unfinished()
            assert (row.run_id, row.state, row.request) == ("going", "posted", b"a")
    async with Journal(tmp_path / "j.db") as journal:
        await journal.end("going", "failed", b"why")
        assert [each.run_id for each in await journal.over(3600)] == ["going"]


async def test_a_file_that_is_no_journal_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "j.db").write_bytes(b"not a database, but long enough to be read as one" * 10)
    with pytest.raises(sqlite3.DatabaseError):
        await Journal(tmp_path / "j.db").__aenter__()
