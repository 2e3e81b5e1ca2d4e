"""The stages of a call: what their files are named."""

from typing import Any

import pytest
from pydantic import JsonValue

from gateway.calls import Loras
from gateway.catalogue import Variant
from gateway.chains import stages_of
from gateway.operations import OPERATIONS
from gateway.own_workflows.tool import own_tool
from gateway.tool import AnyTool
from gateway.tools.rescale import RESCALE
from gpu_server.protocol import FileOptions
from gpu_server.workflow import Workflow, make_workflow


def film() -> Workflow:
    """One that makes a video and a mesh, and has a word of its own for something."""
    graph: JsonValue = {"1": {"class_type": "Saves", "inputs": {"format": "stl"}}}
    manifest: dict[str, JsonValue] = {
        "manifest": 1,
        "tool": "workflows",
        "variant": "v1",
        "title": "A film",
        "params": {"format": {"bind": "1.format"}},
        "outputs": {
            "clip": {"node": "1", "kind": "video"},
            "models": {"node": "1", "kind": "model"},
        },
    }
    return make_workflow("own.film", graph, manifest, digest="d" * 64)


def extensions(tool: AnyTool, workflow: Workflow, **sent: Any) -> dict[str, str]:
    variant = Variant(name=tool.default_variant, workflow=workflow)
    options = FileOptions()
    call = stages_of(tool, variant, sent, Loras(), 60, files=options, redrawing=None)
    assert call.params["format"] == sent["format"]
    return call.extensions


def test_a_parameter_of_that_name_says_nothing_of_the_files_of_a_callers_own_workflow() -> None:
    workflow = film()
    tool = own_tool("film", 1, workflow)
    assert extensions(tool, workflow, format="stl") == {"clip": "mp4", "models": "glb"}


@pytest.mark.parametrize(
    ("wanted", "ending"),
    [("glb", "glb"), ("stl", "stl"), ("obj", "obj"), ("obj_zip", "zip"), ("3mf", "3mf")],
)
def test_a_rescaled_mesh_is_named_by_the_format_asked_for(wanted: str, ending: str) -> None:
    workflow = OPERATIONS["cpu:rescale"]
    assert extensions(RESCALE, workflow, format=wanted, scale_factor=2.0) == {"models": ending}
