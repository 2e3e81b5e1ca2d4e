"""Every graph that comes with the project is ready here, and runs to its end."""

from io import BytesIO
from typing import Any

import av
import pytest
from PIL import Image

from gpu_server.workflow import Workflow, check
from tests.support.recordings import bundled as workflows

from .client import Graph, Simulator, all_files
from .scenes import NAMES, bundled, busy, plain, uploaded

STAND_INS = {
    "ckpt_name": ("checkpoint.safetensors", "tiny-sd15.ckpt"),
    "lora_name": ("my_trained_lora.safetensors", "demo-style.safetensors"),
}
"""Inputs whose literal stands for a file that the caller chooses."""


def runnable(name: str) -> Graph:
    graph = bundled(name)
    for node in graph.values():
        inputs = node["inputs"]
        for key, (literal, installed) in STAND_INS.items():
            if inputs.get(key) == literal:
                inputs[key] = installed
        if "image" in inputs and isinstance(inputs["image"], str):
            inputs["image"] = "example.png"
    return graph


def opened(filename: str, content: bytes) -> None:
    """Read a file as what its name says it is."""
    if filename.endswith(".png"):
        with Image.open(BytesIO(content)) as picture:
            picture.load()
    elif filename.endswith(".glb"):
        assert content[:4] == b"glTF"
        assert int.from_bytes(content[8:12], "little") == len(content)
    else:
        with av.open(BytesIO(content)) as video:
            assert next(video.decode(video=0)).width > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scene", ["plain", "busy"])
def test_a_graph_runs_to_its_end_and_delivers(sim: Simulator, name: str, scene: str) -> None:
    uploaded(sim, example=plain() if scene == "plain" else busy())
    entry = sim.run(runnable(name))
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    delivered = all_files(entry)
    for file in delivered:
        opened(file["filename"], sim.download(file))
    texts = [text for ui in entry["outputs"].values() for text in ui.get("text", [])]
    assert delivered or texts
    assert all("[simulated]" in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_is_ready_out_of_the_box(described: dict[str, Any], name: str) -> None:
    assert check(workflows()[name], described) == []


@pytest.fixture(scope="session")
def described(shared: Simulator) -> dict[str, Any]:
    return shared.http.get("/object_info").json()


def loaded(workflow: Workflow) -> list[str]:
    """Model files that a graph names."""
    named = {
        value
        for node in workflow.graph.values()
        for value in node["inputs"].values()
        if isinstance(value, str)
    }
    return [model.name for model in workflow.models if model.name in named]


@pytest.mark.parametrize("name", NAMES)
def test_a_hidden_file_is_missing_and_named(sim: Simulator, name: str) -> None:
    workflow = workflows()[name]
    for file in loaded(workflow):
        sim.knobs(hide=[file])
        missing = check(workflow, sim.http.get("/object_info").json())
        assert [(one.kind, one.name) for one in missing] == [("model", file)]
