"""How alembic reaches the database: the gateway hands it the URL, by hand it is DATABASE_URL."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

from alembic import context
from sqlalchemy import Connection, create_engine, pool, text

from gateway.db import postgres
from gateway.db.schema import check, is_newer, sync_url
from gateway.db.tables import metadata

MIGRATING = 4_711_001
"""Key of the lock that lets one process migrate at a time."""


def run() -> None:
    url = context.config.attributes.get("url") or os.environ["DATABASE_URL"]
    if postgres.is_postgres(url):
        # the driver needs an event loop, and whoever called may be running one
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, on_postgres(url)).result()
    else:
        engine = create_engine(sync_url(url), poolclass=pool.NullPool)
        with engine.connect() as connection:
            migrate(connection)
        engine.dispose()


async def on_postgres(url: str) -> None:
    engine = postgres.create_engine(url, patient=True, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(one_at_a_time)
    await engine.dispose()


def one_at_a_time(connection: Connection) -> None:
    # of the session, not of a transaction: each migration is one; closing the connection frees it
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATING})
    connection.commit()
    migrate(connection)


def migrate(connection: Connection) -> None:
    newer = is_newer(connection)
    if newer:
        # an older version beside a newer one: there is nothing to do, or it may not be there
        check(connection)
    connection.rollback()
    if newer:
        return
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
        # SQLite changes a column by copying its table
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
