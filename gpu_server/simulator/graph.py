"""Reading a prompt: links, the order nodes run in, and what makes two nodes the same."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from gpu_server.simulator.folders import Folders
from gpu_server.simulator.nodes import NODE_CLASSES

Graph = Mapping[str, Mapping[str, Any]]


def is_link(value: object) -> bool:
    """Tell whether an input is `[node id, slot]`."""
    match value:
        case [str(), int() | float()]:
            return True
        case _:
            return False


class Signatures:
    """Keys of a prompt's nodes: class, inputs and everything upstream, but not the node's id."""

    def __init__(self, graph: Graph, folders: Folders) -> None:
        self._graph = graph
        self._folders = folders
        self._known: dict[str, str] = {}

    def of(self, node_id: str) -> str:
        """Return a node's key; raises `KeyError` for a node without inputs."""
        if node_id not in self._graph:
            return uuid4().hex
        if node_id not in self._known:
            # Stands in for the node while its own upstream is read, in case that is a cycle.
            self._known[node_id] = f"cycle through {node_id}"
            self._known[node_id] = self._computed(node_id, self._graph[node_id])
        return self._known[node_id]

    def _computed(self, node_id: str, node: Mapping[str, Any]) -> str:
        inputs: Mapping[str, Any] = node["inputs"]
        node_class = NODE_CLASSES[node["class_type"]]
        parts: list[Any] = [node_class.name, node_id if node_class.per_node else None]
        if node_class.fingerprint is not None:
            try:
                parts.append(node_class.fingerprint(self._folders, inputs))
            except Exception:  # noqa: BLE001 - a node whose change cannot be told is always new
                parts.append(uuid4().hex)
        for name in sorted(inputs):
            value = inputs[name]
            known = ["link", self.of(value[0]), value[1]] if is_link(value) else ["value", value]
            parts.append([name, known])
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


class RunOrder:
    """The nodes still to run, handed out in ComfyUI's order: output nodes as early as possible."""

    def __init__(
        self, graph: Graph, outputs: Iterable[str], is_cached: Callable[[str], bool]
    ) -> None:
        self._graph = graph
        self._is_cached = is_cached
        self._waits_for: dict[str, set[str]] = {}
        self._feeds: dict[str, dict[str, None]] = {}
        for output in outputs:
            self._add(output)

    def _add(self, output: str) -> None:
        stack = [output]
        links: list[tuple[str, str]] = []
        while stack:
            node_id = stack.pop()
            if node_id in self._waits_for:
                continue
            self._waits_for[node_id] = set()
            self._feeds[node_id] = {}
            # A link to a node that is not there raises KeyError and kills the worker, as in
            # ComfyUI: validation reads declared inputs only.
            for value in self._graph[node_id]["inputs"].values():
                if is_link(value) and not self._is_cached(value[0]):
                    stack.append(value[0])
                    links.append((value[0], node_id))
        for source, target in links:
            self._waits_for[target].add(source)
            self._feeds[source][target] = None

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def next(self) -> str:
        """Choose the node to run now."""
        ready = [node_id for node_id, sources in self._waits_for.items() if not sources]
        for distance in range(3):
            for node_id in ready:
                if self._leads_to_output(node_id, distance):
                    return node_id
        return ready[0]

    def _leads_to_output(self, node_id: str, distance: int) -> bool:
        if distance == 0:
            return NODE_CLASSES[self._graph[node_id]["class_type"]].output_node
        return any(self._leads_to_output(fed, distance - 1) for fed in self._feeds[node_id])

    def done(self, node_id: str) -> None:
        """Take a node off the list and release what waited for it."""
        del self._waits_for[node_id]
        for fed in self._feeds.pop(node_id):
            self._waits_for[fed].discard(node_id)
