"""Meshes through real processes: sizes over HTTP, and gateways that stop while a mesh is worked on.

The process that works on a mesh is stopped by a signal, so that it is at work for as long as the
test wants.
"""

import base64
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from gateway.examples import BOX, MUG
from tests.support.stack import Stack, running
from tests.unit.gpu_server.mesh import glb, outside

PATIENCE_S = 90
TO_100_MM = {"target_dimensions": {"x": 100, "unit": "mm"}}


@contextmanager
def gateway_alone(workspace: Path) -> Iterator[Stack]:
    """A gateway whose GPU service does not answer."""
    stack = Stack(workspace)
    try:
        stack.start("gateway")
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gateway_alone(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """For what harms it."""
    with gateway_alone(tmp_path) as stack:
        yield stack


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path, SIM_STEP_MS="5") as stack:
        yield stack


def uri(data: bytes) -> str:
    return f"data:model/gltf-binary;base64,{base64.b64encode(data).decode()}"


def at_work(stack: Stack) -> psutil.Process:
    """The process that works on a mesh, stopped where it is."""
    gateway = psutil.Process(stack.processes["gateway"].pid)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for child in gateway.children():
            if "gpu_server.mesh.worker" in child.cmdline():
                child.send_signal(signal.SIGSTOP)
                return child
        time.sleep(0.005)
    raise AssertionError("no mesh is worked on")


def gone(process: psutil.Process) -> None:
    # a stopped one cannot see that its gateway has died
    if process.is_running():
        process.send_signal(signal.SIGCONT)
    process.wait(PATIENCE_S)


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return client.get(f"/api/jobs/{job_id}", params={"wait": PATIENCE_S}).json()


def begun(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    answer = client.post(f"{path}/async", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def runs(stack: Stack) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(stack.workspace / "data" / "gateway.sqlite")
    try:
        columns = "stage, attempt, state, deaths"
        return connection.execute(f"SELECT {columns} FROM runs ORDER BY stage, attempt").fetchall()
    finally:
        connection.close()


def test_a_mesh_is_100_mm_long_with_all_its_maps_and_colours(stack: Stack, tmp_path: Path) -> None:
    model = glb.rich()
    with stack.client() as client:
        body = {"model_url": uri(model.bytes()), **TO_100_MM}
        answer = client.post("/api/model3d/rescale", json=body)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        kept = client.get(result["rescaled_model_url"])
        again = client.post(
            "/api/model3d/rescale", json={"model_url": result["files"][0]["url"], **TO_100_MM}
        )
    used = result["rescale_params"]
    assert used["extents_after"]["x"] == pytest.approx(0.1, rel=1e-6)
    assert used["extents_after_in_unit"]["x"] == pytest.approx(100, rel=1e-6)
    assert used["extents_before_in_unit"]["x"] == pytest.approx(7250, rel=1e-6)
    assert used["target_dimensions"]["mode"] == "fit"
    assert (used["unit"], used["scale_factor"], used["format"]) == ("mm", None, "glb")
    assert (result["engine"], result["backend"], result["variant"]) == ("cpu", "cpu", "cpu")
    (file,) = result["files"]
    assert (file["faces"], file["bytes"]) == (552, len(kept.content))
    assert kept.headers["content-type"] == file["media_type"] == "model/gltf-binary"
    # printed sizes are the true ones, and everything else is what was sent
    out = tmp_path / "out.glb"
    out.write_bytes(kept.content)
    low, high = outside.bounds(out)
    assert high - low == pytest.approx(np.array([7.25, 2.25, 2.5]) / 72.5, rel=1e-6)
    document, blob = glb.unpack(kept.content)
    before, before_blob = glb.unpack(model.bytes())
    assert document["materials"] == before["materials"]
    assert pictures(document, blob) == pictures(before, before_blob)
    colours = {
        name for m in document["meshes"] for p in m["primitives"] for name in p["attributes"]
    }
    assert {"COLOR_0", "TEXCOORD_0", "TEXCOORD_1", "NORMAL", "TANGENT"} <= colours
    # a result is the next call's input
    assert again.status_code == 200, again.text


def pictures(document: dict[str, Any], blob: bytes) -> list[bytes]:
    views = [document["bufferViews"][image["bufferView"]] for image in document["images"]]
    return [blob[v["byteOffset"] : v["byteOffset"] + v["byteLength"]] for v in views]


@pytest.mark.parametrize(
    ("wanted", "media_type", "ending"),
    [("stl", "model/stl", ".stl"), ("obj_zip", "application/zip", ".zip")],
)
def test_a_mesh_for_a_printer_has_the_name_and_type_of_its_format(
    stack: Stack, wanted: str, media_type: str, ending: str
) -> None:
    with stack.client() as client:
        body = {"model_url": BOX, "scale_factor": 0.1, "format": wanted}
        result = client.post("/api/model3d/rescale", json=body).json()
        assert result["rescaled_model_url"].endswith(ending)
        assert client.get(result["rescaled_model_url"]).headers["content-type"] == media_type


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "target_dimensions", "exactly_one"),
        ({"scale_factor": 2, **TO_100_MM}, "target_dimensions", "exactly_one"),
        ({"scale_factor": 0}, "scale_factor", "greater_than"),
        ({"scale_factor": True}, "scale_factor", "float_type"),
        ({"target_dimensions": {"unit": "mm"}}, "target_dimensions", "no_axis"),
        ({"target_dimensions": {"x": -1, "unit": "mm"}}, "target_dimensions.x", "greater_than"),
        ({"target_dimensions": {"x": 1}}, "target_dimensions.unit", "missing"),
    ],
)
def test_a_wrong_size_is_refused_by_its_field(
    stack: Stack, body: dict[str, Any], field: str, code: str
) -> None:
    with stack.client() as client:
        answer = client.post("/api/model3d/rescale", json={"model_url": BOX, **body})
        problem = answer.json()
    assert answer.status_code == 422
    assert [(e["field"], e["code"]) for e in problem["errors"]] == [(field, code)]


def test_a_bad_mesh_is_a_422_with_the_code_of_what_is_wrong(stack: Stack) -> None:
    flat = glb.Model()
    corners, faces = glb.box(1, 0, 1)
    part = {
        "attributes": {"POSITION": flat.accessor(corners)},
        "indices": flat.accessor(faces.ravel(), "uint16"),
    }
    flat.node(mesh=flat.mesh(part))
    bomb = glb.rich()
    bomb.document["nodes"] += [{"name": "none"}] * 30_000
    height = {"target_dimensions": {"y": 10, "unit": "mm"}}
    with stack.client() as client:
        for data, code in (
            (flat.bytes(), "mesh_flat"),
            (struct.pack("<4sII8s", b"glTF", 2, 20, b"no more!"), "mesh_invalid"),
            (bomb.bytes(), "mesh_too_large"),
        ):
            answer = client.post("/api/model3d/rescale", json={"model_url": uri(data), **height})
            assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
            assert answer.json()["detail"].startswith("model_url: ")


def test_without_a_gpu_meshes_are_ready_and_pictures_are_not(stack: Stack) -> None:
    with stack.client() as client:
        tools = {tool["name"]: tool for tool in client.get("/api/tools").json()["items"]}
        assert tools["rescale"]["readiness"] == "ready"
        assert {tools[name]["readiness"] for name in ("model3d", "generate")} == {"unknown"}
        health = client.get("/health").json()
    assert (health["gpu_available"], health["status"]) == (False, "degraded")
    assert "cpu" not in [backend["name"] for backend in health["backends"]]


def test_a_cancelled_mesh_is_stopped(stack: Stack) -> None:
    with stack.client() as client:
        job_id = begun(client, "/api/model3d/rescale", {"model_url": BOX, **TO_100_MM})
        worker = at_work(stack)
        assert client.post(f"/api/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        worker.wait(PATIENCE_S)
        assert ended(client, job_id)["status"] == "cancelled"
    assert list((stack.workspace / "data" / "meshes").iterdir()) == []


def test_a_mesh_survives_the_death_of_its_gateway_and_that_death_counts(own_stack: Stack) -> None:
    with own_stack.client() as client:
        job_id = begun(client, "/api/model3d/rescale", {"model_url": BOX, **TO_100_MM})
        worker = at_work(own_stack)
        own_stack.kill("gateway")
        gone(worker)
        own_stack.start("gateway")
        assert ended(client, job_id)["status"] == "completed"
    assert runs(own_stack) == [(0, 0, "failed", 0), (0, 1, "delivered", 1)]


@pytest.mark.timeout(300)
def test_clean_stops_under_a_mesh_count_nothing(own_stack: Stack) -> None:
    with own_stack.client() as client:
        job_id = begun(client, "/api/model3d/rescale", {"model_url": BOX, **TO_100_MM})
        for _ in range(3):
            worker = at_work(own_stack)
            own_stack.processes["gateway"].terminate()
            own_stack.processes["gateway"].wait(PATIENCE_S)
            assert not worker.is_running()
            own_stack.start("gateway")
        assert ended(client, job_id)["status"] == "completed"
    assert runs(own_stack) == [
        *((0, n, "failed", 0) for n in range(3)),
        (0, 3, "delivered", 0),
    ]


def test_a_gateway_killed_in_the_mesh_stage_has_the_gpu_do_nothing_again(whole: Stack) -> None:
    body = {"input_image_url": MUG, "target_faces": 10_000, "texture_size": 512}
    with whole.client() as client:
        job_id = begun(client, "/api/model3d", body)
        worker = at_work(whole)
        seen = client.get(f"/api/jobs/{job_id}").json()
        assert (seen["status"], seen["progress"], seen["result"]) == ("processing", 0.9, None)
        whole.kill("gateway")
        gone(worker)
        whole.start("gateway")
        job = ended(client, job_id)
    assert (job["status"], job["error"]) == ("completed", None)
    assert runs(whole) == [(0, 0, "delivered", 0), (1, 0, "failed", 0), (1, 1, "delivered", 1)]
    assert whole.simulator()["counts"]["executions"] == 1


def test_a_picture_is_drawn_anew_before_it_becomes_a_model(whole: Stack, tmp_path: Path) -> None:
    body = {
        "input_image_url": MUG,
        "prompt": "a mug with a lid",
        "styleId": "clay",
        "seed": 7,
        "target_faces": 10_000,
        "texture_size": 512,
    }
    with whole.client() as client:
        job = ended(client, begun(client, "/api/model3d", body))
        assert job["error"] is None
        result = job["result"]
        kept = client.get(result["normalized_model_url"])
        log = client.get(f"/api/jobs/{job['job_id']}/events").text
    assert result["model_params"] == {
        "prompt": "a mug with a lid",
        "styleId": "clay",
        "seed": 7,
        "target_faces": 10_000,
        "texture_size": 512,
    }
    assert (result["engine"], result["variant"], len(result["files"])) == (
        "simulator",
        "trellis2",
        1,
    )
    assert [run[:3] for run in runs(whole)] == [(stage, 0, "delivered") for stage in range(3)]
    assert log.count("event: stage") == 2
    assert whole.simulator()["counts"]["executions"] == 2
    out = tmp_path / "out.glb"
    out.write_bytes(kept.content)
    low, high = outside.bounds(out)
    assert max(high - low) == pytest.approx(1, rel=1e-6)
    assert result["files"][0]["faces"] > 0
    # of the stages before nothing is left but what the caller sent
    deadline = time.monotonic() + PATIENCE_S
    while stored(whole) != [".glb", ".png"]:
        assert time.monotonic() < deadline, stored(whole)
        time.sleep(0.05)


def stored(stack: Stack) -> list[str]:
    """Endings of the files in storage, its own records left out."""
    files = (stack.workspace / "data" / "files").rglob("*")
    return sorted(p.suffix for p in files if p.is_file() and not p.name.startswith("."))
