"""The fast driver: an AsyncEngine's place is taken by two connections kept from world to world.

All processes of a world write through one connection, one transaction at a time, and read what is
committed through the other. The write lock, its queue, sessions that break and a database that is
away are modelled here, on virtual time. Each operation is a scheduling point.
"""

import asyncio
import os
import random
import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from sqlalchemy import Engine, Executable, create_engine
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.db.notices import NOTIFY
from tests.simulation import statements
from tests.simulation.dbapi import SERVER, Observer, Server
from tests.simulation.loop import TURN
from tests.simulation.process import PROCESS, Process

T = TypeVar("T")
LOCK_TIMEOUT_S = 10.0
IDLE_SESSION_S = 5.0
"""The server ends a transaction whose client is frozen after this."""


class File:
    """The one database file of this process, with its two connections."""

    def __init__(self, tables: bytes) -> None:
        shm = Path("/dev/shm")
        where = shm if os.access(shm, os.W_OK) else None
        self.clock: Callable[[], int] = lambda: 0
        """The database's own time, in microseconds."""
        with tempfile.TemporaryDirectory(prefix="simulation-", dir=where) as folder:
            path = Path(folder) / "world.db"
            path.write_bytes(tables)
            self.writer = self._connect(path)
            self.reader = self._connect(path)
        # no name is left of it: a process that is killed leaves nothing behind
        self.changes: list[tuple[Any, ...]] = []
        self._listening = False
        self.writer.create_function("sim_changed", -1, self._changed)
        self._tables = [
            name
            for (name,) in self.writer.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]

    def empty(self) -> None:
        """Make it as new, but for the statements its connections have prepared."""
        self._listening = False
        self.writer.execute("PRAGMA foreign_keys=OFF")
        self.writer.execute("BEGIN")
        for name in self._tables:
            self.writer.execute(f"DELETE FROM {name}")
        self.writer.execute("COMMIT")
        self.writer.execute("PRAGMA foreign_keys=ON")
        self.changes.clear()
        self._listening = True

    def put(self, table: str, row: dict[str, Any]) -> None:
        """Add a row nobody hears of."""
        self._listening = False
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        sql = f"INSERT INTO {table} ({names}) VALUES ({marks})"
        self.writer.execute(sql, list(row.values()))
        self._listening = True

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None, cached_statements=1000)
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        # everything it will use is open from here on
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        connection.create_function("database_clock", 0, self._now)
        return connection

    def _now(self) -> int:
        return self.clock()

    def _changed(self, *values: Any) -> None:
        if self._listening:
            self.changes.append(values)


class Session:
    """One write transaction, from the queue for the lock to its end."""

    def __init__(self, process: Process | None) -> None:
        self.process = process
        self.granted: asyncio.Future[None] | None = None
        self.broken = False
        self.changes: list[tuple[Any, ...]] = []
        """What observers read of a settled transaction."""
        self.told: list[str] = []
        """What NOTIFY sends when it commits."""

    @property
    def real(self) -> None:
        """Nothing to be prepared by an observer: the file's triggers are there already."""


class DirectServer(Server):
    """The database of one world on a kept file."""

    def __init__(
        self,
        file: File,
        rng: random.Random,
        *,
        observer: Observer,
        slow: float = 0,
        notify: Callable[[list[str]], None] | None = None,
    ) -> None:
        super().__init__("", rng, observer=observer, slow=slow)
        self.file = file
        self.away = False
        """Nobody gets an answer."""
        self.lost_commits = 0.0
        """Share of commits whose answer does not arrive, half of them carried out."""
        self.writing: Session | None = None
        self.ears: list[asyncio.Future[None]] = []
        """Listening connections; each is told when it breaks."""
        self._notify = notify
        self._queue: list[Session] = []

    async def turn(self) -> None:
        """One way to the server and back."""
        delay = self.delay()
        if delay:
            await asyncio.sleep(delay)
        else:
            await TURN
        if self.away:
            await asyncio.sleep(self._rng.choice((0.01, 1)))
            raise _unavailable("the database system is not up")
        self.operations += 1

    async def begin(self) -> Session:
        """Take the write lock, first come first served."""
        await self.turn()
        session = Session(PROCESS.get())
        if self.writing is None:
            self._grant(session)
            return session
        session.granted = asyncio.get_running_loop().create_future()
        self._queue.append(session)
        try:
            async with asyncio.timeout(LOCK_TIMEOUT_S):
                await session.granted
        except BaseException as error:
            if session in self._queue:
                self._queue.remove(session)
            self.end(session)
            if isinstance(error, TimeoutError):
                raise _unavailable("database is locked") from None
            raise
        if session.broken:
            raise _unavailable("terminating connection")
        return session

    def write(self, session: Session, statement: Executable, values: Any) -> statements.Result:
        """Carry out one statement of the open transaction."""
        if session.broken:
            raise _unavailable("terminating connection")
        if statement is NOTIFY:
            session.told += values["told"]
            return statements.Result([], 0)
        return _translated(lambda: statements.execute(self.file.writer, statement, values))

    def read(self, statement: Executable, values: Any) -> statements.Result:
        """Carry out one statement on what is committed."""
        # with no transaction open both connections see the same, and the writer's cache is warm
        connection = self.file.reader if self.writing is not None else self.file.writer
        return _translated(lambda: statements.execute(connection, statement, values))

    async def commit(self, session: Session) -> None:
        """Commit and answer, as far as nothing comes between."""
        await self.turn()
        if session.broken:
            raise _unavailable("terminating connection")
        lost = self.lost_commits > 0 and self._rng.random() < self.lost_commits
        if lost and self._rng.random() < 0.5:
            self.end(session)
            raise _unavailable("connection lost in commit")
        self.file.writer.execute("COMMIT")
        self._settle(session, committed=True)
        if session.told and self._notify is not None:
            self._notify(session.told)
        self._next()
        # it is committed; whether the process lives to learn that is another matter
        await TURN
        if lost:
            raise _unavailable("connection lost after commit")

    def end(self, session: Session | None) -> None:
        """Roll back, if it has not ended."""
        if session is None:
            return
        session.broken = True
        if self.writing is session:
            self.file.writer.execute("ROLLBACK")
            self._settle(session, committed=False)
            self._next()

    def gone(self, process: Process) -> None:
        """A process is dead: the kernel closes its connections."""
        self._queue = [session for session in self._queue if session.process is not process]
        if self.writing is not None and self.writing.process is process:
            self.end(self.writing)

    def frozen(self, process: Process) -> Session | None:
        """The transaction a frozen process leaves open."""
        writing = self.writing
        return writing if writing is not None and writing.process is process else None

    def restart(self) -> None:
        """Every session ends."""
        ears, self.ears = self.ears, []
        for ear in ears:
            if not ear.done():
                ear.set_result(None)
        waiting, self._queue = self._queue, []
        for session in waiting:
            session.broken = True
            if session.granted is not None and not session.granted.done():
                session.granted.set_result(None)
        if self.writing is not None:
            self.end(self.writing)

    def _grant(self, session: Session) -> None:
        self.writing = session
        self.file.writer.execute("BEGIN IMMEDIATE")

    def _next(self) -> None:
        self.writing = None
        # one that is frozen does not ask: it is passed over until it goes on
        for session in self._queue:
            if session.process is None or session.process.state == "running":
                self._queue.remove(session)
                self._grant(session)
                if session.granted is not None:
                    session.granted.set_result(None)
                return

    def thawed(self) -> None:
        """Somebody goes on who may have been passed over."""
        if self.writing is None:
            self._next()

    def _settle(self, session: Session, *, committed: bool) -> None:
        session.changes, self.file.changes = self.file.changes, []
        if session.changes:
            self.commits += committed
            self.observer.settled(session, committed=committed)


def _unavailable(message: str) -> OperationalError:
    return OperationalError(None, None, sqlite3.OperationalError(message))


def _translated(call: Callable[[], T]) -> T:
    try:
        return call()
    except sqlite3.IntegrityError as error:
        raise IntegrityError(None, None, error) from error
    except sqlite3.Error as error:
        raise OperationalError(None, None, error) from error


class _Transaction:
    """A write transaction, as `AsyncEngine.begin()` gives it."""

    dialect = statements.DIALECT

    def __init__(self, server: DirectServer) -> None:
        self._server = server
        self._session: Session | None = None

    async def __aenter__(self) -> Self:
        self._session = await self._server.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        session = self._session
        if session is None:
            return
        if kind is not None:
            self._server.end(session)
            return
        try:
            await self._server.commit(session)
        except BaseException:
            self._server.end(session)
            raise

    async def execute(self, statement: Executable, values: Any = None) -> statements.Result:
        await self._server.turn()
        if self._session is None:
            raise SQLAlchemyError("the transaction has not begun")
        return self._server.write(self._session, statement, values)


class _Reading:
    """An autocommit connection, as `AsyncEngine.connect()` gives it."""

    dialect = statements.DIALECT

    def __init__(self, server: DirectServer) -> None:
        self._server = server

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def execute(
        self,
        statement: Executable,
        values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> statements.Result:
        await self._server.turn()
        return self._server.read(statement, values)


class DirectEngine:
    """Stands in for an AsyncEngine."""

    def __init__(self) -> None:
        server = SERVER.get()
        if not isinstance(server, DirectServer):
            raise TypeError(f"not a kept file: {server!r}")
        self._server = server
        self.sync_engine = _unused()

    async def dispose(self) -> None:
        await TURN

    def connect(self) -> _Reading:
        return _Reading(self._server)

    def begin(self) -> _Transaction:
        return _Transaction(self._server)


@cache
def _unused() -> Engine:
    """What the program sets its pragmas on; nothing ever connects through it."""
    return create_engine("sqlite://")


def create_direct_engine(url: str, /, **options: Any) -> AsyncEngine:
    """Make an engine as `create_async_engine` would."""
    del url, options
    return cast("AsyncEngine", DirectEngine())
