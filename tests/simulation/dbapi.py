"""A stand-in for `aiosqlite`: real SQL on the real sqlite3, on virtual time and without threads.

SQLAlchemy's sqlite+aiosqlite dialect takes it instead of the module. As with aiosqlite each
connection carries out its operations in order, and one whose caller was cancelled still happens.
"""

import asyncio
import collections
import random
import re
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextvars import ContextVar
from types import SimpleNamespace, TracebackType
from typing import Any, Protocol, Self

from tests.simulation.loop import TURN
from tests.simulation.process import PROCESS, Process

BUSY_RETRY_S = 0.02
_BUSY_TIMEOUT = re.compile(r"\s*pragma\s+busy_timeout\s*=\s*(\d+)", re.IGNORECASE)


class Watched(Protocol):
    """A connection, as whoever observes the database sees it."""

    changes: list[tuple[Any, ...]]
    """What the open transaction has changed so far; filled by triggers."""
    process: Process | None

    @property
    def real(self) -> sqlite3.Connection | None:
        """The connection of the standard library below it."""
        ...


class Observer:
    """Who is told what the database went through; this one does not care."""

    def opened(self, connection: Watched) -> None:
        """A connection is about to be used."""

    def settled(self, connection: Watched, *, committed: bool) -> None:
        """A transaction that changed something is over."""


class Server:
    """The one database file of a simulated world."""

    def __init__(
        self, path: str, rng: random.Random, *, observer: Observer, slow: float = 0
    ) -> None:
        self.path = path
        self.observer = observer
        self.slow = slow
        """Share of operations that take virtual time at all."""
        self.disk_stalls = 0.0
        """Share of operations that take seconds."""
        self.operations = 0
        self.commits = 0
        self._rng = rng

    def delay(self) -> float:
        """How long the next operation takes."""
        draw = self._rng.random()
        if draw < self.disk_stalls:
            return self._rng.uniform(0.5, 4)
        return self._rng.uniform(0.0002, 0.02) if draw < self.slow else 0


SERVER: ContextVar[Server] = ContextVar("server")


class _Operation:
    __slots__ = ("begun", "call", "future", "rollback")

    def __init__(
        self, call: Callable[[], Any], future: "asyncio.Future[Any] | None", *, rollback: bool
    ) -> None:
        self.call = call
        self.future = future
        self.rollback = rollback
        self.begun: float | None = None


class Connection:
    """One connection; awaiting it opens it."""

    def __init__(self, timeout: float, options: dict[str, Any]) -> None:
        self.server = SERVER.get()
        self._loop = asyncio.get_running_loop()
        self.process = PROCESS.get()
        self._connection: sqlite3.Connection | None = None
        self.busy_timeout = timeout
        self.changes: list[tuple[Any, ...]] = []
        # the names below are what the dialect reaches for
        self._options = options
        self._thread = SimpleNamespace(daemon=False)
        self._tx = SimpleNamespace(put_nowait=self._call_now)
        self._queue: collections.deque[_Operation] = collections.deque()
        self._reading = False

    def __await__(self) -> Generator[Any, None, "Connection"]:
        return self._open().__await__()

    async def _open(self) -> "Connection":
        await TURN
        self._connection = sqlite3.connect(self.server.path, timeout=0, **self._options)
        if self.process is not None:
            self.process.at_death.append(self._die)
        self.server.observer.opened(self)
        return self

    @property
    def real(self) -> sqlite3.Connection | None:
        return self._connection

    @property
    def _conn(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError("no active connection")
        return self._connection

    @property
    def isolation_level(self) -> str | None:
        return self._conn.isolation_level

    @property
    def in_transaction(self) -> bool:
        return self._conn.in_transaction

    def _call_now(self, item: "tuple[asyncio.Future[Any], Callable[[], Any]]") -> None:
        future, function = item
        future.set_result(function())

    def _die(self) -> None:
        """The process is gone: the kernel closes its files, which rolls back what was open."""
        self._queue.clear()
        if self._connection is not None:
            # a statement that was not read to its end would keep a closed connection's locks
            self._connection.rollback()
        self._close()
        self.changes.clear()

    def _close(self) -> None:
        real, self._connection = self._connection, None
        if real is not None:
            real.close()

    def submit(self, call: Callable[[], Any], *, rollback: bool = False) -> "asyncio.Future[Any]":
        """Queue an operation; it happens even if whoever awaits it is cancelled."""
        if self.real is None:
            raise ValueError("no active connection")
        future = self._loop.create_future()
        self._queue.append(_Operation(call, future, rollback=rollback))
        if len(self._queue) == 1:
            self._schedule(self.server.delay())
        return future

    def _schedule(self, delay: float) -> None:
        if delay:
            self._loop.call_later(delay, self._work)
        else:
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        if not self._queue:
            return
        operation = self._queue[0]
        now = self._loop.time()
        if operation.begun is None:
            operation.begun = now
        future = operation.future
        try:
            result = operation.call()
        except sqlite3.OperationalError as error:
            waited = now - operation.begun
            if self._may_wait(error) and waited < self.busy_timeout:
                self._schedule(BUSY_RETRY_S)
                return
            self._finish(operation)
            if future is not None and not future.done():
                future.set_exception(error)
        except Exception as error:  # noqa: BLE001 - belongs to whoever awaits the operation
            self._finish(operation)
            if future is not None and not future.done():
                future.set_exception(error)
        else:
            self._finish(operation)
            if future is not None and not future.done():
                future.set_result(result)

    def _may_wait(self, error: sqlite3.OperationalError) -> bool:
        # SQLite calls its busy handler only for a lock the transaction could still get: one that
        # has read an older snapshot (517) or holds a read lock fails at once
        return error.sqlite_errorcode == sqlite3.SQLITE_BUSY and not self._reading

    def _finish(self, operation: _Operation) -> None:
        server = self.server
        server.operations += 1
        self._queue.popleft()
        real = self.real
        if real is None or not real.in_transaction:
            self._reading = False
            if self.changes:
                server.commits += not operation.rollback
                server.observer.settled(self, committed=not operation.rollback)
        if self._queue:
            self._schedule(server.delay())

    def statement(self, sql: str, run: Callable[[], Any]) -> Callable[[], Any]:
        """The operation that carries out one statement."""
        timeout = _BUSY_TIMEOUT.match(sql)
        if timeout is not None:
            # the real timeout stays 0: waiting for a lock must take virtual time, not this thread
            self.busy_timeout = int(timeout.group(1)) / 1000
            return lambda: None

        def call() -> Any:
            result = run()
            if self._conn.in_transaction and not sql.lstrip().upper().startswith("BEGIN"):
                self._reading = True
            return result

        return call

    @property
    def pending(self) -> int:
        """Operations queued and not carried out yet."""
        return len(self._queue)

    def cursor(self) -> "Cursor":
        return Cursor(self)

    async def create_function(self, *args: Any, **options: Any) -> None:
        self._conn.create_function(*args, **options)

    async def commit(self) -> None:
        await self.submit(self._conn.commit)

    async def rollback(self) -> None:
        await self.submit(self._conn.rollback, rollback=True)

    async def close(self) -> None:
        if self.real is not None:
            await self.submit(self._close, rollback=True)

    def stop(self) -> None:
        """Close without waiting for it."""
        if self.real is not None:
            self._queue.append(_Operation(self._close, None, rollback=True))
            if len(self._queue) == 1:
                self._schedule(0)


class Cursor:
    """One cursor; fetching costs no turn, as the rows are at hand after `execute`."""

    def __init__(self, connection: Connection) -> None:
        self._owner = connection
        self._real: sqlite3.Cursor | None = None

    async def __aenter__(self) -> Self:
        if self._owner.real is None:
            raise ValueError("no active connection")
        self._real = self._owner.real.cursor()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _cursor(self) -> sqlite3.Cursor:
        if self._real is None:
            raise sqlite3.ProgrammingError("the cursor is closed")
        return self._real

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    @property
    def arraysize(self) -> int:
        return self._cursor.arraysize

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        cursor = self._cursor
        run = self._owner.statement(sql, lambda: cursor.execute(sql, parameters))
        await self._owner.submit(run, rollback=sql.lstrip().upper().startswith("ROLLBACK"))

    async def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        cursor = self._cursor
        run = self._owner.statement(sql, lambda: cursor.executemany(sql, parameters))
        await self._owner.submit(run)

    async def fetchone(self) -> Any:
        return self._cursor.fetchone()

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        return self._cursor.fetchmany(size or self._cursor.arraysize)

    async def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    async def close(self) -> None:
        if self._real is not None and self._owner.real is not None:
            self._real.close()


def connect(database: str, *, timeout: float = 5, **options: Any) -> Connection:
    """What the dialect calls; every path leads to the database of the present world."""
    del database
    options.pop("uri", None)
    options["check_same_thread"] = False
    return Connection(timeout, options)


Error = sqlite3.Error
DatabaseError = sqlite3.DatabaseError
IntegrityError = sqlite3.IntegrityError
NotSupportedError = sqlite3.NotSupportedError
OperationalError = sqlite3.OperationalError
ProgrammingError = sqlite3.ProgrammingError
sqlite_version = sqlite3.sqlite_version
sqlite_version_info = sqlite3.sqlite_version_info
__version__ = "0.22.1"
