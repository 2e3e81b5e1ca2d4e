"""Previews on the wire: opt-in, from ComfyUI's websocket to the follower."""

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gpu import Gpu, Json, gpu_stack
from tests.support.slots import Slots
from tests.support.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with gpu_stack(
        tmp_path, "simulator", "gpu_server", SIM_STEP_MS="100", SIM_PREVIEWS="true"
    ) as stack:
        yield stack


async def test_a_follower_who_asks_gets_previews_and_another_gets_none(
    stack: Stack, slots: Slots
) -> None:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        assert "previews" in (await gpu.http.get("/health")).json()["protocol"]
        run_id = await gpu.start(gpu.request(slots.slots("a"), num_inference_steps=20))

        async def told(*, previews: bool) -> list[Json]:
            return [event async for event in gpu.events(run_id, previews=previews)]

        asked, other = await asyncio.gather(told(previews=True), told(previews=False))
        pictures = [event["preview"] for event in asked if event["type"] == "preview"]
        assert pictures
        assert {picture["media_type"] for picture in pictures} == {"image/jpeg"}
        assert all(base64.b64decode(p["data"]).startswith(b"\xff\xd8\xff") for p in pictures)
        # Twenty steps of a tenth of a second make twenty previews: the latest, now and then.
        assert len(pictures) < 20
        assert "preview" not in {event["type"] for event in other}
        assert asked[-1] == other[-1]
        assert asked[-1]["type"] == "completed"
