"""Callers: they submit, submit again when a connection died, wait, watch, cancel and delete."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gateway.db import DatabaseUnavailable
from gateway.errors import GatewayError
from gateway.job import JOB_TERMINAL, Call, Job, JobEvent, NewJob, Source
from gateway.jobs.engine import Jobs
from gateway.storage.base import StorageError
from tests.simulation.replica import ConnectionLost, Replica

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
RANK = {"pending": 0, "processing": 1, "completed": 2, "failed": 2, "cancelled": 2}
ANSWER_WITHIN_S = 8.0


class Workload:
    """All callers of one world."""

    def __init__(self, world: "World", rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._callers = [
            world.harness_task(self._caller(n), f"caller {n}") for n in range(world.plan.jobs)
        ]
        self._submitted = [world.loop.create_future() for _ in self._callers]
        self._told: set[asyncio.Task[None]] = set()
        self.longest_deadline_s = 0.0

    async def submitted(self) -> None:
        """Return once every caller got its job in, or gave up."""
        await asyncio.wait(
            [
                self._world.harness_task(_either(*pair), "submitted")
                for pair in zip(self._submitted, self._callers, strict=True)
            ]
        )

    def unanswered(self) -> list[str]:
        """Callers still waiting for something."""
        for task in self._callers:
            if task.done() and task.exception() is not None and task not in self._told:
                self._told.add(task)
                self._world.breach(f"{task.get_name()} got {task.exception()!r}")
        return [task.get_name() for task in self._callers if not task.done()]

    async def _caller(self, n: int) -> None:
        rng = random.Random(self._rng.random())
        world = self._world
        # the start of the gateways takes a moment
        arrives = (
            rng.uniform(0.05, 0.1) if world.plan.burst else rng.uniform(0, 0.8 * world.plan.span_s)
        )
        await asyncio.sleep(arrives)
        job_id = await self._submit(n, rng)
        self._submitted[n].set_result(None)
        if job_id is None:
            return
        acts: list[Callable[[str, random.Random], Awaitable[None]]] = []
        acts += [self._watch] if rng.random() < 0.5 else []
        acts += [self._cancel] if world.plan.has("cancel") and rng.random() < 0.5 else []
        acts += [self._wait]
        await asyncio.gather(*(act(job_id, random.Random(rng.random())) for act in acts))
        if world.plan.has("delete") and rng.random() < 0.5:
            await self._delete(job_id, rng)

    def _new_job(self, n: int, rng: random.Random, key: str | None, deadline_s: float) -> NewJob:
        job_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        stages = rng.choice((1, 1, 1, 2, 3))
        call: Call | None = None
        for stage in reversed(range(stages)):
            call = _stage(job_id, stage, stages, call, rng)
        assert call is not None
        self._world.judge.stages[job_id] = stages
        return NewJob(
            id=job_id,
            tool="image",
            variant="v",
            caller=f"caller{n % self._world.plan.callers}",
            params={"n": n},
            call=call,
            deadline_s=deadline_s,
            priority=rng.choice((0, 0, 5)),
            places=("runpod",) if self._world.plan.billed and rng.random() < 0.3 else None,
            idempotency_key=key,
            request_hash="f" * 64 if key else None,
            webhook_url="https://example.com/hook" if rng.random() < 0.5 else None,
            batch_id=self._world.batch_id if n in self._world.batch_members else None,
            batch_n=n if n in self._world.batch_members else None,
        )

    async def _submit(self, n: int, rng: random.Random) -> str | None:
        world = self._world
        key = f"key-{n}" if rng.random() < 0.8 else None
        deadline_s = rng.choice((3, 20)) if world.plan.has("deadline") else world.plan.deadline_s
        self.longest_deadline_s = max(self.longest_deadline_s, deadline_s)
        first: str | None = None
        tried: list[str] = []
        for _ in range(rng.choice((1, 1, 1, 2)) if key else 1):
            while True:
                new = self._new_job(n, rng, key, deadline_s)
                tried.append(new.id)
                try:
                    job, existing = await self._request(lambda jobs, new=new: jobs.submit(new), rng)
                except ConnectionLost:
                    if key is None:
                        # it may exist or not: nobody will ask for it, yet it must end like any
                        return None
                    continue
                if first is None:
                    first = job.id
                self._check_submitted(job, existing, first, tried)
                break
        return first

    def _check_submitted(self, job: Job, existing: bool, first: str, tried: list[str]) -> None:  # noqa: FBT001 - as the engine returns it
        world = self._world
        if job.id != first:
            world.breach(f"one key gave two jobs: {first[:8]} and {job.id[:8]}")
        if job.id not in world.ledger.jobs:
            world.breach(f"job {job.id[:8]} was acknowledged and is not committed")
        if existing != (job.id != tried[-1]):
            world.breach(f"job {job.id[:8]} was reported as {'known' if existing else 'new'}")
        if len(self._committed(tried)) > 1:
            world.breach(f"one key made several jobs: {tried}")

    def _committed(self, tried: list[str]) -> list[str]:
        return [job_id for job_id in tried if job_id in self._world.ledger.jobs]

    async def _wait(self, job_id: str, rng: random.Random) -> None:
        """Wait, in one long call or many short ones, until the job has ended."""
        world = self._world
        while True:
            seconds = rng.choice((0, 3, 30))
            before = world.ledger.jobs[job_id].row["status"]
            began = world.loop.time()
            try:
                job = await self._request(partial(_wait_for, job_id, seconds), rng)
            except ConnectionLost:
                continue
            took = world.loop.time() - max(began, world.disturbed_at)
            # a slow disk makes each of the reads behind an answer take seconds
            slack = ANSWER_WITHIN_S * (4 if world.plan.has("disk_stall") else 1)
            if took > seconds + slack:
                world.breach(f"wait({seconds}) for job {job_id[:8]} took {took:.1f} s")
            if self._gone(job_id, job):
                return
            if job is None:
                continue
            if RANK[job.status] < RANK[before]:
                world.breach(f"job {job_id[:8]} was {before} and is shown as {job.status}")
            if job.status in JOB_TERMINAL:
                self._check_shown(job)
                return
            if took < seconds - 0.01 and world.disturbed_at < began:
                world.breach(f"wait({seconds}) for job {job_id[:8]} gave up after {took:.1f} s")
            await asyncio.sleep(rng.choice((0.01, 2)))

    def _gone(self, job_id: str, job: Job | None) -> bool:
        deleted = self._world.ledger.jobs[job_id].deleted
        if job is None and not deleted:
            self._world.breach(f"job {job_id[:8]} is not found")
        return job is None and deleted

    def _check_shown(self, job: Job) -> None:
        book = self._world.ledger.jobs[job.id]
        if book.deleted:
            return
        if job.status != book.row["status"]:
            self._world.breach(f"job {job.id[:8]} is {book.row['status']}, shown {job.status}")
        if len(job.artifacts) != len(book.artifacts):
            self._world.breach(f"job {job.id[:8]} is shown with {len(job.artifacts)} files")

    async def _watch(self, job_id: str, rng: random.Random) -> None:
        """Follow the log to its end, resuming after the last number seen."""
        seen: list[int] = []
        ended = False
        connection = 0

        async def follow(jobs: Jobs) -> None:
            nonlocal ended
            mine = connection
            progress = _Progress(late=self._world.plan.notify)
            async for event in jobs.watch(job_id, after=seen[-1] if seen else 0):
                if mine != connection:
                    # this client has gone and follows by another connection already
                    return
                if wrong := progress.seen(event):
                    self._world.breach(f"job {job_id[:8]}: {wrong}")
                if event.type == "progress":
                    continue
                self._check_number(event, len(seen))
                seen.append(event.n)
                ended = event.type in JOB_TERMINAL

        while not ended:
            connection += 1
            try:
                await self._request(follow, rng)
            except ConnectionLost:
                continue
            if self._world.ledger.jobs[job_id].deleted:
                return
            if not ended:
                self._world.breach(f"job {job_id[:8]}: the log ended after {len(seen)} events")
                return

    def _check_number(self, event: JobEvent, before: int) -> None:
        if event.n != before + 1:
            self._world.breach(
                f"job {event.job_id[:8]}: watcher got event {event.n} after {before}"
            )

    async def _cancel(self, job_id: str, rng: random.Random) -> None:
        await asyncio.sleep(rng.choice((0, 0.01, 0.5, 3)))
        self._world.report.faults["cancel"] += 1
        while True:
            try:
                job = await self._request(lambda jobs: jobs.cancel(job_id), rng)
            except ConnectionLost:
                continue
            if not self._gone(job_id, job) and job is not None:
                if job.status not in JOB_TERMINAL:
                    self._world.breach(f"job {job_id[:8]} is {job.status} after a cancel")
                else:
                    self._check_shown(job)
            return

    async def _delete(self, job_id: str, rng: random.Random) -> None:
        self._world.ever_deleted = True
        self._world.report.faults["delete"] += 1
        while True:
            try:
                await self._request(lambda jobs: jobs.delete(job_id), rng)
            except (ConnectionLost, GatewayError, StorageError):
                # a store that fails keeps the job; asking again removes the rest
                if self._world.ledger.jobs[job_id].deleted:
                    return
                await asyncio.sleep(0.5)
                continue
            if not self._world.ledger.jobs[job_id].deleted:
                self._world.breach(f"job {job_id[:8]} is still there after its deletion")
            left = [key for key in self._world.store.files if job_id in key]
            if left and not self._world.plan.has("bad_files"):
                self._world.breach(f"job {job_id[:8]} left files behind: {left}")
            return

    async def _reachable(self, rng: random.Random) -> Replica:
        while True:
            ready = self._world.ready()
            if ready:
                return ready[0] if len(ready) == 1 else rng.choice(ready)
            await asyncio.sleep(0.2)

    async def _request(self, handle: Callable[[Jobs], Awaitable[T]], rng: random.Random) -> T:
        """One call; waits for a gateway first and asks again when its database was away."""
        world = self._world
        hang_up = rng.choice((0.001, 0.05, 2)) if world.strikes("hang_up", 0.3, rng) else 0
        replica = await self._reachable(rng)
        try:
            return await replica.call(handle, hang_up_after=hang_up)
        except DatabaseUnavailable:
            await asyncio.sleep(0.2)
            raise ConnectionLost from None


class _Progress:
    """What one watcher may see of a job's progress: it goes back only for a new attempt."""

    def __init__(self, *, late: bool) -> None:
        self._late = self._may_be_late = late
        """The attempt before may be told of once more, by a message that came after the rows."""
        self._last = -1.0

    def seen(self, event: JobEvent) -> str | None:
        """What is wrong about the next thing seen, if anything."""
        if event.type == "retrying":
            self._last, self._late = -1.0, self._may_be_late
        if event.type != "progress":
            return None
        fraction = event.data.get("fraction")
        if not isinstance(fraction, int | float):
            return f"progress {fraction!r}"
        last, self._last = self._last, float(fraction)
        if fraction >= last:
            return None
        if self._late:
            self._late = False
            return None
        return f"progress went back to {fraction} from {last}"


def _stage(job_id: str, stage: int, stages: int, then: Call | None, rng: random.Random) -> Call:
    """The call of one stage; all but the first read what the one before made."""
    read = (Source(slot="image/0", media_type="image/png"),)
    return Call(
        workflow="image",
        digest="d" * 64,
        params={"job": job_id, "stage": stage},
        outputs=tuple(f"image/{slot}" for slot in range(rng.choice((1, 1, 3)))),
        prefix="generated",
        models=rng.choice(((), ("a",), ("b",))),
        inputs={"picture": read} if stage else {},
        ends_at=(stage + 1) / stages,
        then=then,
    )


async def _wait_for(job_id: str, seconds: float, jobs: Jobs) -> Job | None:
    return await jobs.wait(job_id, seconds)


async def _either(*waited: "asyncio.Future[None]") -> None:
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
