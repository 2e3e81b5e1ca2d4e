"""Which waiting runs placement looks at, on either database, with ten thousand of them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert

from gateway.db import Database, placements
from gateway.db.engine import Transaction
from gateway.db.limits import waiting_by_caller
from gateway.db.records import micros
from gateway.db.tables import jobs, runs
from gateway.db.timings import Timings
from gateway.job import new_job_id

NOW = datetime(2026, 5, 1, tzinfo=UTC)
MANY = 10_000


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.close()


class Queue:
    """Rows of jobs and runs, made in the order in which they came."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []

    def add(self, caller: str, count: int = 1, **changes: Any) -> list[str]:
        ids = [new_job_id() for _ in range(count)]
        for identifier in ids:
            came = micros(NOW - timedelta(hours=1)) + len(self.runs)
            ended = {"finished_at": changes["finished_at"]} if "finished_at" in changes else {}
            self.jobs.append(
                {
                    "id": identifier,
                    "tool": "generate",
                    "variant": changes.get("variant", "flux1-dev"),
                    "caller": caller,
                    "status": changes.get("status", "pending"),
                    "progress": changes.get("progress", 0.0),
                    "params": {},
                    "call": {},
                    "outcome": changes.get("outcome"),
                    "events": 1,
                    "created_at": came,
                    "finished_at": ended.get("finished_at"),
                    "deadline_at": micros(NOW + timedelta(hours=1)),
                    "size": changes.get("size", 2.0),
                }
            )
            self.runs.append(
                {
                    "id": identifier,
                    "job_id": identifier,
                    "stage": 0,
                    "attempt": 0,
                    "state": changes.get("state", "waiting"),
                    "caller": caller,
                    "priority": changes.get("priority", 0),
                    "workflow": "flux",
                    "digest": changes.get("digest", "d"),
                    "models": [],
                    "owner": changes.get("owner", "me"),
                    "epoch": 0,
                    "failures": 0,
                    "deaths": 0,
                    "created_at": changes.get("created_at", came),
                    "not_before": changes.get("not_before", came),
                    "deadline_at": changes.get("deadline_at", micros(NOW + timedelta(hours=1))),
                    "granted_at": changes.get("granted_at"),
                }
            )
        return ids

    async def written(self, db: Database) -> None:
        async def work(writing: Transaction) -> None:
            for n in range(0, len(self.jobs), 1000):
                await writing.execute(insert(jobs), self.jobs[n : n + 1000])
                await writing.execute(insert(runs), self.runs[n : n + 1000])

        await db.write(work)


async def heads(db: Database, *, per_caller: int = 16, without: tuple[str, ...] = ()) -> list[Any]:
    return await db.write(
        lambda writing: placements.heads(
            writing, NOW, owners={"me"}, per_caller=per_caller, without=without
        )
    )


async def test_one_callers_ten_thousand_jobs_do_not_hide_anothers_one(db: Database) -> None:
    queue = Queue()
    first = queue.add("alice", MANY)[:16]
    queue.add("alice", MANY // 10, priority=-10)
    [lone] = queue.add("bob")
    [batched] = queue.add("carol", priority=-10)
    await queue.written(db)

    found = await heads(db)

    assert {lone, batched} <= {row["id"] for row in found}
    alices = [row for row in found if row["caller"] == "alice"]
    assert {row["id"] for row in alices if row["priority"] == 0} <= set(first)
    # its lanes take turns: what waits long enough is not hidden by what goes before it
    assert {row["priority"] for row in alices} == {0, -10}
    assert len(alices) == 16
    assert await waiting_by_caller(db) == {"alice": MANY + MANY // 10, "bob": 1, "carol": 1}


async def test_jobs_that_came_at_once_are_found_one_by_one(db: Database) -> None:
    queue = Queue()
    ids = queue.add("alice", 300, created_at=micros(NOW - timedelta(hours=1)))
    await queue.written(db)
    assert {row["id"] for row in await heads(db)} == set(sorted(ids)[:16])


async def test_runs_that_may_not_begin_hide_no_others(db: Database) -> None:
    queue = Queue()
    queue.add("alice", owner=None)
    queue.add("alice", owner="a dead one")
    queue.add("alice", not_before=micros(NOW + timedelta(seconds=1)))
    queue.add("alice", deadline_at=micros(NOW))
    queue.add("alice", digest="stuck")
    queue.add("alice", state="granted", granted_at=micros(NOW))
    [free] = queue.add("alice")
    queue.add("bob", owner=None)
    await queue.written(db)

    [row] = await heads(db, per_caller=2, without=("stuck",))

    assert (row["id"], row["turn"], row["models"]) == (free, micros(NOW), [])


async def test_where_callers_are_too_many_those_served_longest_ago_are_looked_at(
    db: Database,
) -> None:
    queue = Queue()
    for n in range(placements.HEADS + 10):
        queue.add(f"caller-{n:04}")
        served = micros(NOW) - n
        queue.add(f"caller-{n:04}", state="delivered", granted_at=served)
    await queue.written(db)
    seen = {row["caller"] for row in await heads(db)}
    assert seen == {f"caller-{n:04}" for n in range(10, placements.HEADS + 10)}


async def test_an_empty_queue_has_no_heads(db: Database) -> None:
    assert await heads(db) == []


async def test_open_work_is_summed_up(db: Database) -> None:
    queue = Queue()
    queue.add("alice", 3, size=4.0)
    queue.add("alice", size=4.0, state="started", progress=0.75)
    queue.add("bob", size=None, priority=5)
    queue.add("bob", state="delivered", status="completed")
    await queue.written(db)

    lanes = await Timings(db).queue()

    found = {(one.caller, one.priority, one.under_way, one.jobs, one.size) for one in lanes}
    assert found == {
        ("alice", 0, False, 3, 12.0),
        ("alice", 0, True, 1, 1.0),
        ("bob", 5, False, 1, 1.0),
    }
    [waiting] = [one for one in lanes if one.caller == "alice" and not one.under_way]
    assert waiting.newest - waiting.oldest == 2


async def test_the_latest_completed_jobs_of_the_same_kind_are_measured(db: Database) -> None:
    queue = Queue()
    ended: dict[str, Any] = {"status": "completed", "state": "delivered"}
    for n in range(60):
        took = {"duration_seconds": float(n), "engine": "comfyui"}
        queue.add("alice", **ended, outcome=took, finished_at=micros(NOW) + n)
    queue.add("alice", **ended, variant="other", outcome={}, finished_at=micros(NOW) + 100)
    queue.add("alice", status="failed", state="failed", finished_at=micros(NOW) + 101)
    await queue.written(db)

    found = await Timings(db).measured("generate", "flux1-dev")

    assert [one.seconds for one in found] == [float(n) for n in range(59, 9, -1)]
    assert {(one.size, one.engine) for one in found} == {(2.0, "comfyui")}
