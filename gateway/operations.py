"""What the gateway's own processes carry out: each a workflow of one node no ComfyUI ever sees.

So the catalogue, `/api/tools` and the reference pages treat them as they treat the others. No GPU
service can have a workflow of such a name: the wire allows no colon in one.
"""

import hashlib
import json
from collections.abc import Mapping

from pydantic import JsonValue

from gpu_server.workflow import Workflow, make_workflow

NORMALISE = "cpu:normalise"
"""Cleans a mesh and brings it into the unit cube."""
RESCALE = "cpu:rescale"
"""Scales a mesh, by a factor or to dimensions."""


def _operation(name: str, title: str, values: dict[str, JsonValue]) -> Workflow:
    """An operation that turns the file `model_url` into one; `values` are its parameters."""
    bound: dict[str, JsonValue] = {value: {"bind": f"1.{value}"} for value in values}
    graph: JsonValue = {"1": {"class_type": name, "inputs": {"model_url": "", **values}}}
    manifest: JsonValue = {
        "manifest": 1,
        "tool": name.partition(":")[2],
        "variant": "cpu",
        "title": title,
        "params": {
            "model_url": {"required": True, "upload": "model", "bind": "1.model_url"},
            **bound,
        },
        "outputs": {"models": {"node": "1", "kind": "model", "max": 1}},
    }
    written = json.dumps([graph, manifest], sort_keys=True).encode()
    return make_workflow(name, graph, manifest, digest=hashlib.sha256(written).hexdigest())


OPERATIONS: Mapping[str, Workflow] = {
    operation.name: operation
    for operation in (
        _operation(NORMALISE, "Clean, in the unit cube", {}),
        _operation(
            RESCALE,
            "On the gateway's own CPU, without a GPU",
            {"scale_factor": None, "target_dimensions": None, "format": "glb"},
        ),
    )
}
