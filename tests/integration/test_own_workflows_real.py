"""Callers' own workflows over real processes: gateway, GPU service, simulator."""

import io
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from gateway.examples import MUG
from tests.support.own_workflows import SIZE, lighthouse, refused, send
from tests.support.stack import KEY, ROOT, Stack, running

PATIENCE_S = 90


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("own"), SIM_STEP_MS="5") as started:
        with started.client() as http:
            until(lambda: http.get("/health").json()["status"] == "healthy", started)
        yield started


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


def until(check: Callable[[], bool], stack: Stack) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline, stack.log("gateway")
        time.sleep(0.1)


def test_a_marked_graph_is_a_typed_tool_at_once(http: httpx.Client) -> None:
    made = send(http, lighthouse("lighthouse"))
    assert (made["version"], made["readiness"], made["missing"]) == (1, "ready", [])
    answer = http.post(made["path"], json={"prompt": "a lighthouse", **SIZE})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["engine"] == "simulator"
    assert result["params"]["prompt"] == "a lighthouse"
    assert result["params"]["sampler"] == "dpmpp_2m"
    assert 0 <= result["params"]["seed"] <= 2**53 - 1
    (path,) = result["outputs"]["picture"]
    picture = http.get(path)
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
    part = http.get(path, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    unchanged = http.get(path, headers={"If-None-Match": picture.headers["etag"]})
    assert unchanged.status_code == 304


def test_an_output_is_the_next_tools_input(http: httpx.Client) -> None:
    send(http, lighthouse("first-of-two"))
    made = http.post("/api/workflows/first-of-two/run", json=SIZE).json()
    half = {
        "1": {
            "class_type": "LoadImage",
            "inputs": {"image": "example.png", "upload": "image"},
            "_meta": {"title": "input: scene"},
        },
        "2": {
            "class_type": "ImageScaleBy",
            "inputs": {"image": ["1", 0], "upscale_method": "lanczos", "scale_by": 0.5},
            "_meta": {"title": "input: factor.scale_by, upscale_method"},
        },
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "x"},
        },
    }
    send(http, {"name": "half", "graph": half})
    scene = made["outputs"]["picture"][0]
    answer = http.post("/api/workflows/half/run", json={"scene": scene, "factor": 0.25})
    assert answer.status_code == 200, answer.text
    (file,) = answer.json()["files"]
    assert (file["width"], file["height"]) == (16, 16)
    inside = http.post("/api/workflows/half/run", json={"scene": MUG, "upscale_method": "area"})
    assert inside.json()["files"][0]["width"] == 128
    errors = http.post("/api/workflows/half/run", json={"factor": 0.5}).json()["errors"]
    assert errors == [{"field": "scene", "code": "missing", "message": "is required"}]


def test_parameters_are_held_to_what_the_nodes_declare(http: httpx.Client) -> None:
    send(http, lighthouse("bounds"))
    wrong = {
        "width": 65,
        "height": 20_000,
        "steps": "many",
        "sampler": "no-such-sampler",
        "seed": -1,
        "colour": "red",
    }
    answer = http.post("/api/workflows/bounds/run/async", json=wrong)
    assert answer.status_code == 422
    errors = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert errors.keys() == wrong.keys()
    assert errors["width"] == "must be a multiple of 8: use 64 or 72"
    assert errors["height"] == "must be at most 16384"
    schema = http.get("/api/workflows/bounds").json()["params_schema"]["properties"]
    assert schema["width"] | {"description": ""} == {
        "type": "integer",
        "minimum": 16,
        "maximum": 16384,
        "multipleOf": 8,
        "default": 1024,
        "title": "Width",
        "description": "",
    }
    assert "euler" in schema["sampler"]["enum"]


def test_a_job_can_be_followed_batched_and_cancelled(stack: Stack, http: httpx.Client) -> None:
    send(http, lighthouse("slow"))
    stack.simulator(step_ms=200)
    try:
        taken = http.post("/api/workflows/slow/run/async", json={**SIZE, "steps": 500}).json()
        job = f"/api/workflows/slow/run/{taken['job_id']}"
        until(lambda: http.get(job).json()["status"] == "processing", stack)
        assert http.post(f"/api/jobs/{taken['job_id']}/cancel").status_code == 200
        assert http.get(job, params={"wait": 30}).json()["status"] == "cancelled"
    finally:
        stack.simulator(step_ms=5)
    assert http.get(f"/api/generate/{taken['job_id']}").status_code == 404
    events = http.get(f"/api/jobs/{taken['job_id']}/events").text
    assert "event: cancelled" in events
    batch = http.post(
        "/api/batches",
        json={"tool": "workflows/slow", "items": [SIZE | {"seed": 1}, SIZE | {"seed": 2}]},
    )
    assert batch.status_code == 202, batch.text
    done = http.get(batch.json()["status_url"], params={"wait": 60}).json()
    assert done["counts"]["completed"] == 2
    jobs = http.get("/api/jobs", params={"tool": "workflows/slow"}).json()["items"]
    assert {job["variant"] for job in jobs} == {"v1"}


def test_an_idempotency_key_finds_the_same_job_again(http: httpx.Client) -> None:
    send(http, lighthouse("once"))
    headers = {"Idempotency-Key": "only-once", "Prefer": "respond-async"}
    jobs = {
        http.post("/api/workflows/once/run", json=SIZE, headers=headers).json()["job_id"]
        for _ in range(2)
    }
    assert len(jobs) == 1
    other = http.post("/api/workflows/once/run", json=SIZE | {"seed": 3}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_missing_model_is_listed_and_once_it_is_there_the_tool_runs(
    stack: Stack, http: httpx.Client
) -> None:
    stack.simulator(hide=["tiny-sd15.ckpt"])
    try:
        made = send(http, lighthouse("waits-for-its-model"))
        assert made["readiness"] == "missing"
        (thing,) = made["missing"]
        assert thing["kind"] == "model"
        assert (thing["name"], thing["directory"]) == ("tiny-sd15.ckpt", "checkpoints")
        answer = http.post(made["path"], json=SIZE)
        assert answer.status_code == 503
        assert answer.json()["missing"] == [thing]
    finally:
        stack.simulator(hide=[])
    detail = "/api/workflows/waits-for-its-model"
    until(lambda: http.get(detail).json()["readiness"] == "ready", stack)
    assert http.post(made["path"], json=SIZE).status_code == 200


def test_missing_nodes_and_models_are_listed_together(http: httpx.Client) -> None:
    workflow = lighthouse("far-from-ready")
    workflow["graph"]["1"]["inputs"]["ckpt_name"] = "never-seen.safetensors"
    workflow["graph"]["9"] = {
        "class_type": "HouseOfCards",
        "inputs": {"images": ["7", 0]},
        "_meta": {"title": "output: cards"},
    }
    made = send(http, workflow)
    found = {thing["name"]: thing for thing in made["missing"]}
    assert found.keys() == {"HouseOfCards", "never-seen.safetensors"}
    address = "https://api.comfy.org/comfy-nodes/HouseOfCards/node"
    assert found["HouseOfCards"]["url"] == address
    assert http.post(made["path"], json=SIZE).status_code == 503


def test_a_value_that_comfyui_does_not_offer_is_the_graphs_fault(http: httpx.Client) -> None:
    workflow = lighthouse("bad", **{"6": "input: seed, steps"})
    workflow["graph"]["6"]["inputs"]["scheduler"] = "no-such-scheduler"
    workflow["graph"]["7"]["inputs"]["vae"] = ["5", 0]
    errors = {error["field"]: error["message"] for error in refused(http, workflow)}
    assert errors.keys() == {"graph.6.inputs.scheduler", "graph.7.inputs.vae"}
    assert "node 6 (KSampler)" in errors["graph.6.inputs.scheduler"]


def test_a_manifest_does_more_than_marks_can(http: httpx.Client) -> None:
    workflow = lighthouse("with-manifest")
    workflow["manifest"] = {
        "title": "Lighthouses",
        "params": {
            "subject": {
                "required": True,
                "bind": {"to": "3.text", "template": "a lighthouse, {value}"},
                "schema": {"maxLength": 20, "description": "What is around it."},
            },
            "speed": {"bind": {"to": "6.steps", "map": {"fast": 2, "slow": 4}}},
            "count": {"bind": "5.batch_size", "limits": {"maximum": 2}},
            "size": {"bind": ["5.width", "5.height"], "schema": {"maximum": 128}},
            "seed": {"seed": True, "bind": "6.seed"},
        },
        "outputs": {"pictures": {"node": "8", "kind": "image", "max": "count"}},
    }
    workflow["graph"]["6"]["inputs"]["steps"] = 2
    workflow["graph"]["5"]["inputs"] |= {"width": 64, "height": 64}
    made = send(http, workflow)
    assert made["title"] == "Lighthouses"
    body = {"subject": "at dawn", "speed": "slow", "count": 2, "output_format": "webp"}
    answer = http.post(made["path"], json=body)
    assert answer.status_code == 200, answer.text
    assert {file["media_type"] for file in answer.json()["files"]} == {"image/webp"}
    assert len(answer.json()["outputs"]["pictures"]) == 2
    errors = http.post(made["path"], json={"size": 256, "count": 3}).json()["errors"]
    assert {error["field"] for error in errors} == {"subject", "size", "count"}


def test_the_example_of_the_documentation_works_as_printed(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"GATEWAY_API_KEY={KEY}\n")
    text = (ROOT / "docs" / "own-workflows.md").read_text()
    (script,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("http://127.0.0.1:8000", stack.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made, result = (json.loads(line) for line in done.stdout.splitlines())
    assert made["readiness"] == "ready", made
    assert result["files"][0]["width"] == 64, result
