"""One process's way to the database: write transactions, reads, and who hears of a commit."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

from sqlalchemy import CursorResult, Executable, RowMapping, make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.db import postgres, schema, sqlite
from gateway.db.folder_lock import FolderLock, SoleOwnership
from gateway.db.notices import NOTIFY, Kind, Notice, Notices
from gateway.db.refusals import FAILURES, refusal
from gateway.job import JobStatus

T = TypeVar("T")
Dialect = Literal["sqlite", "postgresql"]
READERS = 4
"""Connections kept for reads beside SQLite's one writer."""
TRIES = 5
"""How often a transaction is begun that others keep from going through."""
FIRST_PAUSE_S = 0.01


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
        self.notices: list[Notice] = []
        self.committing = False
        """Its work is done; from here on a lost connection leaves open whether it was committed."""
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

    @property
    def dialect(self) -> Dialect:
        """Whose SQL this is."""
        return _dialect(self._connection.dialect.name)

    def changed(self, job_id: str, status: JobStatus) -> None:
        """Tell the job's waiters, on whatever gateway, once this is committed."""
        self.changes.append(JobChange(job_id=job_id, status=status))
        self.tell("job", job_id, status)

    def submitted(self, job_id: str, caller: str, owner: str | None) -> None:
        """Tell once this is committed that there is a job; nobody can wait for it elsewhere."""
        self.changes.append(JobChange(job_id=job_id, status="pending"))
        if owner is None:
            self.tell("unowned", value=caller)

    def tell(self, kind: Kind, subject: str = "", value: str = "") -> None:
        """Tell the other gateways once this is committed."""
        self.notices.append(Notice(kind=kind, id=subject, value=value))


class Database:
    """The database of one process.

    `engine_factory` and `sole_ownership` exist for the simulation, which brings a deterministic
    driver and a lock of its own.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int = 10,
        engine_factory: EngineFactory | None = None,
        sole_ownership: SoleOwnership | None = None,
    ) -> None:
        self._address = url
        self._listeners: list[Callable[[JobChange], None]] = []
        self._posted: list[Callable[[], None]] = []
        self._writes: set[asyncio.Task[Any]] = set()
        self._ownership = sole_ownership
        self._sole = False
        self.notices: Notices | None = None
        if postgres.is_postgres(url):
            self.dialect: Dialect = "postgresql"
            self.notices = Notices(url)
            self._writing: asyncio.Lock | nullcontext[None] = nullcontext()
            make = engine_factory or postgres.create_engine
            # the connection used last knows its statements best
            self._writer = make(url, pool_size=connections, max_overflow=0, pool_use_lifo=True)
            # the same connections
            self._reader = self._writer.execution_options(isolation_level="AUTOCOMMIT")
            self._apart = make(url, pool_size=1, max_overflow=0)
            self._apart_reader = self._apart.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self.dialect = "sqlite"
            # SQLite takes one writer: queueing for it here wakes in order, its own busy wait not
            self._writing = asyncio.Lock()
            self._on_sqlite(url, engine_factory or sqlite.create_engine)
            self._apart, self._apart_reader = self._writer, self._reader

    def _on_sqlite(self, address: str, make: EngineFactory) -> None:
        url = make_url(address)
        if not sqlite.is_sqlite(url):
            raise ValueError(
                f"DATABASE_URL: postgresql://… or sqlite+aiosqlite:///<path>, not {url.drivername}"
            )
        folder = Path(url.database or "").parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(address, error) from error
        self._ownership = self._ownership or FolderLock(folder)
        rendered = url.render_as_string(hide_password=False)
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
        self._sole = True
        return True

    def release(self) -> None:
        """Give back what `claim` took."""
        if self._ownership is not None:
            self._ownership.release()

    def listen(self, heard: Callable[[JobChange], None]) -> None:
        """Call `heard` after each commit of this process that changed a job."""
        self._listeners.append(heard)

    def on_notice(self, heard: Callable[[Notice], None]) -> None:
        """Call `heard` for what other processes committed."""
        if self.notices is not None:
            self.notices.listen(heard)

    async def hear(self) -> None:
        """Listen to the other processes until cancelled; returns where there can be none."""
        if self.notices is not None:
            await self.notices.run()

    def on_posted(self, heard: Callable[[], None]) -> None:
        """Call `heard` after each commit that wrote webhook events."""
        self._posted.append(heard)

    @property
    def hears_all(self) -> bool:
        """Whether each commit that changes a job is told here: ours, or heard of from others."""
        return self._sole if self.notices is None else self.notices.listening.is_set()

    async def check_schema(self) -> None:
        """Raise SchemaOutdated unless this code can work with the tables.

        Raises DatabaseRefused when it gets no look at them.
        """
        try:
            async with self._reader.connect() as connection:
                await connection.run_sync(schema.check)
        except FAILURES as error:
            raise refusal(self._address, error) from error

    async def write(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        single: bool = False,
        apart: bool = False,
    ) -> T:
        """Carry out `work` in one transaction, committed before this returns.

        It is begun anew when others kept it from going through, so `work` must not leave anything
        behind but its rows. A caller that is cancelled leaves the transaction whole: it commits or
        fails as if nobody had gone. `single` = it is one statement that tells nobody elsewhere:
        PostgreSQL needs no BEGIN and COMMIT around that. `apart` = over the connection kept for the
        heartbeat, which waits for no request. Raises DatabaseUnavailable, AlreadyThere.
        """
        task = asyncio.create_task(self._write(work, single=single, apart=apart))
        self._writes.add(task)
        task.add_done_callback(self._written)
        return await asyncio.shield(task)

    async def read(self, work: Callable[[Transaction], Awaitable[T]], *, apart: bool = False) -> T:
        """Carry out `work`, which only reads; `apart` as in `write`. Raises DatabaseUnavailable."""
        reader = self._apart_reader if apart else self._reader
        tries = 0
        while True:
            tries += 1
            try:
                async with reader.connect() as connection:
                    return await work(Transaction(connection))
            except FAILURES as error:
                await self._before_another_try(error, tries, committing=False)

    @asynccontextmanager
    async def alone(self, key: int) -> AsyncGenerator[bool]:
        """Keep every other gateway out of the same `key` while inside; False: one is in there.

        Raises DatabaseUnavailable.
        """
        if self.dialect == "sqlite":
            yield True
            return
        # a connection of its own: the lock ends with it, whatever becomes of this process
        try:
            connection = await postgres.connect(self._address)
        except FAILURES as error:
            raise DatabaseUnavailable(type(error).__name__) from error
        try:
            try:
                taken = await connection.fetchval("SELECT pg_try_advisory_lock($1)", key)
            except FAILURES as error:
                raise DatabaseUnavailable(type(error).__name__) from error
            yield bool(taken)
        finally:
            connection.terminate()

    async def settle(self) -> None:
        """Return when no write is under way any more."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def close(self) -> None:
        """Let the writes under way end, then close every connection."""
        await self.settle()
        await self._writer.dispose()
        await self._reader.dispose()
        await self._apart.dispose()
        self.release()

    async def _write(
        self, work: Callable[[Transaction], Awaitable[T]], *, single: bool, apart: bool
    ) -> T:
        tries, transaction = 0, None
        by_itself = single and self.dialect == "postgresql"
        writer = self._apart if apart else self._writer
        begin = self._reader.connect if by_itself else writer.begin
        while True:
            tries += 1
            try:
                async with self._writing, begin() as connection:
                    transaction = Transaction(connection)
                    transaction.committing = by_itself
                    result = await work(transaction)
                    if self.notices is not None and transaction.notices:
                        told = self.notices.encode(transaction.notices)
                        await transaction.execute(NOTIFY, {"told": told})
                    transaction.committing = True
            except IntegrityError as error:
                raise AlreadyThere(type(error).__name__) from error
            except FAILURES as error:
                committing = transaction is not None and transaction.committing
                if committing and self.notices is not None:
                    # it may have been committed: whoever would have been told looks for himself
                    self.notices.missed()
                await self._before_another_try(error, tries, committing=committing)
            else:
                self._committed(transaction)
                return result

    async def _before_another_try(self, error: Exception, tries: int, *, committing: bool) -> None:
        """Wait a moment; raises DatabaseUnavailable when there is no use in trying again."""
        if (
            self.dialect != "postgresql"
            or tries >= TRIES
            or not postgres.worth_another_try(error, committing=committing)
        ):
            raise DatabaseUnavailable(type(error).__name__) from error
        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (tries - 1))

    def _committed(self, transaction: Transaction) -> None:
        for change in transaction.changes:
            for heard in self._listeners:
                heard(change)
        if transaction.posted:
            for posted in self._posted:
                posted()

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        # a caller that was cancelled takes no result: its error must not be reported as forgotten
        if not task.cancelled():
            task.exception()


def _dialect(name: str) -> Dialect:
    return "postgresql" if name == "postgresql" else "sqlite"
