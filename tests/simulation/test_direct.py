import asyncio
import random
import sqlite3
from collections.abc import Coroutine
from functools import cache
from typing import Any

import pytest
from sqlalchemy import JSON, Boolean, Column, Integer, MetaData, Table, bindparam, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.simulation import dbapi
from tests.simulation.dbapi import Observer, Watched
from tests.simulation.direct import DirectServer, File, Session, create_direct_engine
from tests.simulation.loop import VirtualLoop, spawn
from tests.simulation.process import Process

table = Table(
    "t",
    MetaData(),
    Column("n", Integer, primary_key=True),
    Column("data", JSON),
    Column("flag", Boolean),
)


class Watcher(Observer):
    def __init__(self) -> None:
        self.settled_as: list[tuple[list[tuple[Any, ...]], bool]] = []

    def settled(self, connection: Watched, *, committed: bool) -> None:
        self.settled_as.append((list(connection.changes), committed))


@cache
def kept_file() -> File:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, data JSON, flag BOOLEAN)")
    connection.execute("CREATE TRIGGER tell AFTER INSERT ON t BEGIN SELECT sim_changed(NEW.n); END")
    data = bytearray(connection.serialize())
    connection.close()
    data[18] = data[19] = 2
    return File(bytes(data))


class Bench:
    """A kept file emptied, a loop and two processes."""

    def __init__(self, seed: int = 0) -> None:
        kept_file().empty()
        self.loop = VirtualLoop(random.Random(seed), scheduler="random", max_steps=100_000)
        self.watcher = Watcher()
        self.server = DirectServer(
            kept_file(), random.Random(seed), observer=self.watcher, slow=0.5
        )
        self.process, self.other = Process("p"), Process("q")
        for process in (self.process, self.other):
            process.base.run(dbapi.SERVER.set, self.server)
            process.at_death.append(lambda process=process: self.server.gone(process))

    def run(self, story: Coroutine[Any, Any, None]) -> None:
        try:
            self.loop.run(story)
        finally:
            for process in (self.process, self.other):
                process.kill()
                process.bury()
        assert self.loop.errors == []

    async def within(self, process: Process, work: Coroutine[Any, Any, Any]) -> Any:
        return await spawn(self.loop, process, work, "work")

    def rows(self) -> list[int]:
        return [n for (n,) in kept_file().reader.execute("SELECT n FROM t ORDER BY n")]


async def write(*numbers: int, slowly: float = 0) -> None:
    async with engine().begin() as connection:
        for n in numbers:
            await connection.execute(insert(table), {"n": n, "data": {"n": n}, "flag": n > 1})
            await asyncio.sleep(slowly)


def engine() -> AsyncEngine:
    return create_direct_engine("sqlite+aiosqlite:///any.db")


def test_values_and_rows_go_through_as_with_sqlalchemys_own_execution() -> None:
    bench = Bench()
    few = select(table).where(table.c.n.in_(bindparam("some", expanding=True))).order_by(table.c.n)

    async def story() -> None:
        await bench.within(bench.process, write(1, 2, 3))
        bench_rows: list[Any] = []

        async def read() -> None:
            async with engine().connect() as connection:
                for some in ([1, 3], [], [2]):
                    result = await connection.execute(few, {"some": some})
                    bench_rows.append(result.mappings().all())

        await bench.within(bench.process, read())
        one, three = (
            {"n": 1, "data": {"n": 1}, "flag": False},
            {"n": 3, "data": {"n": 3}, "flag": True},
        )
        assert bench_rows == [[one, three], [], [{"n": 2, "data": {"n": 2}, "flag": True}]]

    bench.run(story())
    assert bench.watcher.settled_as == [([(1,), (2,), (3,)], True)]


def test_a_violated_constraint_is_an_integrity_error_and_rolls_back() -> None:
    bench = Bench()

    async def story() -> None:
        await bench.within(bench.process, write(1))
        with pytest.raises(IntegrityError):
            await bench.within(bench.process, write(2, 1))

    bench.run(story())
    assert bench.rows() == [1]
    assert [committed for _, committed in bench.watcher.settled_as] == [True, False]


def test_writers_of_two_processes_wait_for_each_other_and_readers_see_only_what_is_committed() -> (
    None
):
    bench = Bench()
    seen: list[int] = []

    async def story() -> None:
        async def look() -> None:
            for _ in range(40):
                async with engine().connect() as connection:
                    result = await connection.execute(select(table))
                    seen.append(len(result.mappings().all()))
                await asyncio.sleep(0.1)

        await asyncio.gather(
            bench.within(bench.process, write(1, 2, slowly=1)),
            bench.within(bench.other, write(3, 4, slowly=1)),
            bench.within(bench.other, look()),
        )

    bench.run(story())
    assert bench.rows() == [1, 2, 3, 4]
    # nothing of a transaction before all of it
    assert set(seen) <= {0, 2, 4}


def crash_at(turn: int) -> tuple[list[int], bool]:
    bench = Bench(seed=7)
    bench.process.crash_at = turn
    learned: list[bool] = []

    async def story() -> None:
        async def write_and_learn() -> None:
            await write(1)
            learned.append(True)

        spawn(bench.loop, bench.process, write_and_learn(), "write")
        await asyncio.sleep(60)
        bench.process.kill()
        assert bench.server.writing is None

    bench.run(story())
    return bench.rows(), bool(learned)


def test_a_crash_at_every_turn_leaves_all_of_a_transaction_or_nothing_and_no_lock() -> None:
    seen: set[tuple[bool, bool]] = set()
    for turn in range(1, 20):
        rows, learned = crash_at(turn)
        assert rows in ([], [1])
        seen.add((bool(rows), learned))
    # nothing written · written, and the process never learned it · written and learned
    assert seen == {(False, False), (True, False), (True, True)}


def test_a_transaction_ended_by_the_server_lets_the_next_in_and_fails_where_it_was_begun() -> None:
    bench = Bench()

    async def story() -> None:
        stopped = spawn(bench.loop, bench.process, write(1, slowly=5), "stopped")
        await asyncio.sleep(1)
        bench.process.freeze()
        waiting = spawn(bench.loop, bench.other, write(2), "waiting")
        await asyncio.sleep(1)
        session = bench.server.frozen(bench.process)
        assert isinstance(session, Session)
        bench.server.end(session)
        await waiting
        bench.process.thaw(bench.loop)
        with pytest.raises(OperationalError, match="terminating"):
            await stopped

    bench.run(story())
    assert bench.rows() == [2]


def test_a_commit_whose_answer_is_lost_is_carried_out_or_not() -> None:
    kept: set[bool] = set()
    for seed in range(20):
        bench = Bench(seed)
        bench.server.lost_commits = 1

        async def story(bench: Bench = bench) -> None:
            with pytest.raises(OperationalError, match="commit"):
                await bench.within(bench.process, write(1))

        bench.run(story())
        kept.add(bench.rows() == [1])
    assert kept == {True, False}


def test_a_server_that_is_away_ends_what_is_open_and_takes_nothing_new() -> None:
    bench = Bench()

    async def story() -> None:
        open_one = spawn(bench.loop, bench.process, write(1, slowly=2), "open")
        await asyncio.sleep(1)
        queued = spawn(bench.loop, bench.other, write(2), "queued")
        await asyncio.sleep(0.5)
        bench.server.away = True
        bench.server.restart()
        for task in (open_one, queued):
            with pytest.raises(OperationalError):
                await task
        with pytest.raises(OperationalError, match="not up"):
            await bench.within(bench.process, write(3))
        bench.server.away = False
        await bench.within(bench.process, write(4))

    bench.run(story())
    assert bench.rows() == [4]
