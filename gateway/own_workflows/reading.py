"""A graph as it is sent: the right format, of bearable size, nothing in it that cannot be kept."""

import json
import re
from collections.abc import Mapping
from graphlib import TopologicalSorter
from typing import cast

from pydantic import JsonValue

from gateway.own_workflows.faults import node_name, place_of, refused, unfit
from gpu_server.workflow import Graph, WorkflowError
from gpu_server.workflow.graph import links, parse_graph

MAX_NODES = 2000
MAX_BYTES = 2_000_000
"""Most bytes of a graph as JSON."""
_DEEPEST = 64
_LONGEST_ID = 100
_ID = re.compile(rf"[A-Za-z0-9_:-]{{1,{_LONGEST_ID}}}")
_LONGEST_CHAIN = 500
"""Most nodes one behind another: ComfyUI follows links by recursion, and Python's has an end."""
_LONGEST_CLASS = 200

EXPORT = (
    "open it in ComfyUI and choose File → Export (API); in older versions Workflow → Export (API), "
    "or Save (API Format) once the dev mode options are on"
)


def read_graph(sent: JsonValue) -> Graph:
    """Read a graph in API format, as an object or as the text of the file.

    Raises InvalidParameters that names the node and says how to mend it.
    """
    graph = _parsed(sent) if isinstance(sent, str) else sent
    if not isinstance(graph, dict):
        raise refused("graph", "not_a_graph", f"must be an object of nodes: {EXPORT}")
    if isinstance(graph.get("nodes"), list):
        message = f"is the file of ComfyUI's editor, which a run cannot be made from: {EXPORT}"
        raise refused("graph", "ui_format", message)
    if len(graph) > MAX_NODES:
        raise refused("graph", "too_large", f"has {len(graph)} nodes: at most {MAX_NODES}")
    _require_unwrapped(graph)
    require_keepable("graph", graph)
    for node_id in graph:
        _check_id(node_id)
    try:
        parsed = parse_graph(graph)
    except WorkflowError as error:
        raise unfit(error) from None
    for node_id, node in parsed.items():
        _check_node(node_id, node)
    _check_depth(parsed)
    return parsed


def _require_unwrapped(graph: Mapping[str, JsonValue]) -> None:
    inner = graph.get("prompt")
    if isinstance(inner, dict) and "class_type" not in inner:
        message = "is the body of ComfyUI's own /prompt: send what is under `prompt`"
        raise refused("graph", "wrapped_graph", message)


def _check_depth(graph: Graph) -> None:
    read: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node_id, _, source, _ in links(graph):
        read[node_id].add(source)
    depth: dict[str, int] = {}
    for node_id in TopologicalSorter(read).static_order():
        depth[node_id] = 1 + max((depth[source] for source in read[node_id]), default=0)
        if depth[node_id] > _LONGEST_CHAIN:
            said = node_name(node_id, graph[node_id])
            message = f"{said} stands behind a chain of more than {_LONGEST_CHAIN} nodes"
            raise refused(place_of(node_id), "too_deep", message)


def require_keepable(field: str, value: JsonValue) -> None:
    """Raise InvalidParameters for JSON that is too large, too deep or no Unicode text."""
    if _depth(value) > _DEEPEST:
        raise refused(field, "too_deep", f"is nested more than {_DEEPEST} levels deep")
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except UnicodeEncodeError:
        raise refused(field, "string_unicode", "must be valid Unicode text") from None
    except ValueError:
        raise refused(field, "finite_number", "holds a number that is not finite") from None
    if size > MAX_BYTES:
        raise refused(field, "too_large", f"has {size} bytes as JSON: at most {MAX_BYTES}")


def _parsed(text: str) -> JsonValue:
    if len(text) > MAX_BYTES:
        raise refused("graph", "too_large", f"has {len(text)} characters: at most {MAX_BYTES}")
    try:
        return cast("JsonValue", json.loads(text))
    except (ValueError, RecursionError):
        raise refused("graph", "json_invalid", "is text that is no JSON: send the file") from None


def _depth(value: JsonValue) -> int:
    """Count levels without recursion: what is too deep for it is looked for here."""
    level: list[JsonValue] = [value]
    depth = 0
    while level and depth <= _DEEPEST:
        depth += 1
        inner: list[JsonValue] = []
        for each in level:
            if isinstance(each, dict):
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner
    return depth


def _check_id(node_id: str) -> None:
    if not _ID.fullmatch(node_id):
        message = (
            f"the node id {node_id[:64]!r} is none: 1 to {_LONGEST_ID} letters, digits, _, : and - "
            "without a dot; change it in the file"
        )
        raise refused(place_of(node_id), "bad_node_id", message)


def _check_node(node_id: str, node: Mapping[str, object]) -> None:
    if len(str(node["class_type"])) > _LONGEST_CLASS:
        message = f"a class_type has at most {_LONGEST_CLASS} characters"
        raise refused(place_of(node_id), "workflow_invalid", message)
    meta = node.get("_meta", {})
    if not isinstance(meta, dict):
        message = f"{node_name(node_id, {**node, '_meta': {}})}: _meta must be an object"
        raise refused(place_of(node_id), "workflow_invalid", message)
