"""Why a database cannot be used, in a sentence for whoever starts the gateway."""

import sqlite3
from typing import Final
from urllib.parse import unquote, urlsplit

import asyncpg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from gateway.db import postgres

FAILURES: Final = (
    SQLAlchemyError,
    # what drivers raise before there is a connection
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""Everything a database that does not do its work raises."""

_BY_STATE: Final = {
    "28P01": "{at} does not accept the password of {user}",
    "28000": "{at} does not let {user} in",
    "3D000": "{at} has no database named {database}: create it (createdb {database})",
    "42501": "{at} does not allow it: let {user} create tables in {database}",
    "53300": "{at} has no connection left: raise its max_connections",
    "57P03": "{at} is starting or stopping: try again shortly",
}


class DatabaseRefused(Exception):
    """The database cannot be used as it is; the message says why and holds no secret."""


def refusal(url: str, error: BaseException) -> DatabaseRefused:
    """The sentence for an error met while opening the database."""
    text = _postgres(url, error) if postgres.is_postgres(url) else _sqlite(url, error)
    return DatabaseRefused(f"DATABASE_URL: {text}.")


def _postgres(url: str, error: BaseException) -> str:
    parts = urlsplit(url)
    credentials, _, address = parts.netloc.rpartition("@")
    names = {
        "at": f"PostgreSQL at {address or 'its socket'}",
        "user": unquote(credentials.partition(":")[0]) or "this user",
        "database": unquote(parts.path.lstrip("/")) or "the one named like the user",
    }
    original = error.orig if isinstance(error, DBAPIError) else error
    state = str(getattr(original, "sqlstate", None))
    if state in _BY_STATE:
        return _BY_STATE[state].format(**names)
    if isinstance(original, OSError):
        return f"no PostgreSQL answers at {address or 'its socket'}"
    # its own words may quote the address, password included
    return f"{names['at']} cannot be used ({type(original).__name__}, SQLSTATE {state})"


def _sqlite(url: str, error: BaseException) -> str:
    path = url.partition(":///")[2]
    original = error.orig if isinstance(error, DBAPIError) else error
    match getattr(original, "sqlite_errorname", ""):
        case "SQLITE_NOTADB":
            return f"{path} is no SQLite database: name another file, or put a backup in its place"
        case "SQLITE_CORRUPT":
            return f"{path} is damaged: put a backup in its place"
        case "SQLITE_FULL":
            return f"there is no space left for {path}"
        case _ if isinstance(original, OSError | sqlite3.Error):
            reason = original.strerror if isinstance(original, OSError) else str(original)
            return f"{path} cannot be opened and written ({reason})"
        case _:
            return f"{path} cannot be used ({type(original).__name__})"
