from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gpu_server.fetch import Fetcher
from gpu_server.journal import Journal
from tests.support.gpu_bench import Bench, MakeBench, Script
from tests.support.slots import Slots, receiving


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[MakeBench]:
    made: list[Bench] = []
    async with Journal(tmp_path / "journal.sqlite") as journal, Fetcher() as fetcher:

        def make(script: Script) -> Bench:
            made.append(Bench(script, journal, fetcher, tmp_path))
            return made[-1]

        yield make
        for each in made:
            await each.runs.close()
            await each.deliverer.close()


@pytest.fixture
async def slots() -> AsyncGenerator[Slots]:
    async with receiving() as slots:
        yield slots
