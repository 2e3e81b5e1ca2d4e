import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.db import migrate
from tests.unit.jobs.world import World


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("schema") / "gateway.db"
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


@pytest.fixture
async def world(tmp_path: Path, empty_database: Path) -> AsyncIterator[World]:
    path = tmp_path / "gateway.db"
    shutil.copy(empty_database, path)
    world = World(path)
    yield world
    await world.stop()
