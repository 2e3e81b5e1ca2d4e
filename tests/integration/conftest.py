"""What tests of the GPU service's wire share."""

from collections.abc import AsyncIterator

import pytest

from tests.support.slots import Slots, receiving


@pytest.fixture
async def slots() -> AsyncIterator[Slots]:
    """Where a run's files go."""
    async with receiving() as slots:
        yield slots
