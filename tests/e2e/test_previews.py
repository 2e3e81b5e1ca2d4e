"""Previews from the sampler to the caller: `COMFYUI_TEST_URL` names a real ComfyUI instead."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.stack import Stack, running, wait_ready

REAL = os.environ.get("COMFYUI_TEST_URL")
"""It must have been started with `--preview-method`."""
BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
    "num_inference_steps": 20,
}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path, comfyui=REAL, SIM_STEP_MS="100", SIM_PREVIEWS="true") as stack:
        with stack.client() as client:
            wait_ready(client, BODY["variant"])
        yield stack


def followed(client: httpx.Client, job_id: str, query: str) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    with client.stream("GET", f"/api/jobs/{job_id}/events{query}") as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kind = line[6:].strip()
            elif line.startswith("data:"):
                assert len(line) < 100_000
                found.append((kind, json.loads(line[5:])))
    return found


@pytest.mark.timeout(300)
def test_previews_come_to_who_asks_while_the_job_runs_and_are_not_replayed(stack: Stack) -> None:
    with stack.client() as client:
        job_id = client.post("/api/generate/async", json=BODY).json()["job_id"]
        events = followed(client, job_id, "?previews=true")
        assert events[-1][0] == "completed"
        previews = [data for kind, data in events if kind == "preview"]
        assert previews
        for preview in previews:
            assert preview["media_type"] == "image/jpeg"
            assert base64.b64decode(preview["data"]).startswith(b"\xff\xd8\xff")
        again = followed(client, job_id, "?previews=true")
        assert "preview" not in {kind for kind, _ in again}
        assert client.get(f"/api/jobs/{job_id}/events?previews=perhaps").status_code == 422
