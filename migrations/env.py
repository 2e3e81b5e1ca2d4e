"""How alembic reaches the database: the gateway hands it the URL, by hand it is DATABASE_URL."""

import os

from alembic import context
from sqlalchemy import create_engine, pool

from gateway.db.schema import sync_url
from gateway.db.tables import metadata


def run() -> None:
    url = context.config.attributes.get("url") or sync_url(os.environ["DATABASE_URL"])
    engine = create_engine(url, poolclass=pool.NullPool)
    with engine.connect() as connection:
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
    engine.dispose()


run()
