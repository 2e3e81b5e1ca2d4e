"""Everything that is PostgreSQL's own: its connections, and when to try something again."""

from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

SCHEMES: Final = frozenset({"postgresql", "postgres", "postgresql+asyncpg"})
CONNECT_S: Final = 10
ANSWER_S: Final = 30
"""Longest a statement may go unanswered: longer than the server itself lets it take."""

SESSION: Final = {
    "application_name": "genmedia-gateway",
    "statement_timeout": "20s",
    "lock_timeout": "10s",
    # compiling placement's query takes fifty times as long as carrying it out
    "jit": "off",
    # a process stopped in the middle of a transaction must not hold its locks for long: placement
    # of all replicas waits for one of them
    "idle_in_transaction_session_timeout": "5s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
PATIENT: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
}
_TRY_AGAIN: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: it waited for lock_timeout
        "0A000",  # a plan cached before the tables were changed
    }
)
_GONE: Final = frozenset(
    {
        "25P03",  # idle_in_transaction_session_timeout
        "25006",  # read_only_sql_transaction: this server became a standby
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
    }
)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def is_postgres(url: str) -> bool:
    """Whether the URL names a PostgreSQL database."""
    return urlsplit(url).scheme in SCHEMES


async def connect(url: str, *, patient: bool = False) -> Connection:
    """One connection, to the server that takes writes; the URL is read as libpq reads it.

    `patient` = statements may take and wait as long as they need.
    """
    plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
    return await asyncpg.connect(
        plain,
        timeout=CONNECT_S,
        command_timeout=None if patient else ANSWER_S,
        server_settings={**SESSION, **(PATIENT if patient else {})},
        # of several hosts the one that is no standby
        target_session_attrs=(
            None if "target_session_attrs=" in url else SessionAttribute.read_write
        ),
    )


def create_engine(
    url: str,
    /,
    *,
    patient: bool = False,
    **options: Any,  # noqa: ANN401  # foreign options
) -> AsyncEngine:
    """An engine that drops connections which can be of no use any more."""
    creator = partial(connect, url, patient=patient)
    engine = create_async_engine("postgresql+asyncpg://", async_creator=creator, **options)
    event.listen(engine.sync_engine, "handle_error", _on_error)
    return engine


def _on_error(context: ExceptionContext) -> None:
    original = context.original_exception
    # one that left a statement unanswered may be connected to nothing
    if isinstance(original, TimeoutError) or getattr(original, "sqlstate", None) in _GONE:
        context.is_disconnect = True


def worth_another_try(error: Exception, *, committing: bool) -> bool:
    """Whether a transaction that failed so changed nothing and may go through the next time.

    `committing` = it failed while it was being committed: a connection lost then leaves open
    whether it was.
    """
    if not isinstance(error, DBAPIError):
        return False
    if getattr(error.orig, "sqlstate", None) in _TRY_AGAIN:
        return True
    return error.connection_invalidated and not committing
