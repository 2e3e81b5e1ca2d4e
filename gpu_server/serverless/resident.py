"""The GPU service's parts, alive for as long as the worker's event loop."""

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from gpu_server.comfy import ComfyClient
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.inline import InlineFetcher
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.service import Service, running_service

_LOOK_S = 0.1
_PREFIX = "genmedia-worker-"
_LOCK = "lock"


class Resident:
    """Builds the parts when the first job needs them, in the loop that runs it.

    RunPod's SDK starts an event loop of its own for the fitness checks and another for the jobs,
    and tells nobody when it ends one: so the parts live in a task, which the end of the loop
    cancels.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._living: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Service] | None = None
        self._jobs = 0
        self._idle = asyncio.Event()

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[Service]:
        """Lend the parts, which may not have reached ComfyUI yet; they stay until this is left."""
        loop = asyncio.get_running_loop()
        living, ready = self._living, self._ready
        if living is None or ready is None or living.done() or living.get_loop() is not loop:
            ready, self._jobs, self._idle = loop.create_future(), 0, asyncio.Event()
            self._ready = ready
            self._living = loop.create_task(self._live(ready), name="worker's parts")
        self._jobs += 1
        try:
            yield await asyncio.shield(ready)
        finally:
            self._jobs -= 1
            self._idle.set()

    async def close(self) -> None:
        """Let go of them before the loop ends."""
        living, self._living = self._living, None
        if living is not None:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)

    async def _live(self, ready: asyncio.Future[Service]) -> None:
        with _own_folder() as folder:
            settings = self._settings.model_copy(update={"workspace": folder})
            settings.journal_path.parent.mkdir(parents=True)
            try:
                async with running_service(settings, fetching=InlineFetcher) as service:
                    ready.set_result(service)
                    try:
                        await asyncio.Event().wait()
                    finally:
                        # The end of the loop cancels the jobs together with this task, and they
                        # need the parts to stop ComfyUI.
                        while self._jobs:
                            self._idle.clear()
                            await self._idle.wait()
            except Exception as error:
                if ready.done():
                    raise
                ready.set_exception(error)


@contextmanager
def _own_folder() -> Generator[Path]:
    """A folder of this process alone: workers that share a volume must not share a journal.

    What killed processes left is removed: their jobs are RunPod's to hand out again.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        _remove_unless_held(left)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as folder:
        held = os.open(Path(folder) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(held)


def _remove_unless_held(folder: Path) -> None:
    try:
        # One that is not there yet belongs to a process that is starting.
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(lock)


async def reached(comfy: ComfyClient, within_s: float) -> None:
    """Return once ComfyUI can be given work; raises CallFailed when it takes longer."""
    deadline = time.monotonic() + within_s
    while not comfy.available:
        if time.monotonic() >= deadline:
            message = comfy.trouble or "ComfyUI does not answer"
            raise CallFailed("transient", "comfyui_unavailable", message)
        await asyncio.sleep(_LOOK_S)
