"""Runs of the ComfyUI client, as its tests need them: a graph, a follower, what a whole run is."""

import asyncio
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_server.comfy import (
    ComfyClient,
    Finished,
    Graph,
    Patience,
    Produced,
    RunEvent,
    RunFailed,
    Started,
    Stepped,
)
from gpu_server.journal import Journal

PATIENCE = Patience(settle_s=20, confirm_s=0.3, interrupt_every_s=0.1)


@asynccontextmanager
async def connected(url: str, folder: Path, **waits: Any) -> AsyncIterator[ComfyClient]:
    """A client that looks more often than by default, with its journal in `folder`."""
    async with Journal(folder / "journal.db") as journal:
        client = ComfyClient(url, journal, **{"reconcile_s": 0.3, "patience": PATIENCE, **waits})
        await client.start()
        try:
            yield client
        finally:
            await client.close()


def new_id() -> str:
    return str(uuid.uuid4())


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(steps: int = 5) -> Graph:
    """A picture nobody has made before, and a text."""
    seed = random.randrange(2**53)
    return {
        "4": node("CheckpointLoaderSimple", ckpt_name="tiny-sd15.ckpt"),
        "5": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "6": node("CLIPTextEncode", clip=["4", 1], text="a lighthouse"),
        "7": node("CLIPTextEncode", clip=["4", 1], text=""),
        "3": node(
            "KSampler",
            model=["4", 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
            seed=seed,
            steps=steps,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=f"t/{seed}"),
        "10": node("PreviewAny", source="a caption"),
    }


async def follow(
    client: ComfyClient, run_id: str, graph: Graph, timeout_s: float = 600
) -> list[RunEvent]:
    return [event async for event in client.run(run_id, graph, timeout_s=timeout_s)]


async def failing(client: ComfyClient, graph: Graph, timeout_s: float = 600) -> RunFailed:
    with pytest.raises(RunFailed) as caught:
        await follow(client, new_id(), graph, timeout_s)
    return caught.value


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what only polling can show, in ComfyUI or another process."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, "it did not come about within 30 s"
            time.sleep(0.02)

    await asyncio.to_thread(wait)


class Following:
    """A run followed in the background, with what it told so far."""

    def __init__(self, client: ComfyClient, graph: Graph, timeout_s: float = 600) -> None:
        self.run_id = new_id()
        self.events: list[RunEvent] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._follow(client, graph, timeout_s))

    async def _follow(self, client: ComfyClient, graph: Graph, timeout_s: float) -> None:
        async for event in client.run(self.run_id, graph, timeout_s=timeout_s):
            self.events.append(event)
            self._news.set()

    async def sampling(self) -> None:
        """Wait for the first sampler step."""
        async with asyncio.timeout(30):
            while not any(isinstance(each, Stepped) and each.step for each in self.events):
                self._news.clear()
                await self._news.wait()


def whole(events: list[RunEvent]) -> bool:
    """Begun once, every output told once and before the end, progress never backwards."""
    fractions = [each.fraction for each in events if isinstance(each, Stepped)]
    outputs = sorted(each.node for each in events if isinstance(each, Produced))
    return (
        isinstance(events[0], Started)
        and isinstance(events[-1], Finished)
        and sum(isinstance(each, Started | Finished) for each in events) == 2
        and outputs == ["10", "9"]
        and fractions == sorted(fractions)
    )
