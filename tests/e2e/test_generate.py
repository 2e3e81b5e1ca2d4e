"""Image generation through all three services, as a REST client sees it."""

import hashlib
import io
import json
import uuid
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.stack import Stack, wait_readiness

TINY = "checkpoint:tiny-sd15.ckpt"
BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": TINY,
    "width": 256,
    "height": 320,
    "num_inference_steps": 3,
}


def generate(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/api/generate", json=BODY | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def pixels(client: httpx.Client, result: dict[str, Any], n: int = 0) -> bytes:
    answer = client.get(result["files"][n]["url"])
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content)).tobytes()


def test_a_sync_call_answers_with_a_picture_of_the_asked_size(client: httpx.Client) -> None:
    result = generate(client, seed=5)
    assert result["success"] is True
    assert result["engine"] == "simulator"
    assert result["generation_params"]["seed"] == 5
    assert result["generation_params"]["steps"] == 3
    answer = client.get(result["image_url"])
    file = result["files"][0]
    assert (len(answer.content), hashlib.sha256(answer.content).hexdigest()) == (
        file["bytes"],
        file["sha256"],
    )
    assert Image.open(io.BytesIO(answer.content)).size == (256, 320)
    assert (file["width"], file["height"]) == (256, 320)
    assert result["r2_path"].startswith("local://files/generated/")


def test_each_variant_makes_a_picture(client: httpx.Client) -> None:
    for variant in ("flux1-dev", "z-image-turbo", TINY):
        result = generate(client, variant=variant)
        assert result["variant"] == variant
        assert len(pixels(client, result)) == 256 * 320 * 3


def test_the_same_seed_gives_the_same_pixels_and_another_prompt_others(
    client: httpx.Client,
) -> None:
    first, second = (pixels(client, generate(client, seed=7)) for _ in range(2))
    assert first == second
    assert pixels(client, generate(client, seed=7, prompt="a red barn")) != first
    assert pixels(client, generate(client, seed=8)) != first


def test_a_drawn_seed_is_reported_and_repeats_the_picture(client: httpx.Client) -> None:
    drawn = generate(client)
    again = generate(client, seed=drawn["generation_params"]["seed"])
    assert pixels(client, drawn) == pixels(client, again)


def test_num_images_gives_that_many_different_pictures(client: httpx.Client) -> None:
    result = generate(client, num_images=3)
    assert len(result["files"]) == 3
    assert len({pixels(client, result, n) for n in range(3)}) == 3


def test_loras_change_the_picture_each_in_its_own_way(client: httpx.Client) -> None:
    def with_loras(*loras: dict[str, Any]) -> bytes:
        return pixels(client, generate(client, seed=3, loras=list(loras)))

    one = {"name": "demo-style.safetensors", "scale": 0.8}
    two = {"name": "demo-ink.safetensors", "scale": 0.5}
    pictures = {with_loras(), with_loras(one), with_loras(two), with_loras(one, two)}
    assert len(pictures) == 4


def test_a_registered_model_is_used_by_its_id(client: httpx.Client) -> None:
    registered = client.post(
        "/api/models",
        json={
            "name": f"style-{uuid.uuid4()}",
            "lora": "demo-style.safetensors",
            "trigger_word": "TOK",
            "base_model": TINY,
        },
    )
    assert registered.status_code == 201, registered.text
    model_id = registered.json()["id"]
    assert client.get(f"/api/models/{model_id}").json()["trigger_word"] == "TOK"
    assert model_id in [m["id"] for m in client.get("/api/models").json()["items"]]
    body = {k: v for k, v in BODY.items() if k != "variant"}
    by_id = client.post("/api/generate", json=body | {"model_id": model_id, "seed": 3}).json()
    assert by_id["model_id"] == model_id
    assert by_id["variant"] == TINY
    named = generate(client, seed=3, loras=[{"name": "demo-style.safetensors", "scale": 1.0}])
    assert pixels(client, by_id) == pixels(client, named)


def test_an_async_call_is_followed_to_its_end(client: httpx.Client) -> None:
    accepted = client.post("/api/generate/async", json=BODY | {"num_inference_steps": 6})
    assert accepted.status_code == 202
    assert accepted.json()["status"] == "pending"
    job_id = accepted.json()["job_id"]
    kinds: list[str] = []
    fractions: list[float] = []
    with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event:"):
                kinds.append(line[6:].strip())
            elif line.startswith("data:") and kinds[-1] == "progress":
                fractions.append(json.loads(line[5:])["fraction"])
    assert kinds[-1] == "completed"
    assert fractions == sorted(fractions)
    assert len(fractions) >= 3
    job = client.get(f"/api/generate/{job_id}").json()
    assert job["status"] == "completed"
    assert job["progress"] == 1
    assert job["started_at"] <= job["finished_at"]


def test_a_call_that_outlasts_its_wait_is_a_202_and_nothing_is_lost(client: httpx.Client) -> None:
    answer = client.post(
        "/api/generate", json=BODY | {"num_inference_steps": 60}, headers={"Prefer": "wait=0"}
    )
    assert answer.status_code == 202, answer.text
    location = answer.headers["location"]
    job = client.get(location, params={"wait": 60}).json()
    assert job["status"] == "completed"


def test_an_idempotency_key_makes_one_job_of_two_calls(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    jobs = {
        client.post("/api/generate/async", json=BODY, headers=headers).json()["job_id"]
        for _ in range(3)
    }
    assert len(jobs) == 1
    other = client.post("/api/generate/async", json=BODY | {"seed": 1}, headers=headers)
    assert other.status_code == 422
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_cancelled_job_stops_in_comfyui_within_a_step(stack: Stack, client: httpx.Client) -> None:
    stack.simulator(step_ms=300)
    try:
        body = BODY | {"num_inference_steps": 100}
        job_id = client.post("/api/generate/async", json=body).json()["job_id"]
        with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
            next(line for line in stream.iter_lines() if line == "event: progress")
        cancelled = client.post(f"/api/jobs/{job_id}/cancel")
        assert cancelled.json()["status"] == "cancelled"
    finally:
        stack.simulator(step_ms=5)
    # The next one runs at once: the cancelled one no longer holds ComfyUI.
    generate(client)
    assert client.get(f"/api/jobs/{job_id}").json()["status"] == "cancelled"


def test_a_deleted_job_is_gone_with_its_file(client: httpx.Client) -> None:
    result = generate(client)
    assert client.delete(f"/api/jobs/{result['job_id']}").status_code == 204
    assert client.get(f"/api/jobs/{result['job_id']}").status_code == 404
    assert client.get(result["image_url"]).status_code == 404


def test_files_are_open_to_the_key_or_a_signed_link_and_to_nobody_else(
    stack: Stack, client: httpx.Client
) -> None:
    file = generate(client)["files"][0]
    bare = httpx.Client(base_url=stack.url, trust_env=False)
    with bare:
        assert bare.get(file["url"]).status_code == 401
        assert bare.get(file["link"]).status_code == 200
        assert bare.get(file["link"].replace("signature=", "signature=0")).status_code == 403
        assert bare.get("/api/jobs").status_code == 401
        assert bare.get("/health").status_code == 200


def test_ranges_and_etags_are_honoured(client: httpx.Client) -> None:
    file = generate(client)["files"][0]
    whole = client.get(file["url"])
    part = client.get(file["url"], headers={"Range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == whole.content[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{file['bytes']}"
    assert client.head(file["url"]).headers["content-length"] == str(file["bytes"])
    unchanged = client.get(file["url"], headers={"If-None-Match": whole.headers["etag"]})
    assert unchanged.status_code == 304
    beyond = client.get(file["url"], headers={"Range": f"bytes={file['bytes']}-"})
    assert beyond.status_code == 416


def test_the_first_clients_route_generates_too(client: httpx.Client) -> None:
    params = {k: v for k, v in BODY.items() if k != "prompt"}
    task = client.post(
        "/generate", json={"mode": "free", "prompt": "a red barn", "extra_params": params}
    ).json()
    assert task["status"] == "queued"
    for _ in range(600):
        task = client.get(f"/generate/{task['task_id']}").json()
        if task["status"] != "queued":
            break
    assert task["status"] == "done"
    assert task["image"]


@pytest.mark.parametrize("variant", ["flux1-dev"])
def test_a_missing_model_is_a_503_that_says_what_to_fetch(
    stack: Stack, client: httpx.Client, variant: str
) -> None:
    before = client.get("/api/jobs").json()["items"][:1]
    stack.simulator(hide=["flux1-dev.safetensors"])
    try:
        wait_readiness(client, variant, "missing")
        answer = client.post("/api/generate", json=BODY | {"variant": variant})
    finally:
        stack.simulator(hide=[])
    assert answer.status_code == 503, answer.text
    problem = answer.json()
    missing = problem["missing"][0]
    assert missing["name"] == "flux1-dev.safetensors"
    assert missing["directory"] == "diffusion_models"
    assert missing["url"].startswith("https://")
    assert missing["bytes"] > 10**9
    assert "flux1-dev.safetensors" in problem["detail"]
    after = client.get("/api/jobs").json()["items"][:1]
    assert [job["job_id"] for job in after] == [job["job_id"] for job in before]
