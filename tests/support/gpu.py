"""A GPU service over a simulator, both real processes, and a client of its wire."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.recordings import bundled, files
from tests.support.slots import Slots
from tests.support.stack import Stack

TOKEN = "test-token-of-the-stack"
PATIENCE_S = 120
Json = dict[str, Any]


@contextmanager
def gpu_stack(workspace: Path, *started: str, **env: str) -> Iterator[Stack]:
    """Simulator and GPU service, of which those named are started; stopped at the end."""
    stack = Stack(
        workspace,
        COMFYUI_PATH=str(workspace / "simulator"),
        MODELS_PATH=str(workspace / "models"),
        LOG_LEVEL="DEBUG",
        **env,
    )
    try:
        if started:
            stack.start(*started)
        yield stack
    finally:
        stack.stop()


class Gpu:
    """Speaks the wire contract to one GPU service."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{stack.ports['gpu_server']}",
            headers={"authorization": f"Bearer {TOKEN}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )
        self.started: set[str] = set()

    async def tidy(self) -> None:
        """Let no run of a failed test disturb the next one."""
        for run_id in self.started:
            await self.http.delete(f"/runs/{run_id}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.http.aclose()

    def request(self, slots: list[Json], name: str = "checkpoint", **params: Any) -> Json:
        """A RunRequest for a bundled workflow, small and quick."""
        values: Json = {"prompt": "a lighthouse", "num_inference_steps": 2, "seed": 7}
        values |= {"width": 64, "height": 64} if name == "checkpoint" else {}
        values |= {"checkpoint": "tiny-sd15.ckpt"} if name == "checkpoint" else {}
        ref = {"name": name, "digest": bundled()[name].digest}
        return {"workflow": ref, "params": values | params, "outputs": slots}

    async def put(self, run_id: str, request: Json) -> httpx.Response:
        return await self.http.put(f"/runs/{run_id}", json=request)

    async def start(self, request: Json, run_id: str | None = None) -> str:
        chosen = run_id or str(uuid.uuid4())
        answer = await self.put(chosen, request)
        assert answer.status_code == 201, answer.text
        self.started.add(chosen)
        return chosen

    async def events(self, run_id: str, *, previews: bool = False) -> AsyncIterator[Json]:
        asked = {"previews": "1"} if previews else {}
        async with self.http.stream("GET", f"/runs/{run_id}/events", params=asked) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    yield json.loads(line[6:])

    async def end(self, run_id: str) -> Json:
        """The run's status once it is over."""
        async with asyncio.timeout(PATIENCE_S):
            async for event in self.events(run_id):
                if "status" in event:
                    return event["status"]
        raise AssertionError("the events ended before the run did")

    async def run(self, request: Json) -> Json:
        return await self.end(await self.start(request))

    async def until(self, run_id: str, kind: str) -> Json:
        """The first event of a kind."""
        async with asyncio.timeout(PATIENCE_S):
            async for event in self.events(run_id):
                if event["type"] == kind:
                    return event
        raise AssertionError(f"the run ended without {kind}")

    async def stepping(self, run_id: str) -> float:
        """Return once ComfyUI is known to execute the run: the fraction done."""
        async with asyncio.timeout(PATIENCE_S):
            async for event in self.events(run_id):
                # the first event of a run says 0, before ComfyUI has the prompt
                if event["type"] == "progress" and event["progress"]["fraction"] > 0:
                    return event["progress"]["fraction"]
        raise AssertionError("the run ended without progress")

    async def connected(self) -> None:
        """Return once the service is connected to ComfyUI."""
        deadline = time.monotonic() + PATIENCE_S
        while (await self.http.get("/ready")).status_code != 200:
            assert time.monotonic() < deadline, self.stack.log("gpu_server")
            await asyncio.sleep(0.05)

    def sim(self, **settings: Any) -> Json:
        """Change the simulator's settings; its counts."""
        return self.stack.simulator(**settings)["counts"]


def inline(name: str, slots: list[Json], params: Json, change: Any = None) -> Json:
    graph, manifest = files(name)
    if change is not None:
        change(graph, manifest)
    return {"graph": graph, "manifest": manifest, "params": params, "outputs": slots}


def blended(slots: Slots, url: str, sha256: str | None = None) -> Json:
    """A workflow that reads a file: the picture is what was uploaded."""

    def change(graph: Json, manifest: Json) -> None:
        graph["30"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
        graph["8"]["inputs"]["images"] = ["30", 0]
        manifest["params"] = {"picture": {"upload": "image", "bind": "30.image", "required": True}}
        manifest["outputs"]["images"]["max"] = 1

    request = inline("checkpoint", slots.slots("a"), {}, change)
    file = {"url": url, "media_type": "image/png"} | ({"sha256": sha256} if sha256 else {})
    return request | {"inputs": {"picture": [file]}}
