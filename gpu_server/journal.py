"""What the GPU service must remember beyond its own death: one small SQLite file.

It holds the websocket's clientId, so that a new process receives the events of the prompts its
predecessor queued, and one row for each run until it is forgotten.

    accepted    the service has the request, nothing was sent to ComfyUI
    posting     written before the POST: after a death nobody knows whether it arrived
    posted      ComfyUI has answered it
    delivered   every output lies where it belongs
    failed      it ended without a result
    cancelled   it was asked to end, and has ended once `ended` is set; also of a run that never
                came, or that ended and was deleted: a request still on its way must not start it

A row that has ended has no request any more (it names files by signed addresses) but
how the run ended: who asks after a restart must not take it for lost and pay for it again.
"""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

T = TypeVar("T")

SentState = Literal["posting", "posted"]
FinalState = Literal["delivered", "failed", "cancelled"]
JournalState = Literal["accepted", SentState, FinalState]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (
    one INTEGER PRIMARY KEY CHECK (one = 1), client_id TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (
        state IN ('accepted', 'posting', 'posted', 'delivered', 'failed', 'cancelled')
    ),
    request BLOB NOT NULL,
    created REAL NOT NULL,
    status BLOB,
    ended REAL
) STRICT;
"""
_VERSION = 1
# Of a journal without the column `status`, whose delivered runs nobody can be told about.
_RENEW = f"""
BEGIN;
ALTER TABLE runs RENAME TO old_runs;
{_SCHEMA}
INSERT INTO runs (run_id, state, request, created)
    SELECT run_id, state, request, created FROM old_runs WHERE state <> 'delivered';
DROP TABLE old_runs;
PRAGMA user_version = {_VERSION};
COMMIT;
"""  # noqa: S608 - made of constants


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRow:
    """One run as the journal knows it."""

    run_id: str
    state: JournalState
    request: bytes
    """What the service was asked to do, in the service's own encoding."""
    created: float
    """Seconds since the epoch."""
    status: bytes | None = None
    """How it ended, in the service's own encoding; None while it has not."""
    ended: float | None = None
    """Seconds since the epoch."""


class Journal:
    """The journal file; every method runs in one thread of its own, in order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        """Open the file, so that a wrong path is known at start."""
        await self._do(lambda _db: None)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close the file."""
        await self.close()

    async def close(self) -> None:
        """Close the file; the journal can't be used afterwards."""

        def shut() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await asyncio.get_running_loop().run_in_executor(self._thread, shut)
        self._thread.shutdown(wait=False)

    async def client_id(self) -> str:
        """Return the websocket clientId, the same one for the life of the file."""

        def read(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO identity VALUES (1, ?)", (uuid.uuid4().hex,))
            return str(db.execute("SELECT client_id FROM identity").fetchone()[0])

        return await self._do(read)

    async def put(self, run_id: str, request: bytes) -> bool:
        """Record a run as accepted, or replace what it was asked for while nothing was sent.

        False when ComfyUI may have it already: then the row stays as it is.
        """

        def write(db: sqlite3.Connection) -> bool:
            done = db.execute(
                "INSERT INTO runs (run_id, state, request, created) "
                "VALUES (?, 'accepted', ?, ?) ON CONFLICT (run_id) "
                "DO UPDATE SET request = excluded.request WHERE state = 'accepted'",
                (run_id, request, time.time()),
            )
            return done.rowcount == 1

        return await self._do(write)

    async def renew(self, run_id: str, request: bytes) -> None:
        """Replace what a run that goes on was asked for, wherever it is; no row, nothing done."""
        await self._do(
            lambda db: (
                db.execute(
                    "UPDATE runs SET request = ? WHERE run_id = ? "
                    "AND state IN ('accepted', 'posting', 'posted')",
                    (request, run_id),
                ).rowcount
            )
        )

    async def claim(self, run_id: str) -> JournalState | None:
        """Set a run to `posting` unless ComfyUI may have it; return what it was before."""

        def write(db: sqlite3.Connection) -> JournalState | None:
            found = db.execute("SELECT state FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            state = None if found is None else cast("JournalState", found[0])
            if state in (None, "accepted"):
                _set(db, run_id, "posting")
            return state

        return await self._do(write)

    async def move(self, run_id: str, state: SentState) -> None:
        """Set the state of a run that goes on; one never `put` gets a row without a request."""
        await self._do(lambda db: _set(db, run_id, state))

    async def cancel(self, run_id: str) -> None:
        """Record that a run is to end, known or not; nothing but its end changes that any more."""

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO runs (run_id, state, request, created) "
                "VALUES (?, 'cancelled', x'', ?) ON CONFLICT (run_id) "
                "DO UPDATE SET state = 'cancelled' WHERE ended IS NULL",
                (run_id, time.time()),
            )

        await self._do(write)

    async def end(self, run_id: str, state: FinalState, status: bytes) -> None:
        """Record how a run ended, together with the fact that it did; its request is dropped."""

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO runs VALUES (:run_id, :state, x'', :now, :status, :now) "
                "ON CONFLICT (run_id) DO UPDATE "
                "SET state = :state, request = x'', status = :status, ended = :now",
                {"run_id": run_id, "state": state, "status": status, "now": time.time()},
            )

        await self._do(write)

    async def get(self, run_id: str) -> JournalRow | None:
        """Return a run's row."""

        def read(db: sqlite3.Connection) -> JournalRow | None:
            found = db.execute(f"{_SELECT} WHERE run_id = ?", (run_id,)).fetchone()
            return None if found is None else _row(found)

        return await self._do(read)

    async def unfinished(self) -> list[JournalRow]:
        """Return every run that is not over, oldest first."""

        def read(db: sqlite3.Connection) -> list[JournalRow]:
            found = db.execute(f"{_SELECT} WHERE ended IS NULL ORDER BY created, run_id")
            return [_row(each) for each in found]

        return await self._do(read)

    async def over(self, younger_than_s: float) -> list[JournalRow]:
        """Return every run that ended more recently than that, oldest first."""

        def read(db: sqlite3.Connection) -> list[JournalRow]:
            found = db.execute(
                f"{_SELECT} WHERE ended > ? ORDER BY ended, run_id", (time.time() - younger_than_s,)
            )
            return [_row(each) for each in found]

        return await self._do(read)

    async def delete(self, run_id: str) -> None:
        """Forget a run; unknown is no error."""
        await self._do(
            lambda db: db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)).rowcount
        )

    async def purge(self, older_than_s: float, *, cancelled_s: float) -> list[str]:
        """Forget runs that ended longer ago than that, and return their ids.

        Cancelled ones, which must not be started any more, are forgotten after `cancelled_s`.
        """

        def write(db: sqlite3.Connection) -> list[str]:
            now = time.time()
            gone = db.execute(
                "DELETE FROM runs WHERE ended <= CASE state WHEN 'cancelled' THEN ? ELSE ? END "
                "RETURNING run_id",
                (now - cancelled_s, now - older_than_s),
            )
            return [str(each[0]) for each in gone.fetchall()]

        return await self._do(write)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._with, work)

    def _with(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            self._connection = _open(self._path)
        return work(self._connection)


_SELECT = "SELECT run_id, state, request, created, status, ended FROM runs"


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # A write survives this process at once; only a power cut can lose the last ones, and that
        # empties ComfyUI's queue and history as well, so there would be nothing left to adopt.
        db.execute("PRAGMA synchronous = NORMAL")
        old = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'runs'").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.executescript(_RENEW if old and version < _VERSION else _SCHEMA)
        db.execute(f"PRAGMA user_version = {_VERSION}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def check(path: Path) -> None:
    """Open the file, or make it, and read it all; raises OSError and sqlite3.Error."""
    db = _open(path)
    try:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        db.close()
    if found != "ok":
        raise sqlite3.DatabaseError("the file is damaged")


def _set(db: sqlite3.Connection, run_id: str, state: SentState) -> None:
    db.execute(
        "INSERT INTO runs (run_id, state, request, created) VALUES (:run_id, :state, x'', :now) "
        "ON CONFLICT (run_id) DO UPDATE SET state = :state "
        "WHERE state IN ('accepted', 'posting', 'posted')",
        {"run_id": run_id, "state": state, "now": time.time()},
    )


def _row(found: tuple[str, str, bytes, float, bytes | None, float | None]) -> JournalRow:
    run_id, state, request, created, status, ended = found
    return JournalRow(
        run_id=run_id,
        state=cast("JournalState", state),
        request=bytes(request),
        created=created,
        status=status,
        ended=ended,
    )
