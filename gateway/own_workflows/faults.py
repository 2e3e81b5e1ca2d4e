"""What is wrong with a workflow somebody brings, said so that its author finds the place."""

from collections.abc import Mapping
from typing import Any

from gateway.errors import FieldError, InvalidParameters
from gpu_server.workflow import WorkflowError

_LONGEST_FIELD = 100
_LONGEST_TEXT = 300
_OF_THE_MANIFEST = frozenset({"params", "outputs", "fixed", "guard", "models", "packs", "manifest"})


def fault(field: str, code: str, message: str) -> FieldError:
    """Describe one wrong place."""
    return FieldError(field=field[:_LONGEST_FIELD], code=code, message=message[:_LONGEST_TEXT])


def refused(field: str, code: str, message: str) -> InvalidParameters:
    """Make the error of one wrong place."""
    return InvalidParameters([fault(field, code, message)])


def place_of(node_id: str, name: str | None = None) -> str:
    """Name a node, or one of its inputs, as a field of the call."""
    return f"graph.{node_id}" if name is None else f"graph.{node_id}.inputs.{name}"


def node_name(node_id: str, node: Mapping[str, Any]) -> str:
    """Name a node for its author."""
    title = node.get("_meta", {}).get("title")
    # a mark is no name
    named = isinstance(title, str) and ":" not in title and title != node["class_type"]
    said = f" “{title}”" if named else ""
    return f"node {node_id} ({node['class_type']}{said})"


def unfit(error: WorkflowError) -> InvalidParameters:
    """Translate what a check of graph and manifest found."""
    place, detail = error.place, error.detail
    first = place.partition(".")[0]
    if first in _OF_THE_MANIFEST:
        # `params.prompt` of a manifest, or of a mark in the graph: either way the parameter
        return refused(place, "workflow_invalid", detail)
    if first == "graph":
        return refused("graph", "workflow_invalid", detail)
    node, _, name = place.partition(".")
    # a check of the graph's shape names a node as `<id> <class>`
    node_id = node.partition(" ")[0]
    said = f"node {node}: {detail}" if not name else f"input {name} of node {node_id}: {detail}"
    return refused(place_of(node_id, name or None), "workflow_invalid", said)
