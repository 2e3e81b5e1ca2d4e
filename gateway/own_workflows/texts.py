"""The texts of an own workflow as the policy is to see them: the graph's own and the caller's."""

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from gateway.errors import InvalidParameters
from gateway.own_workflows.faults import refused
from gateway.security.policy import GUIDANCE, NEGATIVE_PROMPT
from gpu_server.workflow import Graph, ParamError, Workflow
from gpu_server.workflow.graph import is_link, links, resolve
from gpu_server.workflow.values import transformed

_MOST_LORAS = 20
MOST_TEXT = 100_000
"""Most characters that the policy is asked about at once."""
_NEGATIVE = "negative"
_STEERS_AWAY = frozenset({"KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider"})
"""Classes that steer away from what reaches their `negative`, at the guidance `cfg`.

Others hand it on as an output, from where it may become what is asked for: only what ends here is
known to be avoided.
"""

Place = tuple[str, str]
"""Node and input."""


def seen_by_policy(workflow: Workflow, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """List what a call with these values says, by parameter or by `<node>.<input>`.

    Texts that only reach the `negative` of samplers stand under the policy's name for them, and the
    lowest guidance beside them: with one below 1 they are asked for, not avoided.
    Raises InvalidParameters for more text than is ever looked at, and for a value that cannot be
    filled in.
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
        texts = list(_texts(value))
        if not texts:
            continue
        text = "\n".join(texts)
        if node in negative:
            avoided.append(text)
        else:
            # several inputs may hold what one parameter says
            name = names.get((node, key), f"{node}.{key}")
            found[name] = f"{found[name]}\n{text}" if name in found else text
    if avoided:
        found[NEGATIVE_PROMPT] = "\n".join(avoided)
        found[GUIDANCE] = min(_guidances(values), default=1)
    loras = [value for (_, key), value in values.items() if key == "lora_name"]
    if loras:
        found["loras"] = loras[:_MOST_LORAS]
    if sum(len(text) for value in found.values() for text in _texts(value)) > MOST_TEXT:
        raise _too_much(given)
    return found


def _too_much(given: Mapping[str, JsonValue]) -> InvalidParameters:
    sizes = {name: sum(map(len, _texts(value))) for name, value in given.items()}
    longest = max(sizes, key=lambda name: sizes[name], default=None)
    message = f"all texts together are more than {MOST_TEXT} characters"
    return refused("graph" if longest is None else longest, "too_long", message)


def _filled(
    workflow: Workflow, given: Mapping[str, JsonValue]
) -> tuple[dict[Place, JsonValue], dict[Place, str]]:
    """Collect every value as the call fills it in, and which parameter fills which place."""
    values: dict[Place, JsonValue] = {
        (node_id, key): value
        for node_id, node in workflow.graph.items()
        for key, value in node["inputs"].items()
    }
    # in the order in which a run fills them in
    for address, value in workflow.manifest.fixed.items():
        values[resolve(workflow.graph, address)] = value
    names: dict[Place, str] = {}
    filled = 0
    for name, param in workflow.manifest.params.items():
        for target in param.targets:
            place = resolve(workflow.graph, target.to)
            names[place] = name
            value = given.get(name)
            if value is None:
                continue
            try:
                word = transformed(name, target, value)
            except ParamError as error:
                raise refused(name, error.code, error.message) from None
            values[place] = f"{values.get(place, '')}{word}" if target.append else word
            filled += len(word) if isinstance(word, str) else 0
            if filled > MOST_TEXT:
                raise _too_much(given)
    return values, names


def _texts(value: JsonValue) -> Iterator[str]:
    """List the texts of one input, those inside lists and objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list) and not is_link(value):
        for each in value:
            yield from _texts(each)


def _negative_nodes(graph: Graph) -> set[str]:
    """Find the nodes whose outputs end in the `negative` of samplers and nowhere else."""
    onward: dict[str, set[str]] = {}
    ends: dict[str, set[str]] = {node_id: set() for node_id in graph}
    for node, key, source, _ in links(graph):
        if key == _NEGATIVE and graph[node]["class_type"] in _STEERS_AWAY:
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
