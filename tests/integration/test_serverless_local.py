"""The worker on one's own machine, as docs/serverless.md prints it: every tool, both ways."""

import asyncio
import json
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_server.serverless.settings import WorkerSettings
from gpu_server.settings import Settings
from tests.support.comfyui import Simulator
from tests.support.recordings import bundled
from tests.support.serverless import (
    PATIENCE_S,
    PYTHON,
    WorkerProcess,
    require_sdk,
    until,
    worker_environment,
)
from tests.support.stack import ROOT, free_port

INPUTS = sorted((ROOT / "gpu_server" / "test_inputs").glob("*.json"))
PAGE = (ROOT / "docs" / "serverless.md").read_text()
each_input = pytest.mark.parametrize("path", INPUTS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def simulator(folder: Path) -> Generator[Simulator]:
    simulator = Simulator(folder)
    simulator.start()
    yield simulator
    simulator.close()


@pytest.fixture(scope="module")
def api(folder: Path, simulator: Simulator) -> Generator[httpx.Client]:
    """`--rp_serve_api`."""
    port = free_port()
    env = worker_environment(folder, simulator.url)
    options = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
    worker = WorkerProcess("api", folder, env, *options)
    worker.start()
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE_S
    ) as api:

        def answers() -> bool:
            assert worker.running, worker.log
            try:
                return api.get("/").is_success
            except httpx.TransportError:
                return False

        asyncio.run(until(answers))
        yield api
    worker.stop()


@each_input
def test_the_local_api_runs_each_tools_test_input(api: httpx.Client, path: Path) -> None:
    answer: dict[str, Any] = api.post("/runsync", json=json.loads(path.read_text())).json()
    assert answer["status"] == "COMPLETED", answer
    output = answer["output"]
    assert output["engine"] == ("cpu" if path.stem == "rescale" else "simulator")
    assert output.keys() & {"images", "videos", "files", "caption"}
    asked = json.loads(path.read_text())["input"]
    assert output["params"].get("seed") == asked.get("seed", output["params"].get("seed"))


@each_input
def test_each_tools_test_input_runs_by_itself(
    folder: Path, simulator: Simulator, path: Path
) -> None:
    env = worker_environment(folder, simulator.url)
    command = [str(PYTHON), "-m", "gpu_server.runpod_handler", "--test_input", path.read_text()]
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert b"completed successfully" in done.stdout


def test_an_input_that_fails_ends_with_1(folder: Path, simulator: Simulator) -> None:
    env = worker_environment(folder, simulator.url)
    command = [str(PYTHON), "-m", "gpu_server.runpod_handler", "--test_input", '{"input": {}}']
    done = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 1
    assert b"operation" in done.stdout


def test_a_worker_that_is_stopped_stops_comfyui(folder: Path, simulator: Simulator) -> None:
    simulator.turn(step_ms=2000)
    asked = json.loads((ROOT / "gpu_server" / "test_inputs" / "generate.json").read_text())
    env = worker_environment(folder, simulator.url)
    worker = WorkerProcess("stopped", folder, env, "--test_input", json.dumps(asked))
    worker.start()
    try:
        asyncio.run(until(lambda: simulator.queue()[0]))
        worker.stop()
        asyncio.run(until(lambda: simulator.queue() == (set(), set())))
    finally:
        worker.kill()
        simulator.turn(reset=True)


def test_settings_that_do_not_fit_are_named_and_no_secret_is_shown(folder: Path) -> None:
    env = worker_environment(folder, "http://127.0.0.1:9", STORAGE_URL="file:///data")
    command = [str(PYTHON), "-m", "gpu_server.runpod_handler"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 1
    assert b"STORAGE_URL" in done.stderr
    env |= {"STORAGE_URL": "r2://bucket", "R2_SECRET_ACCESS_KEY": "top-secret"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=False)
    assert b"R2_ACCESS_KEY_ID" in done.stderr
    assert b"top-secret" not in done.stderr


def test_the_page_names_every_test_input_and_every_setting() -> None:
    own = WorkerSettings.model_fields.keys() - Settings.model_fields.keys()
    assert not [name for name in own if f"`{name.upper()}`" not in PAGE]
    inputs = {path.stem for path in INPUTS}
    printed = set(re.findall(r"gpu_server/test_inputs/([a-z0-9-]+)\.json", PAGE))
    assert printed
    assert printed <= inputs
    assert not [name for name in inputs if f"`{name}`" not in PAGE]
    assert inputs == {"rescale", *(workflow.tool for workflow in bundled().values())}
