"""What holds for every test: where a service is required, a skip is a failure."""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from gateway.db import migrate
from tests.support.postgres import Databases, NoPostgres, databases


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        report.skipped
        and os.environ.get("REQUIRE_SERVICES") == "1"
        and not hasattr(item, "wasxfail")
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped although REQUIRE_SERVICES=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres_databases() -> Iterator[Databases]:
    """Makes databases on a PostgreSQL that is there for the whole session."""
    try:
        with databases() as made:
            yield made
    except NoPostgres as error:
        pytest.skip(str(error))


@pytest.fixture
def postgres_url(postgres_databases: Databases) -> Iterator[str]:
    """Address of a PostgreSQL database with every table and no row."""
    url = postgres_databases.new()
    yield url
    postgres_databases.drop(url)


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table and no row, to copy: to migrate takes longer."""
    path = tmp_path_factory.mktemp("schema") / "gateway.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a database with every table and no row, once of each kind."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_url")
        return url
    path = tmp_path / "data" / "gateway.sqlite"
    path.parent.mkdir()
    shutil.copy(request.getfixturevalue("sqlite_tables"), path)
    return f"sqlite+aiosqlite:///{path}"
