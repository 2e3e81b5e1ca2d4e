"""Parameters into a graph: the manifest's operations applied to a copy of the workflow.

The order is fixed, so that it does not matter which parameters are given: values and files in the
manifest's order, then what is unset, dropped and bypassed over all parameters, then chains.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from gpu_server.workflow.file_inputs import require_sent
from gpu_server.workflow.graph import Graph, is_link, resolve
from gpu_server.workflow.manifest import Chain, Change, Manifest, Param, Target
from gpu_server.workflow.node_specs import ObjectInfo, input_spec
from gpu_server.workflow.pictures import Sizes, lowered
from gpu_server.workflow.surgery import apply_changes, bypass_group, fill, prune, repeat_group
from gpu_server.workflow.values import (
    MAX_SEED,
    ParamError,
    check_installed,
    check_value,
    checked,
    shown,
    transformed,
    value_of,
)

__all__ = [
    "MAX_SEED",
    "BoundGraph",
    "ParamError",
    "bind",
    "check_names",
    "choices_of",
    "default_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGraph:
    """A graph ready to be queued, and every value that went into it."""

    graph: Graph
    params: dict[str, JsonValue]


def draw_seed() -> int:
    """Draw a seed that survives JSON."""
    return secrets.randbelow(MAX_SEED + 1)


def default_of(graph: Graph, param: Param) -> JsonValue:
    """Read a default off the graph: the literal of the first target, before transforms.

    None where leaving the parameter out is not the same as giving it any value.
    """
    if param.chain is not None:
        return []
    if not param.bind:
        return next((case.equals for case in param.when if case.is_empty), None)
    return None if param.absent is not None else _default_at(graph, param.bind[0])


def _default_at(graph: Graph, target: Target) -> JsonValue:
    node, name = resolve(graph, target.to)
    literal = graph[node]["inputs"].get(name)
    if target.template is not None or target.append or is_link(literal):
        return None
    if target.map is not None:
        return next((value_of(k) for k, v in target.map.items() if v == literal), None)
    if target.transforms and isinstance(literal, int | float):
        value = (literal - target.offset) / target.scale
        return int(value) if value.is_integer() else value
    return literal


def choices_of(param: Param) -> tuple[JsonValue, ...]:
    """List the only values a parameter takes; empty when it takes more than a list."""
    if not param.bind:
        return tuple(case.equals for case in param.when)
    words = next((target.map for target in param.bind if target.map is not None), None)
    return tuple(value_of(word) for word in words or ())


def bind(
    graph: Graph,
    manifest: Manifest,
    params: Mapping[str, JsonValue],
    *,
    run_id: str,
    object_info: ObjectInfo,
    uploads: Mapping[str, Sequence[str]] | None = None,
    sizes: Sizes | None = None,
    seed: Callable[[], int] = draw_seed,
) -> BoundGraph:
    """Make the graph of one run.

    `uploads` holds, per parameter, the names ComfyUI gave the uploaded files, `sizes` those of the
    pictures among them.
    Raises ParamError when a value does not fit, WorkflowError when the manifest does not.
    """
    given = {k: v for k, v in params.items() if v is not None}
    files = {k: v for k, v in (uploads or {}).items() if v}
    check_names(manifest, given, files)
    # Inputs are only ever replaced, never changed in place: copying one level down is enough.
    copied: Graph = {i: {**n, "inputs": dict(n["inputs"])} for i, n in graph.items()}
    binder = _Binder(copied, object_info)
    binder.fixed(manifest.fixed, run_id)
    used: dict[str, JsonValue] = {}
    for name, param in manifest.params.items():
        if param.chain is not None:
            continue
        if param.upload is not None:
            binder.files(name, param, files.get(name, ()))
            continue
        value = given.get(name)
        if value is None and param.seed:
            value = seed()
        value = _lowered(graph, param, value, sizes or {})
        used[name] = default_of(graph, param) if value is None else binder.value(name, param, value)
        if value is None and param.absent is not None:
            binder.changes.append(param.absent)
    # Chains and bypasses move links, so every plain value was set before them; a copy of a chain
    # is made from nodes that already lack what is unset.
    apply_changes(binder.graph, binder.changes, object_info)
    for name, param in manifest.params.items():
        if param.chain is not None:
            items = files.get(name, ()) if param.upload is not None else given.get(name)
            found = binder.chain(name, param.chain, items, uploaded=param.upload is not None)
            if param.upload is None:
                used[name] = found
    prune(binder.graph, [o.node for o in manifest.outputs.values()])
    require_sent(graph, binder.graph, manifest, files)
    return BoundGraph(graph=fill(binder.graph, object_info), params=used)


def _lowered(graph: Graph, param: Param, value: JsonValue, sizes: Sizes) -> JsonValue:
    if param.within is None:
        return value
    return lowered(param.within, default_of(graph, param) if value is None else value, sizes)


def check_names(manifest: Manifest, given: Collection[str], files: Collection[str]) -> None:
    """Raise ParamError for a value or file that is unknown or missing."""
    for name in (*given, *files):
        param = manifest.params.get(name)
        if param is None:
            known = ", ".join(manifest.params)
            raise ParamError(
                name, "unknown_param", f"This workflow has no {shown(name)}; it takes {known}."
            )
        if (param.upload is None) == (name in files):
            word = "a value" if param.upload is None else "a file"
            raise ParamError(name, "invalid_param", f"{name} takes {word}.")
    for name, param in manifest.params.items():
        if param.required and name not in given and name not in files:
            raise ParamError(name, "missing_param", f"{name} is required.")


class _Binder:
    """Sets values in one copy of a graph."""

    def __init__(self, graph: Graph, object_info: ObjectInfo) -> None:
        self.graph = graph
        self.changes: list[Change] = []
        """What the values given, and those left out, do to inputs and nodes."""
        self._info = object_info

    def fixed(self, values: Mapping[str, str | int | float | bool], run_id: str) -> None:
        """Set what no parameter decides."""
        for address, value in values.items():
            node, name = resolve(self.graph, address)
            text = value.replace("{run_id}", run_id) if isinstance(value, str) else value
            self.graph[node]["inputs"][name] = text

    def value(self, name: str, param: Param, value: JsonValue) -> JsonValue:
        """Apply one value; returns the value really used."""
        check_value(name, param, value)
        cases = [case for case in param.when if case.matches(value)]
        self.changes += cases
        gone = {node for case in cases for node in (*case.drop, *case.bypass)}
        for target in param.bind:
            node, key = resolve(self.graph, target.to)
            # A node that this very value takes out need not take the value.
            if node not in gone:
                installed = param.choices is not None
                self._set(name, node, key, value, target=target, installed=installed)
        return value

    def files(self, name: str, param: Param, uploaded: Sequence[str]) -> None:
        """Apply the uploaded files of one parameter that is no chain."""
        if len(uploaded) > param.most:
            most = "one file" if param.most == 1 else f"at most {param.most} files"
            raise ParamError(name, "invalid_param", f"{name} takes {most}.")
        if not uploaded and param.absent is not None:
            self.changes.append(param.absent)
        places = param.items or (param,)
        for number, place in enumerate(places):
            if number < len(uploaded):
                for target in place.bind:
                    node, key = resolve(self.graph, target.to)
                    self.graph[node]["inputs"][key] = uploaded[number]
            elif param.items and place.absent is not None:
                self.changes.append(place.absent)

    def chain(self, name: str, chain: Chain, given: object, *, uploaded: bool) -> list[JsonValue]:
        """Repeat a group once per item; returns the items as used."""
        if not isinstance(given, list | tuple | None):
            raise ParamError(name, "invalid_param", f"{name} must be a list.")
        items = cast("Sequence[JsonValue]", given or ())
        if len(items) > chain.max_items:
            raise ParamError(
                name, "invalid_param", f"{name} takes at most {chain.max_items} items."
            )
        if not items:
            bypass_group(self.graph, chain.nodes, chain.links)
            return []
        targets = {resolve(self.graph, to): key for to, key in chain.set.items()}
        copies = repeat_group(self.graph, chain.nodes, chain.links, len(items))
        if uploaded:
            # ComfyUI lists a new file only when it is asked again, so its choices prove nothing.
            for item, ids in zip(items, copies, strict=True):
                for node, key in targets:
                    self.graph[ids[node]]["inputs"][key] = item
            return list(items)
        return [
            self._item(f"{name}[{n}]", chain, targets, item, ids)
            for n, (item, ids) in enumerate(zip(items, copies, strict=True))
        ]

    def _item(
        self,
        place: str,
        chain: Chain,
        targets: Mapping[tuple[str, str], str],
        item: JsonValue,
        ids: Mapping[str, str],
    ) -> JsonValue:
        """Set one item in its copy of the group; returns it with the literals of keys left out."""
        whole = set(targets.values()) == {"."}
        if whole:
            values: dict[str, JsonValue] = {".": item}
        elif isinstance(item, dict):
            values = {k: v for k, v in item.items() if v is not None}
        else:
            raise ParamError(place, "invalid_param", f"{place} must be an object.")
        for key in values.keys() - set(targets.values()):
            raise ParamError(
                f"{place}.{key}", "unknown_param", f"{place} has no field {shown(key)}."
            )
        for (node, name), key in targets.items():
            installed = key in chain.choices
            where = place if whole else f"{place}.{key}"
            if key in values:
                self._set(where, ids[node], name, values[key], installed=installed)
            elif installed:
                raise ParamError(where, "missing_param", f"{where} is required.")
            else:
                values[key] = self.graph[ids[node]]["inputs"].get(name)
        return values["."] if whole else values

    def _set(
        self,
        name: str,
        node: str,
        key: str,
        value: JsonValue,
        *,
        target: Target | None = None,
        installed: bool = False,
    ) -> None:
        spec = input_spec(self._info, self.graph[node], key)
        inputs = self.graph[node]["inputs"]
        if installed:
            check_installed(name, spec, value)
        elif target is not None:
            value = transformed(name, target, value)
            if target.transforms and spec is not None and spec.type == "INT":
                value = round(cast("float", value))
            if target.append:
                value = f"{inputs[key]}{value}"
        inputs[key] = checked(name, spec, value)
