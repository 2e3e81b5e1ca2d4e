"""The registry of LoRAs."""

import pytest

from gateway.db import Database
from gateway.db.trained_models import TrainedModels
from gateway.errors import Conflict
from tests.unit.jobs.world import World


async def test_a_model_is_found_again_and_its_name_is_taken_once(world: World) -> None:
    db = Database(world.url)
    models = TrainedModels(db)
    added = await models.add("Ink", "ink.safetensors", "inkstyle", "flux1-dev")
    assert await models.get(added.id) == added
    assert await models.get(added.id + 1) is None
    with pytest.raises(Conflict, match="'Ink' is registered already"):
        await models.add("Ink", "other.safetensors", None, "flux1-dev")
    await db.close()


async def test_models_are_walked_newest_first(world: World) -> None:
    db = Database(world.url)
    models = TrainedModels(db)
    ids = [(await models.add(f"m{n}", f"{n}.safetensors", None, "flux1-dev")).id for n in range(5)]
    first, cursor = await models.list(limit=3)
    second, end = await models.list(cursor, limit=3)
    assert [model.id for model in (*first, *second)] == ids[::-1]
    assert end is None
    await db.close()
