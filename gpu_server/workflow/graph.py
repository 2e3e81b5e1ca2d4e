"""A workflow graph in ComfyUI's API format: its shape, its links, its addresses."""

from collections.abc import Iterator
from typing import cast

from pydantic import JsonValue

from gpu_server.graph_check import Graph, InvalidGraph, check_graph

__all__ = ["Graph", "WorkflowError", "is_link", "links", "parse_graph", "resolve"]


class WorkflowError(Exception):
    """A workflow file does not fit: `place` names the file, parameter or graph input."""

    def __init__(self, place: str, detail: str) -> None:
        super().__init__(f"{place}: {detail}")
        self.place = place
        self.detail = detail


def is_link(value: object) -> bool:
    """Tell a link to another node, `["4", 0]`, from a literal."""
    if not isinstance(value, list):
        return False
    items = cast("list[object]", value)
    return (
        len(items) == 2  # noqa: PLR2004 - a link is a pair, by ComfyUI's format
        and isinstance(items[0], str)
        and isinstance(items[1], int)
        and not isinstance(items[1], bool)
    )


def parse_graph(raw: JsonValue) -> Graph:
    """Read a graph in API format; refuses what ComfyUI must not see."""
    if not isinstance(raw, dict):
        raise WorkflowError("graph", "not an object of nodes: export it in API format")
    try:
        check_graph(raw)
    except InvalidGraph as error:
        raise WorkflowError(error.node or "graph", error.message) from None
    return cast("Graph", raw)


def resolve(graph: Graph, address: str) -> tuple[str, str]:
    """Turn `<node id>.<input>` or `title:<title>.<input>` into node id and input name."""
    node, _, name = address.removeprefix("title:").partition(".")
    if not name:
        raise WorkflowError(address, "not of the form <node id>.<input>")
    if address.startswith("title:"):
        matches = [i for i, n in graph.items() if n.get("_meta", {}).get("title") == node]
        if len(matches) != 1:
            raise WorkflowError(address, f"{len(matches)} nodes have this title, not one")
        return matches[0], name
    if node not in graph:
        raise WorkflowError(address, f"the graph has no node {node!r}")
    return node, name


def links(graph: Graph) -> Iterator[tuple[str, str, str, int]]:
    """Every link as (node, input, source node, source slot)."""
    for node_id, node in graph.items():
        for name, value in node["inputs"].items():
            if is_link(value):
                yield node_id, name, value[0], value[1]
