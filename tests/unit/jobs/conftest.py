import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.jobs.world import World


@pytest.fixture(scope="session")
def empty_database(sqlite_tables: Path) -> Path:
    """A migrated SQLite file to copy."""
    return sqlite_tables


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[World]:
    world = World(database_url)
    yield world
    await world.stop()


@pytest.fixture
async def sqlite_world(tmp_path: Path, sqlite_tables: Path) -> AsyncIterator[World]:
    """For what only SQLite does."""
    path = tmp_path / "gateway.db"
    shutil.copy(sqlite_tables, path)
    world = World(f"sqlite+aiosqlite:///{path}")
    yield world
    await world.stop()
