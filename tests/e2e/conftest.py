from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.stack import Stack, running, wait_ready

VARIANT = "checkpoint:tiny-sd15.ckpt"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One running stack for the tests of a module that do not harm it."""
    with running(tmp_path_factory.mktemp("stack"), SIM_STEP_MS="5") as stack:
        with stack.client() as client:
            wait_ready(client, VARIANT)
        yield stack


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own, to be harmed."""
    with running(tmp_path, SIM_STEP_MS="5") as stack:
        with stack.client() as client:
            wait_ready(client, VARIANT)
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client
