"""The values a workflow brings itself, held against what its node classes declare."""

from dataclasses import replace
from typing import Any, cast

from gpu_server.workflow.graph import Graph, resolve
from gpu_server.workflow.manifest import Manifest, Param, Target
from gpu_server.workflow.node_specs import InputSpec
from gpu_server.workflow.sources import names_a_model
from gpu_server.workflow.values import ParamError, checked, shown

_NUMBERS = frozenset({"INT", "FLOAT"})
_PLAIN = frozenset({*_NUMBERS, "STRING", "BOOLEAN"})


def with_fixed(graph: Graph, manifest: Manifest) -> Graph:
    """Copy a graph and set what no parameter decides, as every run does first."""
    copied: Graph = {i: {**n, "inputs": dict(n["inputs"])} for i, n in graph.items()}
    for address, value in manifest.fixed.items():
        node, name = resolve(copied, address)
        copied[node]["inputs"][name] = value
    return copied


def unfit_literal(entry: InputSpec, value: object) -> str | None:
    """Say what is wrong with a value of the graph; None where ComfyUI takes it.

    It reads texts as numbers and most things as texts, and keeps to no step.
    """
    if entry.type not in _PLAIN:
        return None
    if isinstance(value, str) and entry.type in _NUMBERS:
        value = _number(value, whole=entry.type == "INT")
    if entry.type == "STRING" and isinstance(value, int | float):
        return None
    if entry.type == "BOOLEAN" and isinstance(value, int | float):
        return None
    loose = {key: bound for key, bound in entry.options.items() if key != "step"}
    return _wrong(replace(entry, options=loose), value)


def unfit_target(param: Param, target: Target, entry: InputSpec) -> str | None:
    """Say which value of a parameter an input would never take; None where none is known."""
    if param.choices is not None and entry.type in _PLAIN:
        return f"chooses one of {param.choices}, but the input takes {entry.type}"
    for value in (target.map or {}).values():
        # a model that is not there may be put there
        if not (entry.type == "COMBO" and names_a_model(value)):
            wrong = _wrong(entry, value)
            if wrong is not None:
                return f"map: {wrong}"
    return None


def _wrong(entry: InputSpec, value: object) -> str | None:
    try:
        checked("it", entry, cast("Any", value))
    except ParamError as error:
        return f"{shown(value)}: {error.message}"
    return None


def _number(text: str, *, whole: bool) -> object:
    """Read a text as a number, as ComfyUI does; itself where it is none."""
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text
