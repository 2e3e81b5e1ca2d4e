"""The texts of an own workflow as the policy is to see them: the graph's own and the caller's."""

from collections.abc import Mapping

from pydantic import JsonValue

from gateway.security.policy import GUIDANCE, NEGATIVE_PROMPT
from gpu_server.workflow import Graph, ParamError, Workflow
from gpu_server.workflow.graph import is_link, links, resolve
from gpu_server.workflow.values import transformed

_MOST_LORAS = 20
_NEGATIVE = "negative"

Place = tuple[str, str]
"""Node and input."""


def seen_by_policy(workflow: Workflow, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """List what a call with these values says, by parameter or by `<node>.<input>`.

    Texts that only reach inputs named `negative` stand under the policy's name for them, and the
    lowest guidance beside them: with one below 1 they are asked for, not avoided.
    """
    values, names = _filled(workflow, given)
    negative = _negative_nodes(workflow.graph)
    found: dict[str, JsonValue] = {
        name: value
        for name, value in given.items()
        if not isinstance(value, str) or name not in names.values()
    }
    avoided: list[str] = []
    for (node, key), value in values.items():
        if not isinstance(value, str):
            continue
        if node in negative:
            avoided.append(value)
        else:
            # several inputs may hold what one parameter says
            name = names.get((node, key), f"{node}.{key}")
            found[name] = f"{found[name]}\n{value}" if name in found else value
    if avoided:
        found[NEGATIVE_PROMPT] = "\n".join(avoided)
        found[GUIDANCE] = min(_guidances(values), default=1)
    loras = [value for (_, key), value in values.items() if key == "lora_name"]
    if loras:
        found["loras"] = loras[:_MOST_LORAS]
    return found


def _filled(
    workflow: Workflow, given: Mapping[str, JsonValue]
) -> tuple[dict[Place, JsonValue], dict[Place, str]]:
    """Collect every value as the call fills it in, and which parameter fills which place."""
    values: dict[Place, JsonValue] = {
        (node_id, key): value
        for node_id, node in workflow.graph.items()
        for key, value in node["inputs"].items()
    }
    names: dict[Place, str] = {}
    for name, param in workflow.manifest.params.items():
        for target in param.targets:
            place = resolve(workflow.graph, target.to)
            names[place] = name
            value = given.get(name)
            if value is None:
                continue
            try:
                word = transformed(name, target, value)
            except ParamError:
                # refused elsewhere, by name; the policy sees what was sent
                word = value
            values[place] = f"{values.get(place, '')}{word}" if target.append else word
    return values, names


def _negative_nodes(graph: Graph) -> set[str]:
    """Find the nodes whose outputs end in inputs named `negative` and nowhere else."""
    onward: dict[str, set[str]] = {}
    ends: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node, key, source, _ in links(graph):
        if key == _NEGATIVE:
            ends[source].add(_NEGATIVE)
        else:
            onward.setdefault(source, set()).add(node)
    for node_id in graph:
        if not onward.get(node_id) and not ends[node_id]:
            ends[node_id].add("other")
    readers: dict[str, set[str]] = {}
    for source, nodes in onward.items():
        for node in nodes:
            readers.setdefault(node, set()).add(source)
    # from the ends backwards, each node once for each end it can reach
    waiting = [node_id for node_id in graph if ends[node_id]]
    while waiting:
        node = waiting.pop()
        for source in readers.get(node, ()):
            if not ends[node] <= ends[source]:
                ends[source] |= ends[node]
                waiting.append(source)
    return {node_id for node_id, reached in ends.items() if reached == {_NEGATIVE}}


def _guidances(values: Mapping[Place, JsonValue]) -> list[float]:
    """List the guidances of a graph; 0 where a link decides one."""
    found = [value for (_, key), value in values.items() if key == "cfg"]
    return [v if isinstance(v, int | float) and not is_link(v) else 0 for v in found]
