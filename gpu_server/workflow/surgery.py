"""Changes to the nodes of a graph, made in place: unset, drop, bypass, repeat, prune; and fill."""

import copy
from collections.abc import Collection, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from gpu_server.workflow.graph import Graph, WorkflowError, is_link, links, resolve
from gpu_server.workflow.manifest import Change
from gpu_server.workflow.node_specs import ObjectInfo, node_spec, types_fit


def _slot(address: str) -> tuple[str, int]:
    """Split `<node>:<output slot>`; node ids of flattened subgraphs hold colons themselves."""
    node, _, slot = address.rpartition(":")
    if not node or not slot.isdecimal():
        raise WorkflowError(address, "not of the form <node id>:<output slot>")
    return node, int(slot)


def _redirect(
    graph: Graph, source: tuple[str, int], to: list[Any] | None, *, skip: Collection[str]
) -> None:
    """Let every consumer of one output read another; without one its input is removed."""
    for node_id, name, node, slot in list(links(graph)):
        if (node, slot) == source and node_id not in skip:
            if to is None:
                del graph[node_id]["inputs"][name]
            else:
                graph[node_id]["inputs"][name] = list(to)


def apply_changes(graph: Graph, changes: Sequence[Change], object_info: ObjectInfo) -> None:
    """Carry out what several parameters change.

    First everything is unset, then dropped, then bypassed: so no bypass finds a link to a dropped
    node to pass on. What another change has taken out already is passed over. The order of the
    changes does not matter.
    """
    for address in (a for change in changes for a in change.unset):
        node, name = resolve(graph, address)
        graph[node]["inputs"].pop(name, None)
    for node in (n for change in changes for n in change.drop):
        graph.pop(node, None)
    bypassed = {n for change in changes for n in change.bypass if n in graph}
    if len(bypassed) > 1:
        read = {i: {v[0] for v in n["inputs"].values() if is_link(v)} for i, n in graph.items()}
        order = reversed(tuple(TopologicalSorter(read).static_order()))
    else:
        order = iter(bypassed)
    # Readers first: each still sees which of its inputs come from another node that goes.
    for node in order:
        if node in bypassed:
            bypass(graph, node, object_info)


def bypass(graph: Graph, node_id: str, object_info: ObjectInfo) -> None:
    """Take a node out the way ComfyUI's frontend does.

    Output slot i continues with input socket i if the types fit, else with the first linked socket
    of that type; where none fits, the consumer's input is removed.
    """
    if node_id not in graph:
        raise WorkflowError(node_id, "bypass names a node the graph does not have")
    node = graph[node_id]
    spec = node_spec(object_info, node["class_type"], node["inputs"])
    if spec is None:
        raise WorkflowError(node_id, f"ComfyUI has no {node['class_type']}")
    sockets = [
        (node["inputs"].get(s.name), s.type)
        for s in spec.inputs.values()
        if s.is_socket or is_link(node["inputs"].get(s.name))
    ]
    for slot, output in enumerate(spec.outputs):
        same = sockets[slot : slot + 1]
        order = [*same, *(s for s in sockets if s[1] == output), *sockets]
        to = next((v for v, kind in order if is_link(v) and types_fit(kind, output)), None)
        _redirect(graph, (node_id, slot), to, skip=(node_id,))
    del graph[node_id]


def bypass_group(graph: Graph, nodes: Collection[str], links_of: Mapping[str, str]) -> None:
    """Take a chained group out: what it gave comes from where it took it."""
    for output, entry in links_of.items():
        node, name = resolve(graph, entry)
        _redirect(graph, _slot(output), graph[node]["inputs"].get(name), skip=nodes)
    for node in nodes:
        del graph[node]


def repeat_group(
    graph: Graph, nodes: Collection[str], links_of: Mapping[str, str], count: int
) -> list[dict[str, str]]:
    """Chain `count` copies of a group; returns each copy's node ids by the first one's."""
    base = {n: copy.deepcopy(graph[n]) for n in nodes}
    copies = [{n: n for n in nodes}]
    for number in range(2, count + 1):
        ids = {n: _free_id(graph, f"{n}_{number}") for n in nodes}
        for node in nodes:
            graph[ids[node]] = _copied(base[node], ids, number)
        for output, entry in links_of.items():
            source, slot = _slot(output)
            node, name = resolve(graph, entry)
            graph[ids[node]]["inputs"][name] = [copies[-1][source], slot]
        copies.append(ids)
    inside = {i for ids in copies for i in ids.values()}
    for output in links_of:
        source, slot = _slot(output)
        _redirect(graph, (source, slot), [copies[-1][source], slot], skip=inside)
    return copies


def _copied(node: dict[str, Any], ids: Mapping[str, str], number: int) -> dict[str, Any]:
    made = copy.deepcopy(node)
    for name, value in made["inputs"].items():
        if is_link(value) and value[0] in ids:
            made["inputs"][name] = [ids[value[0]], value[1]]
    if "title" in made.get("_meta", {}):
        made["_meta"]["title"] += f" {number}"
    return made


def _free_id(graph: Graph, wanted: str) -> str:
    while wanted in graph:
        wanted += "_"
    return wanted


def check_group(graph: Graph, nodes: Collection[str], links_of: Mapping[str, str]) -> None:
    """Refuse a chain whose group or links are not in the graph."""
    for node in nodes:
        if node not in graph:
            raise WorkflowError(node, "chain names a node the graph does not have")
    for output, entry in links_of.items():
        node, name = resolve(graph, entry)
        if _slot(output)[0] not in nodes or node not in nodes:
            raise WorkflowError(output, "chain links must stay within the chain's nodes")
        if not is_link(graph[node]["inputs"].get(name)):
            raise WorkflowError(entry, "chain enters at an input that holds no link")


def prune(graph: Graph, keep: Collection[str]) -> None:
    """Drop the nodes that none of `keep` depends on: ComfyUI would still run their outputs."""
    needed: set[str] = set()
    stack = list(keep)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack += [v[0] for v in graph[node]["inputs"].values() if is_link(v)]
    for node in set(graph) - needed:
        del graph[node]


def fill(graph: Graph, object_info: ObjectInfo) -> Graph:
    """Return the graph with required inputs it lacks set to their schema's default.

    ComfyUI itself refuses a prompt that lacks an input a newer version made required.
    """
    filled: Graph = {i: {**n, "inputs": dict(n["inputs"])} for i, n in graph.items()}
    for node in filled.values():
        spec = node_spec(object_info, node["class_type"], node["inputs"])
        for entry in spec.inputs.values() if spec else ():
            if entry.required and entry.name not in node["inputs"]:
                default = entry.default()
                if default is not None:
                    node["inputs"][entry.name] = default
    return filled
