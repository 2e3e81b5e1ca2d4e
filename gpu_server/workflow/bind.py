"""Parameters into a graph: the manifest's operations applied to a copy of the workflow."""

import math
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import JsonValue

from gpu_server.workflow.graph import Graph, resolve
from gpu_server.workflow.manifest import Chain, Limits, Manifest, Param, Target
from gpu_server.workflow.node_specs import InputSpec, ObjectInfo, input_spec
from gpu_server.workflow.surgery import bypass, bypass_group, fill, prune, repeat_group

MAX_SEED = 2**53 - 1
"""Largest seed every JSON reader keeps exact; ComfyUI itself takes up to 2^64 - 1."""


class ParamError(Exception):
    """A parameter's value does not fit the workflow: the caller's fault, named by parameter."""

    def __init__(self, param: str, code: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGraph:
    """A graph ready to be queued, and every value that went into it."""

    graph: Graph
    params: dict[str, JsonValue]


def draw_seed() -> int:
    """Draw a seed that survives JSON."""
    return secrets.randbelow(MAX_SEED + 1)


def default_of(graph: Graph, param: Param) -> JsonValue:
    """Read a default off the graph: the literal of the first target, before transforms."""
    if param.chain is not None:
        return []
    target = param.bind[0]
    node, name = resolve(graph, target.to)
    literal = graph[node]["inputs"].get(name)
    if target.template is not None:
        return None
    if target.map is not None:
        return next((k for k, v in target.map.items() if v == literal), None)
    if target.transforms and isinstance(literal, int | float):
        value = (literal - target.offset) / target.scale
        return int(value) if value.is_integer() else value
    return literal


def bind(
    graph: Graph,
    manifest: Manifest,
    params: Mapping[str, JsonValue],
    *,
    run_id: str,
    object_info: ObjectInfo,
    uploads: Mapping[str, Sequence[str]] | None = None,
    seed: Callable[[], int] = draw_seed,
) -> BoundGraph:
    """Make the graph of one run.

    `uploads` holds, per parameter, the names ComfyUI gave the uploaded files.
    Raises ParamError when a value does not fit, WorkflowError when the manifest does not.
    """
    given = {k: v for k, v in params.items() if v is not None}
    files = dict(uploads or {})
    check_names(manifest, given, files)
    # Inputs are only ever replaced, never changed in place: copying one level down is enough.
    copied: Graph = {i: {**n, "inputs": dict(n["inputs"])} for i, n in graph.items()}
    binder = _Binder(copied, object_info)
    for address, value in manifest.fixed.items():
        node, name = resolve(binder.graph, address)
        text = value.replace("{run_id}", run_id) if isinstance(value, str) else value
        binder.graph[node]["inputs"][name] = text
    used: dict[str, JsonValue] = {}
    # Chains and bypasses move links, so every plain value is set before them.
    for name, param in sorted(manifest.params.items(), key=lambda p: p[1].chain is not None):
        if param.upload is not None:
            binder.files(name, param, files.get(name, ()))
            continue
        value = given.get(name)
        if value is None and param.seed:
            value = seed()
        used[name] = binder.value(name, param, value)
    for name, param in manifest.params.items():
        if name not in given and name not in files and param.absent is not None:
            # Later operations of an absent parameter (unset, drop) belong here, beside bypass.
            for node in param.absent.bypass:
                bypass(binder.graph, node, object_info)
    prune(binder.graph, [o.node for o in manifest.outputs.values()])
    return BoundGraph(graph=fill(binder.graph, object_info), params=used)


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
        self._info = object_info

    def value(self, name: str, param: Param, value: JsonValue) -> JsonValue:
        """Apply one parameter; returns the value really used."""
        if param.chain is not None:
            return self._chain(name, param.chain, value)
        if value is None:
            return default_of(self.graph, param)
        if param.limits is not None:
            _check_limits(name, param.limits, value)
        if param.seed and isinstance(value, int) and not 0 <= value <= MAX_SEED:
            raise ParamError(name, "invalid_param", f"{name} must be within 0 and {MAX_SEED}.")
        for target in param.bind:
            node, key = resolve(self.graph, target.to)
            self._set(name, node, key, value, target=target, installed=param.choices is not None)
        return value

    def files(self, name: str, param: Param, uploaded: Sequence[str]) -> None:
        """Apply the uploaded files of one parameter."""
        if param.chain is not None:
            self._expand(name, param.chain, list(uploaded))
        elif len(uploaded) > 1:
            raise ParamError(name, "invalid_param", f"{name} takes one file.")
        elif uploaded:
            for target in param.bind:
                node, key = resolve(self.graph, target.to)
                self.graph[node]["inputs"][key] = uploaded[0]

    def _chain(self, name: str, chain: Chain, value: JsonValue) -> JsonValue:
        if value is None:
            value = []
        if not isinstance(value, list):
            raise ParamError(name, "invalid_param", f"{name} must be a list.")
        return self._expand(name, chain, value)

    def _expand(self, name: str, chain: Chain, items: Sequence[JsonValue]) -> list[JsonValue]:
        if len(items) > chain.max_items:
            raise ParamError(
                name, "invalid_param", f"{name} takes at most {chain.max_items} items."
            )
        if not items:
            bypass_group(self.graph, chain.nodes, chain.links)
            return []
        targets = {resolve(self.graph, to): key for to, key in chain.set.items()}
        copies = repeat_group(self.graph, chain.nodes, chain.links, len(items))
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
        if installed:
            _check_installed(name, spec, value)
        elif target is not None:
            value = _transformed(name, target, value)
            if target.transforms and spec is not None and spec.type == "INT":
                value = round(cast("float", value))
        self.graph[node]["inputs"][key] = checked(name, spec, value)


def _transformed(name: str, target: Target, value: JsonValue) -> JsonValue:
    if target.map is not None:
        key = str(value).lower() if isinstance(value, bool) else str(value)
        if key not in target.map:
            raise ParamError(
                name, "invalid_param", f"{name} must be one of {', '.join(target.map)}."
            )
        return target.map[key]
    if target.template is not None:
        if not isinstance(value, str):
            raise ParamError(name, "invalid_param", f"{name} must be a string.")
        return target.template.replace("{value}", value)
    if not target.transforms:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParamError(name, "invalid_param", f"{name} must be a number.")
    result = value * target.scale + target.offset
    if target.clamp is not None:
        result = max(target.clamp[0], min(target.clamp[1], result))
    return result if isinstance(value, float) or not float(result).is_integer() else int(result)


def _check_limits(name: str, limits: Limits, value: JsonValue) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParamError(name, "invalid_param", f"{name} must be a number.")
    if limits.minimum is not None and value < limits.minimum:
        raise ParamError(name, "invalid_param", f"{name} must be at least {limits.minimum:g}.")
    if limits.maximum is not None and value > limits.maximum:
        raise ParamError(name, "invalid_param", f"{name} must be at most {limits.maximum:g}.")
    if limits.multiple_of is not None and value % limits.multiple_of:
        raise ParamError(
            name, "invalid_param", f"{name} must be a multiple of {limits.multiple_of:g}."
        )


def _check_installed(name: str, spec: InputSpec | None, value: JsonValue) -> None:
    """The allow-list between a caller's string and a model input; the list itself stays here."""
    if not isinstance(value, str):
        raise ParamError(name, "invalid_param", f"{name} must be a string.")
    if spec is None or value not in (spec.choices or ()):
        raise ParamError(name, "model_not_installed", f"{shown(value)} is not installed.")


def checked(name: str, spec: InputSpec | None, value: JsonValue) -> JsonValue:
    """Check a value against a node's declaration, `step` included, which ComfyUI does not check."""
    if spec is None:
        return value
    match spec.type:
        case "INT" | "FLOAT":
            return _number(name, spec, value)
        case "STRING" if not isinstance(value, str):
            raise ParamError(name, "invalid_param", f"{name} must be a string.")
        case "BOOLEAN" if not isinstance(value, bool):
            raise ParamError(name, "invalid_param", f"{name} must be true or false.")
        case "COMBO" if spec.choices is not None and value not in spec.choices:
            raise ParamError(name, "invalid_param", f"{name} has no choice {shown(value)}.")
        case _:
            return value


def _number(name: str, spec: InputSpec, value: JsonValue) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParamError(name, "invalid_param", f"{name} must be a number.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParamError(name, "invalid_param", f"{name} must be a finite number.")
    if spec.type == "INT":
        if value != int(value):
            raise ParamError(name, "invalid_param", f"{name} must be a whole number.")
        value = int(value)
    low = cast("float | None", spec.options.get("min"))
    high = cast("float | None", spec.options.get("max"))
    if low is not None and value < low:
        raise ParamError(name, "invalid_param", f"{name} must be at least {low:g}.")
    if high is not None and value > high:
        raise ParamError(name, "invalid_param", f"{name} must be at most {high:g}.")
    step = cast("float | None", spec.options.get("step"))
    # A FLOAT's step is the widget's increment only; an INT's is a rule of the model.
    if spec.type == "INT" and step and (value - (low or 0)) % step:
        raise ParamError(
            name, "invalid_param", f"{name} must be {low or 0:g} plus a multiple of {step:g}."
        )
    return value


def shown(value: Any) -> str:  # noqa: ANN401 - any JSON value of a caller
    """Quote a caller's own value, cut to a length fit for a message."""
    text = repr(value)
    longest = 120
    return text if len(text) <= longest else text[:longest] + "…"
