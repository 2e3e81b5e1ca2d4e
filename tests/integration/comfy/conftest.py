from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.comfyui import Simulator


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    simulator = Simulator(tmp_path_factory.mktemp("shared"))
    simulator.start()
    yield simulator
    simulator.close()


@pytest.fixture
def comfyui(shared: Simulator) -> Simulator:
    """One simulator for all tests, with every knob back at its default."""
    shared.turn(reset=True)
    return shared


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Simulator]:
    """A simulator of the test's own, to be killed; not started yet."""
    simulator = Simulator(tmp_path)
    yield simulator
    simulator.close()
