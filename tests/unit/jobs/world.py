"""A job engine on a real database, a scripted backend and a storage in memory."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from gateway.backends.base import (
    BackendUnreachable,
    Kind,
    Order,
    Progressed,
    Readiness,
    WorkflowReadiness,
)
from gateway.clock import SystemClock
from gateway.db import Database
from gateway.job import Call, Job, JobEvent, NewJob, Produced, new_job_id
from gateway.jobs.engine import Jobs
from gateway.jobs.settings import JobSettings
from gateway.storage.base import StorageError, StoredFile
from gpu_server.protocol import Missing, OutputFile
from tests.support.databases import rows

PATIENT = 90.0
"""Seconds a test waits for what should come at once: long, as the machine may be slow."""
DATA = b"pixels"
DIGEST = "d" * 64

QUICK = JobSettings(
    retry_backoff_s=0.01,
    retry_backoff_max_s=0.05,
    backend_lost_after_s=60,
    backend_full_pause_s=0.02,
    reconnect_s=0.01,
    reconnect_max_s=0.02,
    poll_s=0.5,
    backend_watch_s=0.02,
    sweep_s=0.2,
    # a crowded machine stands still for a second now and then
    lease_s=2,
    progress_write_s=0,
)

Step = Exception | Progressed | Produced | asyncio.Event | Callable[[], Any]
"""What a scripted call does next: raise, yield, wait, or do something."""


class MemoryStorage:
    """Files by key."""

    is_remote = False
    wants_length = False
    wants_md5 = False

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.away = 0
        """How many of the next looks find the store away."""
        self.links = 0

    def address(self, key: str) -> str:
        return f"memory://{key}"

    def slot(self, key: str, lifetime: timedelta) -> str:
        assert lifetime > timedelta(0)
        return key

    def path(self, key: str) -> Path | None:
        del key
        return None

    def link(self, key: str, lifetime: timedelta, *, disposition: str | None = None) -> str:
        del disposition
        assert lifetime > timedelta(0)
        self.links += 1
        return f"memory://{key}?{self.links}"

    async def stat(self, key: str) -> StoredFile | None:
        if self.away > 0:
            self.away -= 1
            raise StorageError("away")
        data = self.files.get(key)
        if data is None:
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        return StoredFile(
            key=key,
            bytes=len(data),
            # as a bucket, one that says MD5 knows no SHA-256
            sha256=None if self.wants_md5 else sha256,
            etag=sha256,
            media_type="image/png",
            md5=md5_of(data) if self.wants_md5 else None,
        )

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        yield self.files[key][start:end]

    async def delete(self, key: str) -> None:
        self.files.pop(key, None)


class PlainNames:
    """Keys one can read."""

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        name = f"{run_id}-{slot.replace('/', '-')}.{ext}"
        return f"{prefix}/{day:%Y/%m/%d}/{job_id}/{name}"

    def filename(self, key: str) -> str:
        return key.rpartition("/")[2]


@dataclass(kw_only=True, eq=False)
class ScriptedBackend:
    """Does what its script says, then what a healthy backend does."""

    storage: MemoryStorage
    name: str = "gpu"
    kind: Kind = "gpu"
    billed: bool = False
    capacity: int = 4
    state: Readiness = "ready"
    states: dict[str, Readiness] = field(default_factory=dict[str, Readiness])
    engine: str | None = "simulator"
    installed: dict[str, frozenset[str]] | None = None
    starts: list[Step] = field(default_factory=list[Step])
    renews: list[Step] = field(default_factory=list[Step])
    follows: list[Step] = field(default_factory=list[Step])
    cancels: list[Step] = field(default_factory=list[Step])
    forgets: list[Step] = field(default_factory=list[Step])
    orders: dict[str, Order] = field(default_factory=dict[str, Order])
    started: list[str] = field(default_factory=list[str])
    renewed: list[str] = field(default_factory=list[str])
    followed: list[str] = field(default_factory=list[str])
    cancelled: list[str] = field(default_factory=list[str])
    forgotten: list[str] = field(default_factory=list[str])
    hold: asyncio.Event | None = None
    """Every follow waits for it before it ends."""
    most_at_once: int = 0
    _at_once: int = 0

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        del digest
        state = self.states.get(workflow, self.state)
        lacking = (Missing(kind="model", name="flux.safetensors"),) if state == "missing" else ()
        return WorkflowReadiness(readiness=state, missing=lacking)

    async def start(self, order: Order) -> str:
        self.started.append(order.run_id)
        await _play_one(self.starts)
        self.orders[order.run_id] = order
        return f"at {self.name}: {order.run_id}"

    async def renew(self, order: Order) -> None:
        self.renewed.append(order.run_id)
        await _play_one(self.renews)
        self.orders[order.run_id] = order

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        assert reference == f"at {self.name}: {run_id}"
        self.followed.append(run_id)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            while self.follows:
                step = self.follows.pop(0)
                if isinstance(step, Progressed | Produced):
                    yield step
                else:
                    await _play(step)
            if self.hold is not None:
                await self.hold.wait()
            yield self.produce(run_id)
        finally:
            self._at_once -= 1

    async def cancel(self, run_id: str, reference: str | None) -> None:
        del reference
        await _play_one(self.cancels)
        self.cancelled.append(run_id)

    async def forget(self, run_id: str, reference: str) -> None:
        del reference
        await _play_one(self.forgets)
        self.forgotten.append(run_id)

    def produce(self, run_id: str, data: bytes = DATA) -> Produced:
        """Put a file into each slot and say so."""
        outputs: list[OutputFile] = []
        for slot in self.orders[run_id].slots:
            self.storage.files[slot.url] = data
            outputs.append(sent(slot.name, data))
        return Produced(
            outputs=tuple(outputs), params={"seed": 7}, engine="simulator", duration_seconds=0.5
        )


async def _play_one(script: list[Step]) -> None:
    if script:
        await _play(script.pop(0))


async def _play(step: Step) -> None:
    if isinstance(step, Exception):
        raise step
    if isinstance(step, asyncio.Event):
        await step.wait()
    elif callable(step):
        done = step()
        if asyncio.iscoroutine(done):
            await done


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def sent(slot: str, data: bytes = DATA) -> OutputFile:
    return OutputFile(
        slot=slot,
        media_type="image/png",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        md5=md5_of(data),
        width=8,
        height=8,
    )


def new_job(caller: str = "alice", **changes: Any) -> NewJob:
    call = Call(
        workflow=changes.pop("workflow", "flux"),
        digest=changes.pop("digest", DIGEST),
        params={"prompt": "a lighthouse"},
        outputs=changes.pop("outputs", ("images/0",)),
        prefix="generated",
        models=changes.pop("models", ()),
        inputs=changes.pop("inputs", {}),
    )
    new = NewJob(
        id=new_job_id(),
        tool="generate",
        variant="flux1-dev",
        caller=caller,
        params={"prompt": "a lighthouse"},
        call=call,
        deadline_s=600,
    )
    return replace(new, **changes)


class Row(dict[str, Any]):
    """A row by the names of its columns; `tuple(row)` are its values."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # as a database's rows do
        return iter(self.values())


class World:
    """One database, through any number of gateways: on SQLite one after the other."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.storage = MemoryStorage()
        self.gpu = ScriptedBackend(storage=self.storage)
        self.backends: list[ScriptedBackend] = [self.gpu]
        self.settings = QUICK
        self._running: list[tuple[Database, Jobs]] = []

    async def gateway(self, **settings: Any) -> Jobs:
        """Start a gateway on the database."""
        db = Database(self.url)
        jobs = Jobs(
            db=db,
            backends=self.backends,
            storage=self.storage,
            names=PlainNames(),
            settings=replace(self.settings, **settings),
            clock=SystemClock(),
            rng=random.Random(),
        )
        await jobs.start()
        self._running.append((db, jobs))
        return jobs

    async def stop(self, jobs: Jobs | None = None) -> None:
        """Stop one gateway, or all, cleanly."""
        for pair in [pair for pair in self._running if jobs is None or pair[1] is jobs]:
            self._running.remove(pair)
            await pair[1].stop()
            await pair[0].close()

    async def crash(self, jobs: Jobs) -> None:
        """End a gateway without a chance to write anything: its runs stay as they are."""
        for db, running in [pair for pair in self._running if pair[1] is jobs]:
            self._running.remove((db, running))
            await running._drivers.stop()
            for loop in running._loops:
                loop.cancel()
            await asyncio.gather(*running._loops, return_exceptions=True)
            await db.close()

    def rows(self, query: str) -> list[Row]:
        """What another program reads in the database."""
        return [Row(row) for row in rows(self.url, query)]

    async def write(self, statement: str) -> None:
        """What somebody else writes into the database."""
        # not on the loop: it would wait there for a transaction that the loop has to finish
        await asyncio.to_thread(rows, self.url, statement)


async def finished(jobs: Jobs, job_id: str) -> Job:
    """The job once it has ended."""
    job = await jobs.wait(job_id, PATIENT)
    assert job is not None
    assert job.status in {"completed", "failed", "cancelled"}, job
    return job


async def log_of(jobs: Jobs, job_id: str) -> list[JobEvent]:
    """The stored log of an ended job."""
    return [event async for event in jobs.watch(job_id)]


async def until(true: Callable[[], bool]) -> None:
    """Return once something holds that no event tells of."""
    async with asyncio.timeout(PATIENT):
        while not true():  # noqa: ASYNC110 - what is watched has no event
            await asyncio.sleep(0.005)


def unreachable(times: int) -> list[Step]:
    return [BackendUnreachable("away") for _ in range(times)]
