"""Batches while the database does not answer."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.db import DatabaseUnavailable
from gateway.db.batches import Batch, BatchRows, NewBatch
from gateway.job import new_job_id
from tests.unit.jobs.world import PATIENT, World, finished, new_job


def new_batch(items: int) -> NewBatch:
    batch_id = new_job_id()
    jobs = tuple(new_job(batch_id=batch_id, batch_n=n) for n in range(items))
    return NewBatch(id=batch_id, caller="alice", tool="generate", jobs=jobs, idempotency_key="k")


async def test_a_batch_whose_commit_was_not_answered_is_found_and_written_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = BatchRows.insert
    answers = [False, True]

    async def unanswered(self: BatchRows, new: NewBatch, **options: Any) -> Batch:
        batch = await insert(self, new, **options)
        if answers.pop(0):
            return batch
        raise DatabaseUnavailable("the connection broke at the commit")

    jobs = await world.gateway()
    monkeypatch.setattr(BatchRows, "insert", unanswered)
    new = new_batch(3)
    assert (await jobs.batches.submit(new)).id == new.id
    for job in new.jobs:
        assert (await finished(jobs, job.id)).status == "completed"
    assert len(world.rows("SELECT id FROM runs")) == 3


async def test_a_batch_that_may_have_been_written_is_counted_by_the_rows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    insert = BatchRows.insert

    async def unanswered(self: BatchRows, new: NewBatch, **options: Any) -> Batch:
        if not world.rows("SELECT id FROM batches"):
            await insert(self, new, **options)
        raise DatabaseUnavailable("away")

    jobs = await world.gateway(lease_s=3600)
    monkeypatch.setattr(BatchRows, "insert", unanswered)
    with pytest.raises(DatabaseUnavailable):
        await jobs.batches.submit(new_batch(1))
    assert jobs._ownership._uncertain


async def test_a_wait_for_a_batch_outlives_a_short_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpu.capacity = 0
    jobs = await world.gateway()
    batch = await jobs.batches.submit(replace(new_batch(2), idempotency_key=None))
    get, looks = jobs.batches.get, 0

    async def away_once(batch_id: str) -> Batch | None:
        nonlocal looks
        looks += 1
        if looks == 2:
            world.gpu.capacity = 2
            raise DatabaseUnavailable("away")
        return await get(batch_id)

    monkeypatch.setattr(jobs.batches, "get", away_once)
    ended = await jobs.batches.wait(batch.id, PATIENT)
    assert ended is not None
    assert ended.finished_at is not None
    assert looks > 2
