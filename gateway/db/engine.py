"""One process's way to the database: write transactions, reads, and who hears of a commit."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from sqlalchemy import CursorResult, Executable, RowMapping, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.db import schema, sqlite
from gateway.db.folder_lock import FolderLock, SoleOwnership
from gateway.job import JobStatus

T = TypeVar("T")
READERS = 4
"""Connections kept for reads beside the writer."""


class DatabaseUnavailable(Exception):
    """The database did not do it; nothing is known to have been written."""


class AlreadyThere(Exception):
    """A row with that key exists; the transaction changed nothing."""


class EngineFactory(Protocol):
    """What makes an engine: SQLAlchemy's own, or a deterministic one in simulation."""

    def __call__(self, url: str, /, **kwargs: Any) -> AsyncEngine:  # noqa: ANN401  # foreign options
        """Make it, without connecting."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobChange:
    """A job changed, as told to everybody who waits for it once the change is committed."""

    job_id: str
    status: JobStatus


class Transaction:
    """A transaction in progress and what is to be told when it commits."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self.changes: list[JobChange] = []
        self.posted = False
        """Webhook events were written."""

    async def execute(
        self,
        statement: Executable,
        values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Carry out one statement."""
        done = await self._connection.execute(statement, values)
        # rows and DML alike give a CursorResult on Core connections
        return cast("CursorResult[Any]", done)

    async def rows(
        self, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> Sequence[RowMapping]:
        """Carry out one statement; its rows."""
        return (await self.execute(statement, values)).mappings().all()

    async def row(
        self, statement: Executable, values: Mapping[str, Any] | None = None
    ) -> RowMapping | None:
        """Carry out one statement; its first row, if any."""
        return (await self.execute(statement, values)).mappings().first()

    async def matched(self, statement: Executable, values: Mapping[str, Any] | None = None) -> int:
        """Carry out a guarded write; how many rows its guard let through."""
        return (await self.execute(statement, values)).rowcount

    def changed(self, job_id: str, status: JobStatus) -> None:
        """Tell the job's waiters once this is committed."""
        self.changes.append(JobChange(job_id=job_id, status=status))


class Database:
    """The database of one process.

    `engine_factory` and `sole_ownership` exist for the simulation, which brings a deterministic
    driver and a lock of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        engine_factory: EngineFactory | None = None,
        sole_ownership: SoleOwnership | None = None,
    ) -> None:
        self._url = make_url(url)
        self._listeners: list[Callable[[JobChange], None]] = []
        self._writes: set[asyncio.Task[Any]] = set()
        if not sqlite.is_sqlite(self._url):
            raise ValueError(
                "DATABASE_URL: only sqlite+aiosqlite:///<path> works yet, not "
                f"{self._url.drivername}"
            )
        folder = Path(self._url.database or "").parent
        folder.mkdir(parents=True, exist_ok=True)
        self._ownership: SoleOwnership | None = sole_ownership or FolderLock(folder)
        # SQLite takes one writer: queueing for it here wakes in order, its own busy wait does not
        self._writing: asyncio.Lock | nullcontext[None] = asyncio.Lock()
        rendered = self._url.render_as_string(hide_password=False)
        make = engine_factory or sqlite.create_engine
        self._writer = make(rendered, pool_size=1, max_overflow=0)
        self._reader = make(
            rendered,
            pool_size=READERS,
            max_overflow=0,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
        )
        sqlite.prepare(self._writer.sync_engine, writer=True)
        sqlite.prepare(self._reader.sync_engine, writer=False)

    def claim(self) -> bool:
        """Prove that no other process works on this database, where that can be proven.

        True: every other replica in it is dead. Raises FolderInUse.
        """
        if self._ownership is None:
            return False
        self._ownership.acquire()
        return True

    def release(self) -> None:
        """Give back what `claim` took."""
        if self._ownership is not None:
            self._ownership.release()

    def listen(self, heard: Callable[[JobChange], None]) -> None:
        """Call `heard` after each commit that changed a job."""
        self._listeners.append(heard)

    async def check_schema(self) -> None:
        """Raise SchemaOutdated unless the database has exactly the tables this code expects."""
        async with self._reader.connect() as connection:
            await connection.run_sync(schema.check)

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Carry out `work` in one transaction, committed before this returns.

        A caller that is cancelled leaves the transaction whole: it commits or fails as if nobody
        had gone. Raises DatabaseUnavailable, AlreadyThere.
        """
        task = asyncio.create_task(self._write(work))
        self._writes.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    async def read(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Carry out `work`, which only reads. Raises DatabaseUnavailable."""
        try:
            async with self._reader.connect() as connection:
                return await work(Transaction(connection))
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(type(error).__name__) from error

    async def settle(self) -> None:
        """Return when no write is under way any more."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def close(self) -> None:
        """Let the writes under way end, then close every connection."""
        await self.settle()
        await self._writer.dispose()
        await self._reader.dispose()
        self.release()

    async def _write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        try:
            async with self._writing, self._writer.begin() as connection:
                transaction = Transaction(connection)
                result = await work(transaction)
        except IntegrityError as error:
            raise AlreadyThere(type(error).__name__) from error
        except SQLAlchemyError as error:
            raise DatabaseUnavailable(type(error).__name__) from error
        for change in transaction.changes:
            for heard in self._listeners:
                heard(change)
        return result

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        # a caller that was cancelled takes no result: its error must not be reported as forgotten
        if not task.cancelled():
            task.exception()
