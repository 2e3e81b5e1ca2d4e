"""Everything that is SQLite's own: its connections, its pragmas, how a transaction begins."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import aiosqlite
from sqlalchemy import Engine, event
from sqlalchemy.engine import URL, Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    # a commit survives a power cut: a job answered for is a job kept
    "PRAGMA synchronous=FULL",
    "PRAGMA busy_timeout=30000",
    "PRAGMA foreign_keys=ON",
    "PRAGMA wal_autocheckpoint=4000",
)
BEGIN = "BEGIN IMMEDIATE"


def is_sqlite(url: URL) -> bool:
    """Whether the URL names a SQLite database."""
    return url.get_backend_name() == "sqlite"


def create_engine(url: str, /, **options: Any) -> AsyncEngine:  # noqa: ANN401  # foreign options
    """An engine whose statements take one change of threads each."""
    return create_async_engine(url, connect_args={"async_creator_fn": _connect}, **options)


def prepare(engine: Engine, *, writer: bool) -> None:
    """Set the pragmas on each connection; let a writer take the lock when it begins."""
    event.listen(engine, "connect", _on_connect)
    if writer:
        event.listen(engine, "begin", _on_begin)


def _on_connect(dbapi_connection: Any, _record: Any) -> None:  # noqa: ANN401  # a driver's object
    # the driver must not begin transactions by itself: it would begin them deferred, and a deferred
    # one that reads before it writes fails instead of waiting when another one wrote in between
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    for pragma in PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql(BEGIN)


def _connect(database: str, **options: Any) -> aiosqlite.Connection:  # noqa: ANN401  # foreign options
    return _Connection(partial(sqlite3.connect, database, **options), iter_chunk_size=64)


class _Connection(aiosqlite.Connection):
    """aiosqlite's connection, with cursors that go to its thread as seldom as they can.

    Its own go there four times a statement: to open, execute, fetch and close. The results here are
    small, so a statement fetches what it finds at once. What gives no result anyone reads (`BEGIN`,
    an `INSERT` without `RETURNING`) travels with the next statement or the commit; if it fails,
    that is what fails.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  # aiosqlite's
        super().__init__(*args, **options)
        # a process that ends without closing must not wait for this thread
        self._thread.daemon = True
        self._held: list[_Statement] = []

    def cursor(self) -> "_Cursor":  # type: ignore[override]  # SQLAlchemy asks for no more than this
        return _Cursor(self)

    async def run(self, statement: "_Statement") -> "_Done":
        """Carry out a statement on the thread; its rows come along."""
        self._held.append(statement)
        if statement.sql == BEGIN:
            return _Done()
        # outside a transaction there is no commit that would carry it
        if (
            statement.sql.startswith("INSERT")
            and "RETURNING" not in statement.sql
            and (self._held[0].sql == BEGIN or self.in_transaction)
        ):
            return _Done()
        held, self._held = self._held, []
        return await self._on_thread(_run, held)

    async def commit(self) -> None:
        """Commit, if anything was begun."""
        held, self._held = self._held, []
        if self.in_transaction or len(held) > 1:
            await self._on_thread(_commit, held)

    async def rollback(self) -> None:
        """Roll back, if anything was begun; the pool asks for it after each transaction."""
        self._held = []
        if self.in_transaction:
            await super().rollback()

    async def _on_thread(
        self,
        work: "Callable[[sqlite3.Connection, list[_Statement]], _Done]",
        statements: "list[_Statement]",
    ) -> "_Done":
        return await self._execute(  # pyright: ignore[reportUnknownMemberType]  # aiosqlite leaves it untyped
            work, self._conn, statements
        )


@dataclass(frozen=True, slots=True)
class _Statement:
    """SQL and its values: one set of them, or many."""

    sql: str
    values: Sequence[Any]
    many: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """What a statement left: DB-API's attributes of a cursor, and the rows."""

    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None
    rows: list[Any] = field(default_factory=list[Any])


def _run(connection: sqlite3.Connection, statements: list[_Statement]) -> _Done:
    done = _Done()
    for statement in statements:
        cursor = connection.cursor()
        try:
            if statement.many:
                cursor.executemany(statement.sql, statement.values)
            else:
                cursor.execute(statement.sql, statement.values)
            rows = cursor.fetchall() if cursor.description else []
            done = _Done(cursor.description, cursor.rowcount, cursor.lastrowid, rows)
        finally:
            cursor.close()
    return done


def _commit(connection: sqlite3.Connection, statements: list[_Statement]) -> _Done:
    done = _run(connection, statements)
    connection.commit()
    return done


class _Cursor:
    """The part of aiosqlite's cursor that SQLAlchemy uses."""

    arraysize = 1

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._done = _Done()

    async def __aenter__(self) -> Self:
        return self

    @property
    def description(self) -> Any:  # noqa: ANN401  # DB-API's
        """Columns of the rows, or None."""
        return self._done.description

    @property
    def rowcount(self) -> int:
        """Rows a write touched."""
        return self._done.rowcount

    @property
    def lastrowid(self) -> int | None:
        """Number of the row last inserted."""
        return self._done.lastrowid

    async def execute(self, sql: str, parameters: Sequence[Any] | None = None) -> None:
        """Carry out a statement."""
        self._done = await self._connection.run(_Statement(sql, parameters or ()))

    async def executemany(self, sql: str, parameters: Sequence[Any]) -> None:
        """Carry out a statement once for each set of values."""
        self._done = await self._connection.run(_Statement(sql, parameters, many=True))

    async def fetchall(self) -> list[Any]:
        """All rows, which lie here already."""
        return self._done.rows

    async def close(self) -> None:
        """Nothing is open."""
