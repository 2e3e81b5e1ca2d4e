"""A look at the database that changes nothing: beside a gateway that runs, or before one does."""

import asyncio
import os
import sqlite3
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from gateway.db import postgres, schema
from gateway.db.refusals import FAILURES, DatabaseRefused, refusal
from gateway.db.schema import SchemaOutdated

HEAR_S: Final = 5.0
_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_NOT_ALLOWED: Final = """
SELECT tablename FROM pg_tables
WHERE schemaname = ANY (current_schemas(false)) AND tablename = ANY ($1::text[])
  AND NOT (SELECT bool_and(has_table_privilege(format('%I.%I', schemaname, tablename), asked))
           FROM unnest($2::text[]) AS asked)
ORDER BY tablename LIMIT 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A database that answers."""

    name: str
    """`PostgreSQL 15.4`, `SQLite 3.40.1`."""
    version: int
    """Of PostgreSQL as `server_version_num` says it; 0 for SQLite."""
    ms: float
    """How long one small question took."""
    ahead_s: float
    """How far its clock is ahead of this machine's."""
    max_connections: int | None


def is_postgres(url: str) -> bool:
    """Whether the address is one of PostgreSQL."""
    return postgres.is_postgres(url)


async def server(url: str) -> Server:
    """Ask what it is. Raises DatabaseRefused."""
    if not postgres.is_postgres(url):
        name = f"SQLite {sqlite3.sqlite_version}"
        return Server(name=name, version=0, ms=0, ahead_s=0, max_connections=None)
    try:
        connection = await postgres.connect(url)
        try:
            # the first statement of a connection also pays for what it sets up
            await connection.fetchval("SELECT 1")
            before, began = time.time(), time.perf_counter()
            there = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())")
            took = time.perf_counter() - began
            return Server(
                name=f"PostgreSQL {await connection.fetchval('SHOW server_version')}",
                version=int(str(await connection.fetchval("SHOW server_version_num"))),
                ms=took * 1000,
                ahead_s=float(str(there)) - (before + took / 2),
                max_connections=int(str(await connection.fetchval("SHOW max_connections"))),
            )
        finally:
            connection.terminate()
    except FAILURES as error:
        raise refusal(url, error) from error


async def schema_trouble(url: str) -> SchemaOutdated | None:
    """Why this code cannot work with the tables; None where it can. Raises DatabaseRefused."""
    try:
        if postgres.is_postgres(url):
            engine = postgres.create_engine(url, poolclass=NullPool)
            try:
                async with engine.connect() as connection:
                    await connection.run_sync(schema.check)
            finally:
                await engine.dispose()
        else:
            await asyncio.to_thread(_check_sqlite, sqlite_path(url))
    except SchemaOutdated as error:
        return error
    except FAILURES as error:
        raise refusal(url, error) from error
    return None


async def hears(url: str) -> bool:
    """Whether what one connection tells by NOTIFY reaches another one. Raises DatabaseRefused."""
    channel, heard = f"genmedia_doctor_{uuid.uuid4().hex}", asyncio.Event()
    try:
        listening = await postgres.connect(url)

        def told(_connection: object, _pid: int, _channel: str, _payload: object) -> None:
            heard.set()

        try:
            await listening.add_listener(channel, told)
            # another one: a pooler that shares connections out would pass a connection's own on
            telling = await postgres.connect(url)
            try:
                await telling.execute("SELECT pg_notify($1, '')", channel)
            finally:
                telling.terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEAR_S):
                    await heard.wait()
        finally:
            listening.terminate()
    except FAILURES as error:
        raise refusal(url, error) from error
    return heard.is_set()


async def forbidden_table(url: str, tables: list[str]) -> str | None:
    """A table this user may not read and write; None if all may be. Raises DatabaseRefused."""
    try:
        connection = await postgres.connect(url)
        try:
            found = await connection.fetchval(_NOT_ALLOWED, tables, list(_RIGHTS))
        finally:
            connection.terminate()
    except FAILURES as error:
        raise refusal(url, error) from error
    return None if found is None else str(found)


def remedy(url: str, refused: DatabaseRefused) -> str:
    """What to do about a database that cannot be used."""
    cause = refused.__cause__
    original = cause.orig if isinstance(cause, DBAPIError) else cause
    if not postgres.is_postgres(url):
        return f"let user {os.getuid()} read and write the file that DATABASE_URL names"
    state = str(getattr(original, "sqlstate", None))
    if isinstance(original, OSError):
        return "start PostgreSQL there, or correct host and port in DATABASE_URL"
    if state.startswith("28"):
        return "correct user and password in DATABASE_URL, or set them in PostgreSQL (ALTER ROLE)"
    return "correct DATABASE_URL: postgresql://user:password@host:5432/name"


def sqlite_path(url: str) -> Path:
    """The file of a SQLite address."""
    return Path(make_url(url).database or "")


def _check_sqlite(path: Path) -> None:
    if not path.exists():
        raise SchemaOutdated(f"There is no database yet. Run: {schema.COMMAND}", schema.COMMAND)
    # A look must leave nothing behind: reading a database in WAL mode that nobody has open would
    # make files beside it, of this user, which the gateway's own could then not write.
    in_use = path.with_name(f"{path.name}-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro{'' if in_use else '&immutable=1'}"
    engine = create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(address, uri=True), poolclass=NullPool
    )
    with engine.connect() as connection:
        schema.check(connection)
