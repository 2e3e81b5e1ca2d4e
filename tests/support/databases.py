"""What another program reads and writes in a database of either kind."""

import sqlite3
from contextlib import closing
from typing import Any

from gateway.db.postgres import is_postgres
from tests.support.postgres import execute


def rows(url: str, query: str) -> list[dict[str, Any]]:
    """The rows of a query."""
    if is_postgres(url):
        return execute(url, query)
    path = url.removeprefix("sqlite+aiosqlite:///")
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(query)]
