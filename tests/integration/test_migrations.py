"""Tables made by migration are the tables the code expects, and others are refused."""

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.util import CommandError

from gateway.db import Database, SchemaOutdated, migrate
from gateway.db.schema import alembic_config


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'data' / 'gateway.db'}"


def stamp(url: str, revision: str) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))
    connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.commit()
    connection.close()


def test_the_migrations_make_exactly_the_tables_of_the_code(url: str) -> None:
    migrate(url)
    command.check(alembic_config(url))


def test_a_difference_between_tables_and_code_is_noticed(url: str) -> None:
    migrate(url)
    connection = sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))
    connection.execute("ALTER TABLE jobs DROP COLUMN params")
    connection.commit()
    connection.close()
    with pytest.raises(CommandError):
        command.check(alembic_config(url))


def test_migrating_twice_changes_nothing_and_back_leaves_nothing(url: str) -> None:
    migrate(url)
    migrate(url)
    command.downgrade(alembic_config(url), "base")
    connection = sqlite3.connect(url.removeprefix("sqlite+aiosqlite:///"))
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert {name for name in tables if not name.startswith("sqlite_")} <= {
        "alembic_version",
        "sqlite_autoindex_alembic_version_1",
    }


async def test_the_schema_of_this_version_is_accepted(url: str) -> None:
    migrate(url)
    db = Database(url)
    await db.check_schema()
    await db.close()


async def test_an_empty_database_is_refused_with_the_command_that_mends_it(url: str) -> None:
    db = Database(url)
    with pytest.raises(SchemaOutdated, match="python -m gateway migrate") as refused:
        await db.check_schema()
    assert refused.value.command == "python -m gateway migrate"
    await db.close()


async def test_a_newer_schema_is_refused_and_says_so(url: str) -> None:
    migrate(url)
    stamp(url, "9999")
    db = Database(url)
    with pytest.raises(SchemaOutdated, match="newer than this version"):
        await db.check_schema()
    await db.close()


async def test_an_older_schema_is_refused_and_says_so(url: str) -> None:
    migrate(url)
    command.downgrade(alembic_config(url), "0001")
    db = Database(url)
    with pytest.raises(SchemaOutdated, match="at schema 0001, this version needs 0002"):
        await db.check_schema()
    await db.close()
