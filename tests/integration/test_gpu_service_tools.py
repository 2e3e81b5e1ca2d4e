"""Every bundled workflow through the GPU service: files in, a run, files or texts out."""

import io
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from PIL import Image

from tests.support.gpu import Gpu, Json, gpu_stack
from tests.support.recordings import bundled
from tests.support.slots import Slots
from tests.support.stack import Stack

MEDIA_TYPES = {"image": "image/png", "video": "video/mp4", "model": "model/gltf-binary"}
SMALL: dict[str, Json] = {
    "concept": {"type": "image", "prompt": "a fox", "count": 2},
    "control": {"prompt": "a fox", "width": 256, "height": 256},
    "generate": {"prompt": "a fox", "width": 256, "height": 256, "num_inference_steps": 1},
    "inpaint": {"steps": 1},
    "mask": {"object_name": "mug"},
    "portrait": {"prompt": "a portrait", "width": 256, "height": 256},
    "caption": {"trigger_word": "TOK_MUG"},
    "video": {"width": 256, "height": 256, "length": 5, "steps": 2},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gpu_stack(tmp_path_factory.mktemp("gpu"), "simulator", "gpu_server") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=1)
        yield gpu
        await gpu.tidy()


def picture() -> bytes:
    """A red thing on white."""
    made = Image.new("RGB", (256, 192), "white")
    made.paste("red", (80, 50, 170, 140))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def request(slots: Slots, name: str, run_id: str) -> Json:
    """A call of a workflow with one file for each of its file parameters."""
    workflow = bundled()[name]
    slots.files["/in.png"] = picture()
    file = {"url": f"{slots.url}/in.png", "media_type": "image/png"}
    params: dict[str, Any] = dict(SMALL.get(workflow.tool, {}))
    if name == "checkpoint":
        params["checkpoint"] = "tiny-sd15.ckpt"
    (output,) = workflow.outputs
    return {
        "workflow": {"name": name, "digest": workflow.digest},
        "params": params,
        "inputs": {p: [file] for p, param in workflow.manifest.params.items() if param.upload},
        "outputs": slots.slots(run_id, params.get("count", 1), output),
    }


@pytest.mark.parametrize("name", sorted(bundled()))
async def test_every_workflow_makes_what_its_manifest_says(
    gpu: Gpu, slots: Slots, name: str
) -> None:
    run_id = str(uuid.uuid4())
    asked = request(slots, name, run_id)
    status = await gpu.end(await gpu.start(asked, run_id))
    assert status["state"] == "completed", status["failure"]
    ((output, declared),) = bundled()[name].outputs.items()
    if declared.kind == "text":
        (text,) = status["texts"][output]
        assert "[simulated]" in text
        assert status["outputs"] == []
    else:
        assert [o["slot"] for o in status["outputs"]] == [s["name"] for s in asked["outputs"]]
        assert {o["media_type"] for o in status["outputs"]} == {MEDIA_TYPES[declared.kind]}
    assert status["params"].items() >= asked["params"].items()
    assert isinstance(status["params"].get("seed", 0), int)


async def test_as_many_faces_as_the_model_takes_and_no_more(gpu: Gpu, slots: Slots) -> None:
    asked = request(slots, "portrait-qwen-edit-2511", "faces")
    asked["inputs"]["face_images"] *= 3
    assert (await gpu.run(asked))["state"] == "completed"
    asked["inputs"]["face_images"] *= 2
    failure = (await gpu.run(asked))["failure"]
    assert (failure["kind"], failure["code"]) == ("usage", "invalid_param")
    assert "at most 3 files" in failure["message"]


async def test_nothing_a_graph_needs_is_missing_where_everything_is_installed(gpu: Gpu) -> None:
    report = (await gpu.http.get("/workflows")).json()["workflows"]
    assert {w["name"]: w["missing"] for w in report} == {name: [] for name in bundled()}
