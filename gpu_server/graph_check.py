"""What a graph must look like before it may be sent to ComfyUI (pure).

ComfyUI answers 200 to some graphs that then end its worker thread for good: an orphan node without
`inputs`, an undeclared input that links to a missing node. Such a graph never leaves this process.
"""

import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

Graph = dict[str, dict[str, Any]]
"""A ComfyUI graph in API format: node id → `{"class_type", "inputs", "_meta"?}`."""

_LINK_LENGTH = 2


class InvalidGraph(Exception):
    """A graph ComfyUI must not see; `node` is `<id> <class_type>` where one is to blame."""

    def __init__(self, message: str, node: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node


def check_graph(graph: Mapping[str, object], specs: Mapping[str, Any] | None = None) -> None:
    """Raise `InvalidGraph` for a graph that is malformed or could end ComfyUI's worker.

    Args:
        graph: the graph about to be sent; of any shape, for it may be a caller's.
        specs: the answer of `/object_info` where it is known.
    """
    if not graph:
        raise InvalidGraph("the graph has no nodes")
    nodes = {node_id: _node(node_id, node) for node_id, node in graph.items()}
    links: dict[str, set[str]] = {}
    for node_id, (class_type, inputs) in nodes.items():
        name = f"{node_id} {class_type}"
        links[node_id] = set()
        for key, value in inputs.items():
            target = _target(name, key, value)
            if target is None:
                continue
            if target not in nodes:
                raise InvalidGraph(f"input {key} links to node {target}, which is missing", name)
            _declared(name, key, _spec(specs, class_type))
            links[node_id].add(target)
    try:
        TopologicalSorter(links).prepare()
    except CycleError as error:
        raise InvalidGraph(f"the nodes {', '.join(error.args[1])} form a cycle") from None


def _node(node_id: object, node: object) -> tuple[str, dict[str, Any]]:
    if not isinstance(node_id, str):
        raise InvalidGraph(f"node id {node_id!r} is not a string")
    if not isinstance(node, dict):
        raise InvalidGraph(f"{node_id} is not a node: export the workflow in API format")
    fields = cast("dict[str, Any]", node)
    class_type, inputs = fields.get("class_type"), fields.get("inputs")
    if not isinstance(class_type, str) or not class_type:
        raise InvalidGraph(f"node {node_id} has no class_type: export the workflow in API format")
    if not isinstance(inputs, dict):
        raise InvalidGraph("the node has no inputs", f"{node_id} {class_type}")
    return class_type, cast("dict[str, Any]", inputs)


def _target(name: str, key: str, value: object) -> str | None:
    """Return the id of the node an input links to, None for a literal."""
    if isinstance(value, dict) and "__value__" in cast("dict[str, object]", value):
        # ComfyUI unwraps it in place: what was judged is then not what is run.
        raise InvalidGraph(
            f'input {key} is wrapped as {{"__value__": …}}, which is not taken: '
            "send a plain text, number or boolean",
            name,
        )
    if isinstance(value, list):
        pair = cast("list[object]", value)
        if _is_link(pair) and type(pair[1]) is int and pair[1] >= 0:
            return cast("str", pair[0])
        raise InvalidGraph(
            f'input {key} is a list and no link ["node id", slot]: lists are not taken as values',
            name,
        )
    if not all(map(math.isfinite, _floats(cast("object", value)))):
        raise InvalidGraph(f"input {key} is not a finite number", name)
    return None


def _is_link(value: object) -> bool:
    if not isinstance(value, list):
        return False
    pair = cast("list[object]", value)
    return (
        len(pair) == _LINK_LENGTH and isinstance(pair[0], str) and isinstance(pair[1], int | float)
    )


def _floats(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _floats(each)
    elif isinstance(value, dict):
        for each in cast("dict[object, object]", value).values():
            yield from _floats(each)


def _spec(specs: Mapping[str, Any] | None, class_type: str) -> dict[str, Any] | None:
    """Return the class's spec where its list of inputs is complete.

    A custom node may take inputs it doesn't declare (`**kwargs`); ComfyUI's own don't.
    """
    spec: dict[str, Any] | None = (specs or {}).get(class_type)
    module = str((spec or {}).get("python_module", "nodes"))
    return None if module.startswith("custom_nodes") else spec


def _declared(name: str, key: str, spec: dict[str, Any] | None) -> None:
    if spec is None:
        return
    groups = cast("dict[str, dict[str, Any]]", spec.get("input") or {})
    declared = {each for group in ("required", "optional") for each in groups.get(group) or {}}
    # Dynamic inputs are declared once and filled as `<declared>.<part>`.
    if key not in declared and key.partition(".")[0] not in declared:
        raise InvalidGraph(f"the node has no input {key}, yet it holds a link", name)
