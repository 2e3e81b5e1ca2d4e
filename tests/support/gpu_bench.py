"""The GPU service's parts around a scripted ComfyUI, in the test's own process."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx

from gpu_server.catalogue import Catalogue
from gpu_server.cleaning import Cleaner
from gpu_server.comfy import (
    ComfyClient,
    ComfyFile,
    ComfyUnavailable,
    Finished,
    Produced,
    RunCancelled,
    RunEvent,
    Started,
    Stepped,
)
from gpu_server.delivery import Deliverer
from gpu_server.execution import Executor
from gpu_server.fetch import Fetcher
from gpu_server.inputs import Uploader
from gpu_server.journal import Journal
from gpu_server.protocol import RunRequest, WorkflowRef
from gpu_server.run import Run
from gpu_server.runs import Runs
from tests.support.recordings import ROOT, bundled, object_info
from tests.support.slots import Slots

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x40\x00\x00\x00\x20" + b"x" * 1000
Script = Callable[["Comfy"], AsyncGenerator[RunEvent]]


async def streamed() -> AsyncGenerator[bytes]:
    yield PNG[:500]
    yield PNG[500:]


class Comfy:
    """As much of the ComfyUI client as a run uses; what happens is the test's script."""

    engine = "simulator"
    available = True

    def __init__(self, script: Script) -> None:
        self.script = script
        self.interrupted: list[str] = []
        self.forgotten: list[str] = []
        self.stop = asyncio.Event()
        self.views = 0
        self.away_for = 0
        """So many views find ComfyUI away."""
        self.tells_length = True
        self._viewed = asyncio.Event()

    def on_connect(self, callback: Callable[[], Awaitable[None] | None]) -> None:
        callback()

    async def object_info(self, **_: Any) -> dict[str, Any]:
        return object_info("0.33.0")

    def run(self, _run_id: str, _graph: Any, **_: Any) -> AsyncGenerator[RunEvent]:
        return self.script(self)

    async def interrupt(self, run_id: str) -> None:
        self.interrupted.append(run_id)
        self.stop.set()

    async def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    async def until_viewed(self, times: int) -> None:
        """Return once files were read so often."""
        while self.views < times:
            self._viewed.clear()
            await self._viewed.wait()

    @asynccontextmanager
    async def view(self, _file: ComfyFile) -> AsyncGenerator[httpx.Response]:
        self.views += 1
        self._viewed.set()
        if self.views <= self.away_for:
            raise ComfyUnavailable
        headers = {"content-length": str(len(PNG))} if self.tells_length else {}
        yield httpx.Response(200, content=streamed(), headers=headers)


class Bench:
    """The service's parts around a scripted ComfyUI."""

    def __init__(self, script: Script, journal: Journal, fetcher: Fetcher, root: Path) -> None:
        self.comfy = Comfy(script)
        self.journal = journal
        comfy = cast("ComfyClient", self.comfy)
        catalogue = Catalogue.load(ROOT / "workflows", comfy)
        self.deliverer = Deliverer(comfy, root / "finishing")
        executor = Executor(
            comfy=comfy,
            catalogue=catalogue,
            journal=journal,
            uploader=Uploader(comfy, fetcher),
            deliverer=self.deliverer,
        )
        self.runs = Runs(
            executor=executor,
            journal=journal,
            comfy=comfy,
            catalogue=catalogue,
            cleaner=Cleaner(root),
            capacity=2,
        )

    def start(
        self, slots: Slots | None = None, count: int = 1, timeout_s: float = 600, **more: Any
    ) -> Run:
        workflow = bundled()["checkpoint"]
        run_id = str(uuid.uuid4())
        request = RunRequest.model_validate(
            {
                "workflow": WorkflowRef(name="checkpoint", digest=workflow.digest),
                "params": {"prompt": "x", "checkpoint": "sd15.safetensors"},
                "timeout_s": timeout_s,
                "outputs": slots.slots("a", count) if slots else [],
                **more,
            }
        )
        return self.runs.accept(run_id, request, workflow)

    async def journalled(self, run: Run) -> str | None:
        assert run.task is not None
        await run.task
        row = await self.journal.get(run.run_id)
        return row.state if row is not None else None


MakeBench = Callable[[Script], Bench]


def produced(count: int = 1) -> Produced:
    files = tuple(
        ComfyFile(
            node="8", key="images", index=n, filename="a.png", subfolder="jobs/x", type="output"
        )
        for n in range(count)
    )
    return Produced(node="8", files=files, texts=())


async def smooth(_comfy: Comfy) -> AsyncGenerator[RunEvent]:
    yield Started()
    yield Stepped(fraction=0.5, node="6", step=1, steps=2)
    yield produced()
    yield Finished()


async def until_stopped(comfy: Comfy) -> AsyncGenerator[RunEvent]:
    yield Started()
    await comfy.stop.wait()
    raise RunCancelled
