"""Batches: taken whole or not at all, waited for, cancelled and deleted job by job."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from gateway.clock import Clock
from gateway.db import AlreadyThere, Database, DatabaseUnavailable
from gateway.db.batches import Batch, BatchCounts, BatchPage, BatchRows, ItemPage, NewBatch
from gateway.errors import Conflict, IdempotencyKeyReused
from gateway.job import Job
from gateway.jobs.ownership import Ownership
from gateway.jobs.wait import Hub

__all__ = ["Batch", "BatchCounts", "BatchPage", "Batches", "ItemPage", "NewBatch"]

ITEMS_AT_ONCE = 50


class Batches:
    """Every batch of this gateway.

    `run_ended` stops its driver, if it is here; `delete` removes one job with its files.
    """

    def __init__(
        self,
        *,
        db: Database,
        ownership: Ownership,
        hub: Hub,
        clock: Clock,
        poll_s: float,
        run_ended: Callable[[str], None],
        delete: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._rows = BatchRows(db)
        self._ownership = ownership
        self._hub = hub
        self._clock = clock
        self._poll_s = poll_s
        self._run_ended = run_ended
        self._delete = delete
        self.get = self._rows.get
        self.counts = self._rows.counts
        self.list = self._rows.list
        self.items = self._rows.items

    async def submit(self, new: NewBatch) -> Batch:
        """Write a batch down with all of its jobs, committed before this returns.

        Raises IdempotencyKeyReused.
        """
        owners = {
            job.id: self._ownership.admit(job.id, job.caller, job.priority) for job in new.jobs
        }
        try:
            return await self._insert(new, owners)
        except AlreadyThere:
            self._not_written(new)
            return await self._made_before(new)
        except DatabaseUnavailable:
            self._not_written(new)
            self._ownership.uncertain()
            raise

    async def _insert(self, new: NewBatch, owners: Mapping[str, str | None]) -> Batch:
        try:
            return await self._rows.insert(new, owners=owners, now=self._clock.now())
        except DatabaseUnavailable:
            # the connection may have broken at the commit: the same ids are written once
            try:
                return await self._rows.insert(new, owners=owners, now=self._clock.now())
            except AlreadyThere:
                batch = await self.get(new.id)
                if batch is None:
                    raise
                return batch

    async def find(self, caller: str, key: str, request_hash: str | None) -> Batch | None:
        """The batch an idempotency key stands for. Raises IdempotencyKeyReused."""
        batch = await self._rows.by_key(caller, key)
        if batch is not None and batch.request_hash != request_hash:
            raise IdempotencyKeyReused(
                "This Idempotency-Key was sent with another batch before: use a new key for a "
                "new batch."
            )
        return batch

    async def wait(self, batch_id: str, seconds: float) -> Batch | None:
        """The batch once its last job has ended, or as it is after `seconds`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        with self._hub.listen(batch_id, every_change=False) as listener:
            batch: Batch | None = None
            while True:
                try:
                    batch = await self.get(batch_id)
                except DatabaseUnavailable:
                    # one that is away for a while breaks off no call that waits
                    if batch is None:
                        raise
                left = until - loop.time()
                if batch is None or batch.finished_at is not None or left <= 0:
                    return batch
                await listener.wait(min(left, self._poll_s))

    async def cancel(self, batch_id: str) -> None:
        """End every job that has not ended, some at a time; broken off, it can be repeated."""
        while (ended := await self._rows.cancel_some(batch_id, self._clock.now())) is not None:
            for run_id in ended:
                self._run_ended(run_id)

    async def delete(self, batch_id: str) -> bool:
        """Remove an ended batch, its jobs and their files; False when there is none.

        Broken off, it can be repeated. Raises Conflict.
        """
        batch = await self.get(batch_id)
        if batch is None:
            return False
        if batch.finished_at is None:
            raise Conflict("The batch is not finished: cancel it first, or wait.")
        for job_id in await self._rows.ended_jobs(batch_id):
            await self._delete(job_id)
        return await self._rows.delete(batch_id)

    async def each_item(self, batch_id: str) -> AsyncIterator[Job]:
        """Every job of a batch in order, read a few at a time."""
        cursor: str | None = None
        while True:
            page = await self.items(batch_id, cursor, ITEMS_AT_ONCE)
            for job in page.items:
                yield job
            if page.next_cursor is None:
                return
            cursor = page.next_cursor

    async def _made_before(self, new: NewBatch) -> Batch:
        if new.idempotency_key is not None:
            batch = await self.find(new.caller, new.idempotency_key, new.request_hash)
            if batch is not None:
                return batch
        raise Conflict("A batch of that key has just been removed: send the request again.")

    def _not_written(self, new: NewBatch) -> None:
        for job in new.jobs:
            self._ownership.ended(job.id)
