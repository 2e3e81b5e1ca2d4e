"""What the database holds at the end, read as it lies there."""

import sqlite3
from pathlib import Path
from typing import Any

from tests.support.postgres import execute

Rows = list[dict[str, Any]]


class Records:
    """Plain SQL, whichever database it is."""

    def __init__(self, url: str) -> None:
        self._url = url

    def rows(self, query: str) -> Rows:
        """The rows of a query."""
        if not self._url.startswith("sqlite"):
            return execute(self._url, query)
        connection = sqlite3.connect(Path(self._url.partition("///")[2]), timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query)]
        finally:
            connection.close()
