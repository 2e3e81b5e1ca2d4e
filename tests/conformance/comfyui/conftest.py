"""Where the suite finds its ComfyUI: COMFYUI_TEST_URL, or a simulator of its own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .wire import Comfy

REAL_URL = os.environ.get("COMFYUI_TEST_URL", "").rstrip("/")
STEP_MS = "10"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing that kills a worker thread ever reaches somebody's ComfyUI."""
    if not REAL_URL:
        return
    reason = "would break the ComfyUI that COMFYUI_TEST_URL names: simulator only"
    for item in items:
        if item.get_closest_marker("simulator_only") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the simulator ended with {process.returncode}"
        try:
            if httpx.get(f"{url}/queue").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("the simulator did not answer within 30 s")


@contextmanager
def simulator(folder: Path) -> Generator[str]:
    """A simulator process on a free loopback port, with its files under `folder`."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gpu_server.simulator", "--port", str(port)]
    environment = {**os.environ, "SIM_STEP_MS": STEP_MS, "TMPDIR": str(folder)}
    with (folder / "simulator.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_until_it_answers(url, process)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def connect(url: str) -> Generator[Comfy]:
    with httpx.Client(base_url=url, timeout=30) as http:
        stated = http.get("/system_stats").json()["system"]["comfyui_version"]
        version = tuple(int(part) for part in re.findall(r"\d+", stated)[:3])
        yield Comfy(url, http, version)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if REAL_URL:
        yield REAL_URL
        return
    with simulator(tmp_path_factory.mktemp("simulator")) as url:
        yield url


@pytest.fixture
def comfy(server_url: str) -> Iterator[Comfy]:
    """The server under test; prompts that a test leaves behind are ended afterwards."""
    with connect(server_url) as server:
        yield server
        server.stop_all()


@pytest.fixture
def disposable(tmp_path: Path) -> Iterator[Comfy]:
    """A simulator for this test alone, which may be broken for good."""
    with simulator(tmp_path) as url, connect(url) as server:
        yield server
