"""Tables made by migration are the tables the code expects, and others are refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError
from typer.testing import CliRunner

from gateway.cli import cli
from gateway.db import Database, SchemaOutdated, migrate
from gateway.db.schema import alembic_config
from tests.support.databases import rows
from tests.support.postgres import PASSWORD, Databases
from tests.support.stack import free_port

ROOT = Path(__file__).parents[2]
JOB = (
    "INSERT INTO jobs (id, tool, variant, caller, status, params, call, events, created_at,"
    " deadline_at) VALUES ('{id}', 'generate', 'flux', 'alice', 'completed', '{{\"prompt\": 1}}',"
    " '{{}}', 1, 1, 2)"
)
RUN = (
    "INSERT INTO runs (id, job_id, stage, attempt, state, caller, priority, workflow, digest,"
    " models, epoch, failures, deaths, created_at, not_before, deadline_at)"
    " VALUES ('r', 'j1', 0, 0, 'delivered', 'alice', 0, 'w', 'd', '[]', 0, 0, 0, 1, 1, 2)"
)
FILE = (
    "INSERT INTO artifacts (job_id, output, n, key, filename, media_type, bytes, sha256)"
    " VALUES ('j1', 'images', 0, 'k', 'f.png', 'image/png', 1, 'aa')"
)
EVENT = "INSERT INTO job_events VALUES ('j1', 1, 'pending', '{}', 1)"
KEY = "INSERT INTO idempotency VALUES ('alice', 'key', 'j1', 'hash', 1)"
MODEL = "INSERT INTO trained_models (name, lora, base_model, created_at) VALUES ('m', 'l', 'b', 1)"
TABLES = ("runs", "job_events", "artifacts", "idempotency", "trained_models")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a database without tables."""
    if request.param == "postgresql":
        made: Databases = request.getfixturevalue("postgres_databases")
        return made.new(tables=False)
    return f"sqlite+aiosqlite:///{tmp_path / 'data' / 'gateway.db'}"


def stamp(url: str, revision: str, oldest: str) -> None:
    """Make it look as a newer version would leave it."""
    rows(url, f"UPDATE alembic_version SET version_num = '{revision}'")
    rows(url, f"UPDATE compatibility SET oldest = '{oldest}'")


def served(workspace: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve"],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "WORKSPACE": str(workspace),
            "DATABASE_URL": url,
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": str(free_port()),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_sentence(said: str, sentence: str) -> None:
    assert sentence in said
    assert len(said.strip().splitlines()) == 1, said
    for secret in (PASSWORD, "another-secret"):
        assert secret not in said


def test_the_migrations_make_exactly_the_tables_of_the_code(empty_url: str) -> None:
    migrate(empty_url)
    command.check(alembic_config(empty_url))


def test_a_difference_between_tables_and_code_is_noticed(empty_url: str) -> None:
    migrate(empty_url)
    rows(empty_url, "ALTER TABLE jobs DROP COLUMN params")
    with pytest.raises(CommandError):
        command.check(alembic_config(empty_url))


def test_migrating_twice_changes_nothing_and_back_leaves_nothing(empty_url: str) -> None:
    migrate(empty_url)
    migrate(empty_url)
    command.downgrade(alembic_config(empty_url), "base")
    migrate(empty_url)
    command.check(alembic_config(empty_url))


def test_the_second_migration_keeps_every_row_there_was(empty_url: str) -> None:
    command.upgrade(alembic_config(empty_url), "0001")
    for statement in (JOB.format(id="j1"), JOB.format(id="j2"), RUN, FILE, EVENT, KEY, MODEL):
        rows(empty_url, statement)
    before: dict[str, list[dict[str, Any]]] = {
        table: rows(empty_url, f"SELECT * FROM {table}") for table in TABLES
    }

    migrate(empty_url)

    found = rows(empty_url, "SELECT id, priority, webhook_url, batch_id FROM jobs ORDER BY id")
    assert found == [
        {"id": name, "priority": 0, "webhook_url": None, "batch_id": None} for name in ("j1", "j2")
    ]
    for table, [row] in before.items():
        [after] = rows(empty_url, f"SELECT * FROM {table}")
        # columns may have been added
        assert {**after, **row} == after


async def test_the_schema_of_this_version_is_accepted(database_url: str) -> None:
    db = Database(database_url)
    await db.check_schema()
    await db.close()


async def test_an_empty_database_is_refused_with_the_command_that_mends_it(empty_url: str) -> None:
    db = Database(empty_url)
    with pytest.raises(SchemaOutdated, match="python -m gateway migrate") as refused:
        await db.check_schema()
    assert refused.value.command == "python -m gateway migrate"
    await db.close()


async def test_a_newer_schema_that_still_serves_this_version_is_accepted_and_left_alone(
    database_url: str,
) -> None:
    stamp(database_url, "9999", oldest="0003")
    db = Database(database_url)
    await db.check_schema()
    await db.close()
    migrate(database_url)
    assert rows(database_url, "SELECT version_num FROM alembic_version") == [
        {"version_num": "9999"}
    ]


async def test_a_newer_schema_that_asks_for_newer_code_is_refused_and_says_so(
    database_url: str,
) -> None:
    stamp(database_url, "9999", oldest="9000")
    db = Database(database_url)
    with pytest.raises(SchemaOutdated, match=r"newer than this version .* asks for 9000"):
        await db.check_schema()
    await db.close()
    with pytest.raises(SchemaOutdated, match=r"newer than this version .* asks for 9000"):
        migrate(database_url)


@pytest.mark.parametrize("former", ["0001", "0002"])
async def test_code_that_knows_no_stages_is_refused_on_this_schema(
    database_url: str, former: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Database(database_url)
    await db.check_schema()
    monkeypatch.setattr("gateway.db.schema.newest", lambda: former)
    with pytest.raises(SchemaOutdated, match=r"newer than this version .* asks for 0003"):
        await db.check_schema()
    await db.close()


async def test_without_stages_the_code_of_before_is_let_in_again(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(empty_url)
    command.downgrade(alembic_config(empty_url), "0002")
    monkeypatch.setattr("gateway.db.schema.newest", lambda: "0001")
    db = Database(empty_url)
    await db.check_schema()
    await db.close()


async def test_an_older_schema_is_refused_and_says_so(database_url: str) -> None:
    command.downgrade(alembic_config(database_url), "0001")
    db = Database(database_url)
    with pytest.raises(SchemaOutdated, match="at schema 0001, this version needs"):
        await db.check_schema()
    await db.close()


def test_two_processes_migrate_one_postgresql_at_once(postgres_databases: Databases) -> None:
    url = postgres_databases.new(tables=False)
    both = [
        subprocess.Popen(
            [sys.executable, "-m", "gateway", "migrate"],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "DATABASE_URL": url},
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    command.check(alembic_config(url))


def refused_postgres(databases: Databases, case: str) -> tuple[str, str]:
    """An address that cannot be used, and what is said of it."""
    good = databases.new(tables=False)
    port = free_port()
    return {
        "absent": (
            f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/x",
            f"no PostgreSQL answers at 127.0.0.1:{port}",
        ),
        "password": (
            good.replace(PASSWORD, "another-secret"),
            "does not accept the password of tester",
        ),
        "database": (good.rpartition("/")[0] + "/nowhere", "has no database named nowhere"),
    }[case]


@pytest.mark.parametrize("case", ["absent", "password", "database"])
def test_migrating_a_postgresql_that_cannot_be_used_is_one_sentence_without_the_secret(
    postgres_databases: Databases, tmp_path: Path, case: str
) -> None:
    url, sentence = refused_postgres(postgres_databases, case)
    done = CliRunner().invoke(
        cli, ["migrate"], env={"DATABASE_URL": url, "WORKSPACE": str(tmp_path)}
    )
    assert done.exit_code == 1
    one_sentence(done.stderr, sentence)


def test_serving_a_postgresql_that_cannot_be_used_is_one_sentence_without_the_secret(
    postgres_databases: Databases, tmp_path: Path
) -> None:
    url, sentence = refused_postgres(postgres_databases, "password")
    done = served(tmp_path, url)
    assert done.returncode == 1
    one_sentence(done.stderr, sentence)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("torn.sqlite", "is no SQLite database"),
        ("file/gateway.sqlite", "cannot be opened and written"),
        # the system lets nobody write there, whoever runs the tests
        ("/proc/gateway.sqlite", "cannot be opened and written"),
    ],
)
def test_a_sqlite_file_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / "torn.sqlite").write_bytes(b"this was a database once" * 1000)
    (tmp_path / "file").touch()
    url = f"sqlite+aiosqlite:///{tmp_path / name}"
    done = CliRunner().invoke(
        cli, ["migrate"], env={"DATABASE_URL": url, "WORKSPACE": str(tmp_path)}
    )
    assert done.exit_code == 1
    one_sentence(done.stderr, sentence)


def test_serving_a_damaged_sqlite_file_is_one_sentence(tmp_path: Path) -> None:
    torn = tmp_path / "torn.sqlite"
    torn.write_bytes(b"this was a database once" * 1000)
    done = served(tmp_path, f"sqlite+aiosqlite:///{torn}")
    assert done.returncode == 1
    one_sentence(done.stderr, "is no SQLite database")
