"""Making the tables, and refusing tables that are not the ones this code was written for."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, make_url

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
    config.attributes["url"] = sync_url(url)
    return config


def sync_url(url: str) -> str:
    """The same database by a driver that needs no event loop."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite+aiosqlite":
        parsed = parsed.set(drivername="sqlite+pysqlite")
        Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
    return parsed.render_as_string(hide_password=False)


def migrate(url: str) -> None:
    """Bring the database to the newest schema; nothing to do is no error."""
    command.upgrade(alembic_config(url), "head")


def check(connection: Connection) -> None:
    """Raise SchemaOutdated unless the database is at the newest revision."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    wanted = scripts.get_current_head()
    found = MigrationContext.configure(connection).get_current_revision()
    if found == wanted:
        return
    if found is None:
        raise SchemaOutdated(f"The database has no tables yet. Run: {COMMAND}", COMMAND)
    known = {script.revision for script in scripts.walk_revisions()}
    if found in known:
        raise SchemaOutdated(
            f"The database is at schema {found}, this version needs {wanted}. Run: {COMMAND}",
            COMMAND,
        )
    raise SchemaOutdated(
        f"The database is at schema {found}, which is newer than this version ({wanted}). Install "
        f"the version that wrote it, or go back to a copy made before and run: {COMMAND}",
        COMMAND,
    )
