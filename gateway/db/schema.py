"""Making the tables, and refusing tables that are not the ones this code was written for."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, make_url, select

from gateway.db.refusals import FAILURES, refusal
from gateway.db.tables import compatibility

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
COMMAND = "python -m gateway migrate"


class SchemaOutdated(Exception):
    """The database's tables are not the ones this version works with; `command` mends it."""

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command


def alembic_config(url: str) -> Config:
    """Alembic's configuration, whatever folder the process was started in."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["url"] = url
    return config


def sync_url(url: str) -> str:
    """The same SQLite database by a driver that needs no event loop."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite+aiosqlite":
        parsed = parsed.set(drivername="sqlite+pysqlite")
        Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
    return parsed.render_as_string(hide_password=False)


def migrate(url: str) -> None:
    """Bring the database to the newest schema of this code; nothing to do is no error.

    Raises DatabaseRefused, and SchemaOutdated when it is too new for this code.
    """
    try:
        command.upgrade(alembic_config(url), "head")
    except FAILURES as error:
        raise refusal(url, error) from error


def newest() -> str:
    """The newest revision this code knows. Revisions are numbers of four digits."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if head is None:
        raise RuntimeError(f"no migrations in {MIGRATIONS}")
    return head


def check(connection: Connection) -> None:
    """Raise SchemaOutdated unless this code can work with the tables.

    Newer tables say which code may: a migration that only adds leaves older code at work, so that
    both run side by side while a new version is rolled out.
    """
    wanted = newest()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == wanted:
        return
    if found is None:
        raise SchemaOutdated(f"The database has no tables yet. Run: {COMMAND}", COMMAND)
    if found < wanted:
        raise SchemaOutdated(
            f"The database is at schema {found}, this version needs {wanted}. Run: {COMMAND}",
            COMMAND,
        )
    oldest = _oldest(connection)
    if oldest is None or oldest > wanted:
        raise SchemaOutdated(
            f"The database is at schema {found}, which is newer than this version ({wanted}) and "
            f"asks for {oldest or found} at least. Install the version that wrote it, or go back "
            f"to a copy made before and run: {COMMAND}",
            COMMAND,
        )


def is_newer(connection: Connection) -> bool:
    """Whether the tables were made by a newer version."""
    found = MigrationContext.configure(connection).get_current_revision()
    return found is not None and found > newest()


def _oldest(connection: Connection) -> str | None:
    if not inspect(connection).has_table(compatibility.name):
        return None
    return connection.execute(select(func.max(compatibility.c.oldest))).scalar()
