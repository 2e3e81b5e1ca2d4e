"""Bugs put into the engine on purpose, to show that the simulation finds them."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Table, bindparam, insert, update

from gateway.backends.base import BackendUnreachable, Order, RunLost
from gateway.db import engine, job_log, jobs, owners, placements, runs, tables
from gateway.db.records import job_row, micros, to_job
from gateway.db.waiting import run_after
from gateway.job import Job, NewJob
from gateway.jobs import files, placement, runner
from gateway.storage.base import StoredFile
from tests.simulation.backend import SimulatedBackend
from tests.simulation.gpu import GpuService

BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {}


def _bug(function: Callable[[], Generator[None]]) -> Callable[[], AbstractContextManager[None]]:
    made = contextmanager(function)
    BUGS[function.__name__.replace("_", "-")] = made
    return made


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Generator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


class _NoNewEpoch:
    """An UPDATE that forgets to set `epoch`."""

    def __init__(self, statement: Any) -> None:
        self._statement = statement

    def where(self, *conditions: Any) -> "_NoNewEpoch":
        return _NoNewEpoch(self._statement.where(*conditions))

    def values(self, **columns: Any) -> Any:
        columns.pop("epoch", None)
        return self._statement.values(**columns)


def _update_without_epoch(table: Table) -> _NoNewEpoch:
    return _NoNewEpoch(update(table))


@_bug
def unguarded_write() -> Generator[None]:
    """A driver's write no longer asks whether the run is still its own."""
    guarded = (
        update(tables.runs)
        .where(tables.runs.c.id == bindparam("run"))
        .where(tables.runs.c.epoch >= bindparam("run_epoch"))
        .where(tables.runs.c.state == bindparam("run_state"))
    )
    with _replaced(runs, "_GUARDED", guarded):
        yield


@_bug
def dropped_epoch() -> Generator[None]:
    """A takeover leaves the epoch as it was."""
    with _replaced(owners, "update", _update_without_epoch):
        yield


@_bug
def fresh_id() -> Generator[None]:
    """A second `start` POSTs the run again instead of finding the first one."""
    put = GpuService.put

    def put_again(self: GpuService, order: Order) -> str:
        self.runs.pop(order.run_id, None)
        return put(self, order)

    with _replaced(GpuService, "put", put_again):
        yield


@_bug
def impatience() -> Generator[None]:
    """An unreachable backend is taken for a lost run at once."""
    with (
        _replaced(runner, "BackendUnreachable", _Never),
        _replaced(SimulatedBackend, "_call", _impatient(vars(SimulatedBackend)["_call"])),
    ):
        yield


class _Never(Exception):
    """Nothing raises it."""


def _impatient(call: Any) -> Any:
    async def impatient(self: SimulatedBackend, run_id: str, request: Any) -> Any:
        try:
            return await call(self, run_id, request)
        except BackendUnreachable:
            raise RunLost from None

    return impatient


@_bug
def early_answer() -> Generator[None]:
    """A submit answers before its commit."""
    insert = jobs.JobRows.insert

    async def hasty(self: Any, new: NewJob, **options: Any) -> Job:
        task = asyncio.create_task(insert(self, new, **options))
        await asyncio.wait([task], timeout=0.001)
        return to_job(
            {
                **job_row(new, options["now"]),
                **dict.fromkeys(("outcome", "error_code", "started_at", "finished_at")),
                "progress": 0.0,
            }
        )

    with _replaced(jobs.JobRows, "insert", hasty):
        yield


@_bug
def forgotten_cancel() -> Generator[None]:
    """A cancel is never passed on to the backend."""

    async def nothing(*_: Any) -> list[Any]:
        return []

    with _replaced(runs.RunRows, "to_cancel", nothing):
        yield


@_bug
def unverified_files() -> Generator[None]:
    """A job is completed without a look at its files."""
    verified = vars(files.RunFiles)["_verified"]

    async def trusting(self: Any, run: Any, sent: Any) -> Any:
        class Trusting:
            async def stat(self, key: str) -> StoredFile:
                return StoredFile(
                    key=key, bytes=sent.bytes, sha256=None, etag="", media_type=sent.media_type
                )

        with _replaced(self, "_storage", Trusting()):
            return await verified(self, run, sent)

    with _replaced(files.RunFiles, "_verified", trusting):
        yield


@_bug
def paid_twice() -> Generator[None]:
    """The silence of a backend is enough to begin a run elsewhere that is paid for there."""
    with _replaced(SimulatedBackend, "billed", property(lambda _: False)):
        yield


@_bug
def blind_submit() -> Generator[None]:
    """A second start does not say that the first one went unanswered."""

    def unchanged(value: Any, **changes: Any) -> Any:
        return value if "again" in changes else replace(value, **changes)

    with _replaced(runner, "replace", unchanged):
        yield


@_bug
def no_takeover() -> Generator[None]:
    """A restarted gateway does not go on with what the last one left."""

    async def nothing(*_: Any, **__: Any) -> list[Any]:
        return []

    with _replaced(owners.OwnerRows, "take_over", nothing):
        yield


@_bug
def over_capacity() -> Generator[None]:
    """Placement forgets what a backend already has."""

    async def nothing(*_: Any) -> list[Any]:
        return []

    with _replaced(placements, "under_way", nothing):
        yield


@_bug
def ignored_lease() -> Generator[None]:
    """A takeover takes every other gateway for dead."""
    take_over = owners.OwnerRows.take_over

    async def hasty(self: Any, replica: str, now: Any, **options: Any) -> Any:
        options["lease"] = -timedelta(days=1)
        return await take_over(self, replica, now, **options)

    with _replaced(owners.OwnerRows, "take_over", hasty):
        yield


_SEEN: ContextVar[Any] = ContextVar("seen")


@_bug
def unlocked_placement() -> Generator[None]:
    """Placement reads what backends have before it is alone with the rows, not after."""
    place = placement.Placement.place
    under_way = placements.under_way

    async def read_first(self: Any, **options: Any) -> None:
        _SEEN.set(await self._db.read(under_way))
        await place(self, **options)

    async def as_seen(_: Any) -> Any:
        return _SEEN.get()

    with (
        _replaced(placement.Placement, "place", read_first),
        _replaced(placements, "under_way", as_seen),
    ):
        yield


@_bug
def no_slow_poll() -> Generator[None]:
    """A gateway that missed the message of a grant never looks for it."""

    async def nothing(*_: Any) -> list[Any]:
        return []

    with _replaced(owners.OwnerRows, "under_way", nothing):
        yield


@_bug
def outbox_outside() -> Generator[None]:
    """The webhook event of a job is written after the commit that ends it."""
    write, job_ended = engine.Database.write, job_log.job_ended
    put_off: dict[int, list[Any]] = {}

    async def later(transaction: Any, *ended: Any) -> None:
        put_off.setdefault(id(transaction), []).append(ended)

    async def in_two_commits(self: Any, work: Any, **options: Any) -> Any:
        late: list[Any] = []

        async def first(transaction: Any) -> Any:
            done = await work(transaction)
            late[:] = put_off.pop(id(transaction), [])
            return done

        async def second(transaction: Any) -> None:
            for ended in late:
                await job_ended(transaction, *ended)

        done = await write(self, first, **options)
        if late:
            await write(self, second)
        return done

    with (
        _replaced(engine.Database, "write", in_two_commits),
        _replaced(job_log, "job_ended", later),
    ):
        yield


@_bug
def stage_outside() -> Generator[None]:
    """The run of the next stage is written after the commit that ends the one before."""

    async def in_two_commits(self: Any, run: Any, following: Any, *others: Any) -> None:
        now = others[-1]

        async def end(transaction: Any) -> None:
            await job_log.move_job(transaction, run.job_id, "processing")
            done = update(tables.runs).where(tables.runs.c.id == run.id)
            await transaction.execute(done.values(state="delivered", ended_at=micros(now)))

        async def begin(transaction: Any) -> None:
            row = run_after(run, following, stage=run.stage + 1, attempt=0, not_before=micros(now))
            await transaction.execute(insert(tables.runs), row)

        await self._db.write(end)
        await self._db.write(begin)

    with _replaced(runs.RunRows, "next_stage", in_two_commits):
        yield


@_bug
def other_file() -> Generator[None]:
    """The next stage reads the file of another slot than it asked for."""
    made = files.made_inputs

    def last_one(call: Any, found: Any) -> Any:
        return made(call, [replace(file, n=0) for file in found])

    with _replaced(runner, "made_inputs", last_one):
        yield
