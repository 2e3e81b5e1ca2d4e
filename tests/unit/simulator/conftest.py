"""One simulator for most tests, put back to its start after each; one of their own for the rest."""

from collections.abc import Generator
from pathlib import Path

import pytest

from .client import Simulator


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("simulator"))
    yield simulator
    simulator.stop()


@pytest.fixture
def sim(shared: Simulator) -> Generator[Simulator]:
    yield shared
    shared.knobs(reset=True)


@pytest.fixture
def own(tmp_path: Path) -> Generator[Simulator]:
    """A simulator that this test may break for good."""
    simulator = Simulator(tmp_path)
    yield simulator
    simulator.stop(kill=True)
