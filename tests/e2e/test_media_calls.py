"""The client routes of media through all three services, files and all."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.library import bytes_of
from tests.support.stack import Stack, running, wait_ready

pytestmark = pytest.mark.timeout(300)
REMOVAL = "/api/background-removal"
LONGEST_S = 170
SLOW = {"prompt": "a mug", "width": 512, "height": 512, "num_inference_steps": 100}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("media"), SIM_STEP_MS="2") as stack:
        with stack.client() as client:
            wait_ready(client, "flux1-dev")
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    stack.simulator(step_ms=2)
    with stack.client() as client:
        client.headers["Prefer"] = f"wait={LONGEST_S}"
        client.timeout = httpx.Timeout(2 * LONGEST_S)
        yield client


def uploaded(client: httpx.Client, path: str = "/api/media/upload") -> dict[str, Any]:
    picture = bytes_of("red", side=300)
    answer = client.post(path, files={"file": ("mug.png", picture, "image/png")})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def generated(client: httpx.Client, card_id: str, **fields: Any) -> dict[str, Any]:
    sent = {"card_id": card_id, "prompt": "a ceramic mug", "media_type": "image"} | fields
    answer = client.post("/api/media/generate", data=sent)
    assert answer.status_code == 200, answer.text
    card = dict(answer.json())
    assert card["status"] == "completed"
    assert client.get(f"/api/media/{card_id}").json()["job_id"] == card["job_id"]
    return card


def opened(stack: Stack, url: str) -> tuple[str, bytes]:
    """What a link leads to, for one who has no key."""
    answer = httpx.get(f"{stack.url}{url}", timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.headers["content-type"], answer.content


def picture_at(stack: Stack, url: str) -> Image.Image:
    return Image.open(io.BytesIO(opened(stack, url)[1]))


def tool_of(client: httpx.Client, card: dict[str, Any]) -> str:
    return str(client.get(f"/api/jobs/{card['job_id']}").json()["tool"])


def until(client: httpx.Client, job_id: str, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        job = dict(client.get(f"/api/jobs/{job_id}", params={"wait": 1}).json())
        if job["status"] in states:
            return job
    raise AssertionError(f"{job_id} did not become {states}")


def test_an_image_is_generated_in_the_shape_asked_for(stack: Stack, client: httpx.Client) -> None:
    card = generated(client, "plain", aspect_ratio="4:3", modifier="soft light")
    assert picture_at(stack, card["media_url"]).size == (1152, 864)
    assert max(picture_at(stack, card["thumbnail_url"]).size) == 512
    assert client.delete("/api/media/plain").status_code == 204
    left = [path for path in files(stack) if card["job_id"] in path]
    assert left == []


def test_an_image_is_made_of_an_uploaded_one(stack: Stack, client: httpx.Client) -> None:
    upload = uploaded(client)
    inputs = json.dumps([upload["media_url"]])
    square = generated(client, "square", input_files=inputs)
    assert tool_of(client, square) == "concept"
    assert picture_at(stack, square["media_url"]).size == (1024, 1024)
    wide = generated(client, "wide", input_files=inputs, aspect_ratio="16:9")
    assert tool_of(client, wide) == "portrait"
    assert picture_at(stack, wide["media_url"]).size == (1280, 720)


def test_a_video_begins_with_an_uploaded_picture(stack: Stack, client: httpx.Client) -> None:
    upload = uploaded(client)
    card = generated(
        client,
        "clip",
        media_type="video",
        input_files=json.dumps([upload["media_url"]]),
        aspect_ratio="16:9",
    )
    media_type, content = opened(stack, card["media_url"])
    assert (media_type, content[4:8]) == ("video/mp4", b"ftyp")
    assert picture_at(stack, card["thumbnail_url"]).size == (512, 288)


def test_a_background_is_removed_by_request(stack: Stack, client: httpx.Client) -> None:
    files = {"file": ("mug.png", bytes_of("red", side=300), "image/png")}
    answer = client.post(f"{REMOVAL}/submit", files=files)
    assert answer.status_code == 202, answer.text
    request_id = answer.json()["request_id"]
    done = client.get(f"{REMOVAL}/status/{request_id}", params={"wait": LONGEST_S}).json()
    assert done["status"] == "completed", done
    cut = picture_at(stack, done["result_url"])
    assert (cut.size, cut.mode) == ((300, 300), "RGBA")


def test_what_is_cancelled_or_lost_its_file_does_not_run(
    stack: Stack, client: httpx.Client
) -> None:
    stack.simulator(step_ms=1000)
    slow = [
        client.post("/api/generate/async", json=SLOW | {"seed": seed}).json()["job_id"]
        for seed in range(2)
    ]
    for job in slow:
        until(client, job, "processing")
    # a GPU service may still have what it has read before
    sent = {"file": ("cup.png", bytes_of("blue", side=301), "image/png")}
    cancelled, lost = [
        client.post(f"{REMOVAL}/submit", files=sent).json()["request_id"] for _ in range(2)
    ]
    answer = client.post(f"{REMOVAL}/cancel/{cancelled}")
    assert answer.json() == {"cancelled": True}
    for item in client.get("/api/files").json()["items"]:
        assert client.delete(f"/api/files/{item['id']}").status_code == 204
    for job in slow:
        client.post(f"/api/jobs/{job}/cancel")
    stack.simulator(step_ms=2)
    ended = until(client, lost, "completed", "failed", "cancelled")
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "input_gone"
    shown = client.get(f"{REMOVAL}/status/{lost}").json()
    assert (shown["status"], shown["result_url"]) == ("failed", None)
    assert "deleted" in shown["error"]
    assert client.get(f"{REMOVAL}/status/{cancelled}").json()["status"] == "cancelled"


def files(stack: Stack) -> list[str]:
    folder: Path = stack.workspace / "data" / "files"
    return [str(path) for path in folder.rglob("*") if path.is_file()]
