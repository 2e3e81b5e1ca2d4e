"""The same calls on the simulator and on a real ComfyUI: COMFYUI_TEST_URL names one.

It needs the tiny SD1.5 checkpoint and its LoRA (docs/comfyui.md), no GPU.
"""

import io
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.stack import Stack, running, wait_ready

REAL = os.environ.get("COMFYUI_TEST_URL")
TINY = "checkpoint:tiny-sd15.ckpt"
LORA = {"name": "tiny-sd15-lora.safetensors", "scale": 1.0}
BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": TINY,
    "width": 256,
    "height": 320,
    "num_inference_steps": 8,
    "seed": 11,
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    workspace = tmp_path_factory.mktemp("engine")
    with running(workspace, comfyui=REAL, SIM_STEP_MS="150") as stack:
        with stack.client() as client:
            wait_ready(client, TINY)
        yield stack


def generate(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/api/generate", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pixels(client: httpx.Client, result: dict[str, Any]) -> bytes:
    picture = Image.open(io.BytesIO(client.get(result["image_url"]).content))
    assert picture.size == (256, 320)
    return picture.convert("RGB").tobytes()


def events(client: httpx.Client, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line[6:].strip()
            elif line.startswith("data:"):
                yield kind, json.loads(line[5:])


def test_the_answer_names_the_engine_that_made_it(client: httpx.Client) -> None:
    result = generate(client)
    assert result["engine"] == ("comfyui" if REAL else "simulator")
    assert set(result["generation_params"]) >= {"seed", "steps", "width", "height", "lora_scale"}


def test_the_same_seed_is_pixel_equal_and_a_lora_shows(client: httpx.Client) -> None:
    first, again = pixels(client, generate(client)), pixels(client, generate(client))
    assert first == again
    assert pixels(client, generate(client, loras=[LORA])) != first
    assert pixels(client, generate(client, prompt="a red barn")) != first


def test_progress_comes_step_by_step(client: httpx.Client) -> None:
    body = BODY | {"seed": 21, "num_inference_steps": 12, "width": 512, "height": 512}
    job_id = client.post("/api/generate/async", json=body).json()["job_id"]
    seen = list(events(client, job_id))
    assert seen[-1][0] == "completed"
    steps = {data["step"] for kind, data in seen if kind == "progress" and data.get("step")}
    # newer versions tell a fast step only every 100 ms
    assert len(steps) >= 3
    fractions = [data["fraction"] for kind, data in seen if kind == "progress"]
    assert fractions == sorted(fractions)


def test_a_cancelled_run_leaves_comfyui_free_for_the_next(
    stack: Stack, client: httpx.Client
) -> None:
    body = BODY | {"seed": 31, "num_inference_steps": 100, "width": 768, "height": 768}
    job_id = client.post("/api/generate/async", json=body).json()["job_id"]
    for kind, data in events(client, job_id):
        if kind == "progress" and data.get("step"):
            break
    assert client.post(f"/api/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    deadline = time.monotonic() + 60
    queue: dict[str, Any] = {"queue_running": [job_id]}
    while job_id in json.dumps(queue) and time.monotonic() < deadline:
        queue = httpx.get(f"{stack.comfyui}/queue", trust_env=False).json()
        time.sleep(0.05)
    assert job_id not in json.dumps(queue)
    assert client.get(f"/api/jobs/{job_id}").json()["status"] == "cancelled"


@pytest.mark.parametrize("killed", [("gateway",), ("gpu_server",), ("gateway", "gpu_server")])
def test_a_job_survives_kill_9_of_our_processes(stack: Stack, killed: tuple[Any, ...]) -> None:
    with stack.client() as client:
        body = BODY | {"seed": 41 + len(killed), "num_inference_steps": 30, "height": 768}
        job_id = client.post("/api/generate/async", json=body).json()["job_id"]
        for kind, data in events(client, job_id):
            if kind == "progress" and data.get("step"):
                break
    stack.kill(*killed)
    stack.start(*killed)
    with stack.client() as client:
        job: dict[str, Any] = {}
        for _ in range(20):
            job = client.get(f"/api/generate/{job_id}", params={"wait": 30}).json()
            if job["finished_at"]:
                break
        assert job["status"] == "completed", job
        # every attempt has an id of its own: one execution means that only the first one ran
        events_text = client.get(f"/api/jobs/{job_id}/events").text
        assert "retrying" not in events_text
