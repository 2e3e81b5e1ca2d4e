"""Meshes of plain calls: normalised as the gateway does it, and rescaled without ComfyUI."""

import asyncio
import base64
import hashlib
import signal
import struct
import uuid
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import pytest_asyncio

from gateway.examples import BOX, MUG
from gpu_server.mesh.calls import NORMALISED
from gpu_server.mesh.order import MeshOrder
from gpu_server.mesh.pool import MeshPool
from tests.integration.test_meshes import uri
from tests.support.comfyui import Simulator
from tests.support.recordings import bundled
from tests.support.runpod_double import Runpod, runpod
from tests.support.runpod_jobs import Json
from tests.support.s3 import S3Server, rclone
from tests.support.serverless import (
    PYTHON,
    Caller,
    WorkerProcess,
    require_sdk,
    until,
    worker_environment,
    working,
)
from tests.support.slots import receiving
from tests.support.stack import ROOT
from tests.unit.gpu_server.mesh import glb, outside

pytestmark = pytest.mark.asyncio(loop_scope="module")
module = pytest_asyncio.fixture(loop_scope="module", scope="module")
RESCALE = {"operation": "rescale_model", "model_url": BOX}
TO_100_MM = {"target_dimensions": {"x": 100, "unit": "mm"}}
MODEL: Json = {
    "operation": "generate_model",
    "input_image_url": MUG,
    "target_faces": 2000,
    "texture_size": 512,
    "seed": 7,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_sdk()
    return tmp_path_factory.mktemp("meshes")


@pytest.fixture(scope="module")
def simulator(folder: Path) -> Generator[Simulator]:
    simulator = Simulator(folder)
    simulator.start()
    simulator.turn(step_ms=5)
    yield simulator
    simulator.close()


@module
async def double() -> AsyncGenerator[Runpod]:
    async with runpod() as double:
        yield double


@module
async def other() -> AsyncGenerator[Runpod]:
    """Another endpoint: one that only rescales."""
    async with runpod() as double:
        yield double


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Generator[S3Server]:
    with rclone(tmp_path_factory.mktemp("bucket")) as bucket:
        yield bucket


@module
async def worker(
    folder: Path, simulator: Simulator, double: Runpod, bucket: S3Server
) -> AsyncGenerator[WorkerProcess]:
    env = bucket.env() | {"PROJECT_NAME": "shop"}
    async with working(folder, simulator.url, double, **env) as worker:
        yield worker


@module
async def small(folder: Path, other: Runpod) -> AsyncGenerator[WorkerProcess]:
    """A worker without ComfyUI and without a bucket."""
    env = {"RUNPOD_TOOL": "rescale"}
    async with working(folder / "small", "http://127.0.0.1:9", other, name="s1", **env) as worker:
        yield worker


@pytest_asyncio.fixture(loop_scope="module")
async def caller(worker: WorkerProcess, double: Runpod) -> AsyncGenerator[Caller]:
    async with Caller(double) as caller:
        yield caller
    assert worker.running, worker.log


@pytest_asyncio.fixture(loop_scope="module")
async def rescaler(small: WorkerProcess, other: Runpod) -> AsyncGenerator[Caller]:
    async with Caller(other) as caller:
        yield caller
    assert small.running, small.log


async def fetched(url: str, path: Path) -> Path:
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(url)
    assert answer.status_code == 200, answer.text
    await asyncio.to_thread(path.write_bytes, answer.content)
    return path


def left(folder: Path) -> list[Path]:
    """Files under work."""
    return [*folder.glob("tmp/genmedia-worker-*/data/finishing/*")]


async def test_a_generated_mesh_is_clean_and_in_the_unit_cube(
    caller: Caller, folder: Path, tmp_path: Path
) -> None:
    told = await caller.run(MODEL)
    assert told["status"] == "COMPLETED", told
    output = told["output"]
    (file,) = output["files"]
    assert output["normalized_model_url"] == file["url"]
    path = await fetched(file["url"], tmp_path / "mesh.glb")
    assert (path.stat().st_size, file["media_type"]) == (file["bytes"], "model/gltf-binary")
    low, high = outside.bounds(path)
    assert max(high - low) == pytest.approx(1, abs=1e-5)
    assert np.allclose(low + high, 0, atol=1e-5)
    assert file["faces"] == sum(len(g.faces) for g in outside.scene(path).geometry.values())
    assert output["duration_seconds"] > 0
    # the result of one call is the input of the next
    again = {**RESCALE, "model_url": file["address"], "scale_factor": 0.1, "format": "stl"}
    told = await caller.run(again)
    assert told["status"] == "COMPLETED", told
    (small,) = told["output"]["files"]
    assert told["output"]["rescaled_model_url"] == small["url"]
    assert small["address"].endswith("/models-0.stl")
    path = await fetched(small["url"], tmp_path / "mesh.stl")
    low, high = outside.bounds(path, "stl")
    # millimetres
    assert max(high - low) == pytest.approx(100, rel=1e-4)
    assert left(folder) == []


async def test_worker_and_gateway_make_the_same_bytes_of_the_same_mesh(
    caller: Caller, tmp_path: Path
) -> None:
    (file,) = (await caller.run(MODEL))["output"]["files"]
    run_id = str(uuid.uuid4())
    name = "model3d-trellis2"
    raw = tmp_path / "raw.glb"
    async with receiving() as slots:
        told = await caller.run(
            {
                "run_id": run_id,
                "workflow": {"name": name, "digest": bundled()[name].digest},
                "params": {k: MODEL[k] for k in ("target_faces", "texture_size", "seed")},
                "inputs": {"input_image_url": [{"url": MUG, "media_type": "image/png"}]},
                "outputs": slots.slots(run_id, 1, "models"),
            }
        )
        assert told["status"] == "COMPLETED", told
        sent = slots.taken[f"/{run_id}/models/0"]
    await asyncio.to_thread(raw.write_bytes, sent.content)
    assert sent.count == len(sent.content)
    # as gateway.backends.cpu orders it
    order = MeshOrder(source=raw, target=tmp_path / "made.glb", steps=NORMALISED)
    async with MeshPool() as pool:
        report = await pool.run(order)
    content = await asyncio.to_thread(order.target.read_bytes)
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert (report.faces, report.bytes) == (file["faces"], file["bytes"])


async def test_concepts_have_their_links_in_one_list(caller: Caller) -> None:
    asked = {"operation": "generate_concepts", "prompt": "a wooden toy car", "count": 2, "seed": 7}
    output = (await caller.run(asked))["output"]
    assert len(output["images"]) == 2
    assert output["concept_urls"] == [image["url"] for image in output["images"]]


async def test_a_mesh_is_rescaled_without_comfyui(rescaler: Caller, tmp_path: Path) -> None:
    told = await rescaler.run({"model_url": BOX, **TO_100_MM})
    assert told["status"] == "COMPLETED", told
    output = told["output"]
    assert "rescaled_model_url" not in output
    assert output["engine"] == "cpu"
    used = output["params"]
    assert (used["format"], used["unit"], used["scale_factor"]) == ("glb", "mm", None)
    assert used["extents_before"] == {"x": 0.75, "y": 0.5, "z": 1}
    assert used["extents_after_in_unit"]["x"] == pytest.approx(100)
    (file,) = output["files"]
    path = tmp_path / "box.glb"
    path.write_bytes(base64.b64decode(file["data"]))
    low, high = outside.bounds(path)
    assert (high - low)[0] == pytest.approx(0.1)
    assert file["faces"] == 12


async def test_what_is_wrong_with_a_mesh_is_told_by_the_gateways_codes(
    rescaler: Caller, folder: Path
) -> None:
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
    for address, code in (
        (uri(flat.bytes()), "mesh_flat"),
        (uri(struct.pack("<4sII8s", b"glTF", 2, 20, b"no more!")), "mesh_invalid"),
        (uri(bomb.bytes()), "mesh_too_large"),
        ("http://127.0.0.1:80/x.glb", "url_refused"),
        ("file:///etc/passwd", "url_refused"),
    ):
        told = await rescaler.run({"model_url": address, **height})
        assert (told["status"], told["output"]["code"]) == ("FAILED", code), told
        assert told["output"]["kind"] == "usage"
        assert told["error"].startswith("model_url: ")
        assert "refresh_worker" not in told["output"]
    assert left(folder / "small") == []


async def cancelled_at_work(caller: Caller, worker: WorkerProcess, asked: Json) -> None:
    """Submit a call, and cancel it while a process, stopped where it is, works on its mesh."""
    job = await caller.submit(asked)
    found: list[psutil.Process] = []

    def at_work() -> bool:
        for process in psutil.Process(worker.pid).children():
            if "gpu_server.mesh.worker" in process.cmdline():
                process.send_signal(signal.SIGSTOP)
                found.append(process)
        return bool(found)

    await until(at_work)
    await caller.post(f"/cancel/{job.id}")
    await until(lambda: not found[0].is_running())
    assert (await caller.told(job))["status"] == "CANCELLED"


async def test_a_cancel_kills_the_process_that_rescales(
    rescaler: Caller, small: WorkerProcess, folder: Path
) -> None:
    await cancelled_at_work(rescaler, small, {"model_url": BOX, **TO_100_MM})
    await until(lambda: left(folder / "small") == [])
    # it goes on with the next
    assert (await rescaler.run({"model_url": BOX, "scale_factor": 2}))["status"] == "COMPLETED"


async def test_a_cancel_kills_the_process_that_normalises(
    caller: Caller, worker: WorkerProcess, folder: Path, bucket: S3Server
) -> None:
    before = await asyncio.to_thread(bucket.keys)
    await cancelled_at_work(caller, worker, {**MODEL, "seed": 8})
    await until(lambda: left(folder) == [])
    assert await asyncio.to_thread(bucket.keys) == before


async def test_a_rescaled_mesh_too_large_for_an_answer_says_what_to_configure(
    folder: Path,
) -> None:
    env = worker_environment(folder, "http://127.0.0.1:9", RUNPOD_RESULT_MB="0.0005")
    asked = f'{{"input": {{"operation": "rescale", "model_url": "{BOX}", "scale_factor": 2}}}}'
    process = await asyncio.create_subprocess_exec(
        *[str(PYTHON), "-m", "gpu_server.runpod_handler", "--test_input", asked],
        env=env,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 1
    assert b"STORAGE_URL" in out
