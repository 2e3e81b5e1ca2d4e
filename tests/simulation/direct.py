"""A second, three times faster driver: SQLAlchemy's own synchronous engine under async methods.

It has what `gateway.db` uses of an AsyncEngine. Statements, pool and transactions are the real ones
and each operation is a scheduling point as in `dbapi`; what it lacks is the greenlet layer and that
an operation whose caller was cancelled still happens.
"""

import asyncio
import contextlib
import random
import sqlite3
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.simulation.dbapi import BUSY_RETRY_S, SERVER, Observer, Server
from tests.simulation.engines import share_compiled
from tests.simulation.loop import TURN
from tests.simulation.process import PROCESS

T = TypeVar("T")
_templates: dict[str, Engine] = {}


class ReportingConnection(sqlite3.Connection):
    """A real connection that tells the server's observer how each transaction ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.changes: list[tuple[Any, ...]] = []
        self.process = PROCESS.get()
        self.busy_timeout: float | None = None
        self.server = SERVER.get()

    @property
    def real(self) -> sqlite3.Connection:
        return self

    def commit(self) -> None:
        super().commit()
        self._settled(committed=True)

    def rollback(self) -> None:
        super().rollback()
        self._settled(committed=False)

    def _settled(self, *, committed: bool) -> None:
        self.server.operations += 1
        if self.changes:
            self.server.commits += committed
            self.server.observer.settled(self, committed=committed)

    def die(self) -> None:
        """Its process is gone: the kernel closes its files, which rolls back what was open."""
        # a statement that was not read to its end would keep a closed connection's locks; the pool
        # may have closed it already
        with contextlib.suppress(sqlite3.ProgrammingError):
            super().rollback()
        self.changes.clear()
        self.close()


def _open() -> sqlite3.Connection:
    server = SERVER.get()
    connection = sqlite3.connect(
        server.path, timeout=0, check_same_thread=False, factory=ReportingConnection
    )
    process = PROCESS.get()
    if process is not None:
        process.at_death.append(connection.die)
    server.observer.opened(connection)
    return connection


class DirectEngine:
    """Stands in for an AsyncEngine."""

    def __init__(self, engine: Engine, connections: int) -> None:
        self.sync_engine = engine
        self._room = asyncio.Semaphore(connections)

    async def dispose(self) -> None:
        await _turn()
        self.sync_engine.dispose()

    @asynccontextmanager
    async def connect(self) -> "AsyncGenerator[DirectConnection]":
        async with self._room:
            await _turn()
            with self.sync_engine.connect() as connection:
                yield _ready(connection)

    @asynccontextmanager
    async def begin(self) -> "AsyncGenerator[DirectConnection]":
        async with self._room:
            await _turn()
            with self.sync_engine.connect() as connection:
                ready = _ready(connection)
                await ready.patiently(connection.begin)
                try:
                    yield ready
                except BaseException:
                    connection.rollback()
                    raise
                await _turn()
                connection.commit()
                # it is committed; whether the process lives to learn that is another matter
                await _turn()


class DirectConnection:
    """Stands in for an AsyncConnection."""

    def __init__(self, connection: Connection, busy_timeout: float) -> None:
        self._connection = connection
        self._busy_timeout = busy_timeout

    async def execute(self, statement: Executable, values: Any = None) -> CursorResult[Any]:
        await _turn()
        SERVER.get().operations += 1
        return await self.patiently(lambda: self._connection.execute(statement, values))

    async def run_sync(self, function: Callable[[Connection], T]) -> T:
        await _turn()
        return function(self._connection)

    async def patiently(self, call: Callable[[], T]) -> T:
        """Wait for a lock in virtual time, as long as the busy timeout says."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._busy_timeout
        while True:
            try:
                return call()
            except OperationalError as error:
                code = getattr(error.orig, "sqlite_errorcode", None)
                if code != sqlite3.SQLITE_BUSY or loop.time() >= until:
                    raise
            await asyncio.sleep(BUSY_RETRY_S)


def _ready(connection: Connection) -> DirectConnection:
    raw = connection.connection.dbapi_connection
    if not isinstance(raw, ReportingConnection):
        raise TypeError(f"not opened here: {raw!r}")
    timeout = raw.busy_timeout
    if timeout is None:
        # what the program asked for is waited in virtual time: SQLite itself must not block
        timeout = raw.busy_timeout = raw.execute("PRAGMA busy_timeout").fetchone()[0] / 1000
        raw.execute("PRAGMA busy_timeout=0")
    return DirectConnection(connection, timeout)


async def _turn() -> None:
    delay = SERVER.get().delay()
    if delay:
        await asyncio.sleep(delay)
    else:
        await TURN


def create_direct_engine(url: str, /, **options: Any) -> AsyncEngine:
    """Make an engine as `create_async_engine` would, without greenlets."""
    key = f"{sorted(options.items())!r}"
    template = _templates.get(key)
    if template is None:
        template = _templates[key] = Context().run(_template, options)
    engine = Engine(template.pool.recreate(), template.dialect, template.url)
    share_compiled(template, engine)
    engine.update_execution_options(**template.get_execution_options())
    connections = options.get("pool_size", 5) + options.get("max_overflow", 10)
    del url
    return cast("AsyncEngine", DirectEngine(engine, connections))


def _template(options: dict[str, Any]) -> Engine:
    engine = create_engine("sqlite:///simulated.db", creator=_open, **options)
    with tempfile.TemporaryDirectory() as folder:
        # the dialect looks at the server once; nothing of that is timed or drawn
        path = str(Path(folder) / "warm-up.db")
        SERVER.set(Server(path, random.Random(0), observer=Observer()))
        with engine.connect():
            pass
        engine.dispose()
    return engine
