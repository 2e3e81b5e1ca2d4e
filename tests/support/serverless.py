"""The real SDK's worker with our handler, in its own environment, as a process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.support.runpod_double import Runpod
from tests.support.runpod_jobs import Job, Json
from tests.support.stack import ROOT

PYTHON = Path(f"{sys.prefix}-serverless") / "bin" / "python"
"""Of the environment that `make setup-serverless` makes beside the one of the tests."""
PATIENCE_S = 150


def require_sdk() -> None:
    """Skip where the worker's environment was not made."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON.parents[1].name} is not there: `make setup-serverless` makes it")


def worker_environment(folder: Path, comfyui: str, **env: str) -> dict[str, str]:
    """What a worker sees, and nothing else of this process.

    `folder`: has the simulator's folder in it.
    """
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(folder / "tmp"),
        "COMFYUI_API_URL": comfyui,
        "COMFYUI_PATH": str(folder / "simulator"),
        "RUNPOD_PROGRESS_S": "0.1",
        **env,
    }


class WorkerProcess:
    """`python -m gpu_server.runpod_handler`, stopped by its id."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], *arguments: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._env = env
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(PYTHON), "-m", "gpu_server.runpod_handler", *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def log(self) -> str:
        """All it has printed."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return self._process.wait(PATIENCE_S)

    def kill(self) -> None:
        """SIGKILL, with the process that pings for it, as a container ends."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Politely, then for good."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        if how is signal.SIGKILL:
            os.killpg(process.pid, how)
            process.wait()
            return
        process.send_signal(how)
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None:
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        process.wait()


@asynccontextmanager
async def working(
    folder: Path, comfyui: str, double: Runpod, *, name: str = "w1", **env: str
) -> AsyncGenerator[WorkerProcess]:
    """A worker of the double's endpoint."""
    environment = worker_environment(folder, comfyui, **double.worker_env(name), **env)
    worker = WorkerProcess(name, folder, environment)
    worker.start()
    try:
        yield worker
    finally:
        # it asks for no more jobs than it has, and ends
        double.closing = True
        await asyncio.to_thread(worker.stop)


class Caller:
    """Speaks RunPod's API to the double, as somebody without a gateway does."""

    def __init__(self, double: Runpod) -> None:
        self.double = double
        self._http = httpx.AsyncClient(
            base_url=double.url, headers=double.headers, trust_env=False, timeout=60
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def submit(self, asked: Json, **more: Any) -> Job:
        answer = await self._http.post("/run", json={"input": asked, **more})
        assert answer.status_code == 200, answer.text
        return self.double.endpoint.jobs[answer.json()["id"]]

    async def post(self, path: str) -> Json:
        answer = await self._http.post(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def told(self, job: Job) -> Json:
        answer = await self._http.get(f"/status/{job.id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def ended(self, job: Job) -> Json:
        """What `/status` tells once the job is over."""
        await until(lambda: job.over)
        return await self.told(job)

    async def run(self, asked: Json) -> Json:
        return await self.ended(await self.submit(asked))


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what only polling can show, in another process."""

    def wait() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"it did not come about within {PATIENCE_S} s"
            time.sleep(0.02)

    # the double is served by the test's own loop
    await asyncio.to_thread(wait)
