"""Inputs and outputs marked in the graph itself, by the titles of its nodes.

`input: prompt` makes the node's one value the parameter `prompt`; `input: steps, cfg` and
`input: prompt.text` say which of several. `output: picture` names a node whose files are delivered.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from gateway.errors import FieldError, InvalidParameters
from gateway.own_workflows import nodes
from gateway.own_workflows.faults import fault, node_name, place_of
from gpu_server.protocol import MAX_SLOTS
from gpu_server.workflow import Graph
from gpu_server.workflow.file_inputs import file_inputs
from gpu_server.workflow.node_specs import InputSpec, ObjectInfo
from gpu_server.workflow.sources import names_a_model

_MARK = re.compile(r"\s*(input|output)s?\s*:(.*)", re.IGNORECASE | re.DOTALL)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
MOST_FILES = 16
"""Slots of an output that does not say how many files it may have."""

Json = dict[str, JsonValue]


class _Wrong(Exception):
    """A mark that cannot be followed; the message says why and what to write."""


def marked_params(graph: Graph, info: ObjectInfo | None) -> dict[str, Json]:
    """Make the manifest's `params` from the marks; raises InvalidParameters naming each node."""
    found: dict[str, Json] = {}
    errors: list[FieldError] = []
    for node_id, node in graph.items():
        for part in _marks(node, "input"):
            try:
                name, key = _meant(info, node, part)
                _join(found, name, _param(info, node_id, node, key))
            except _Wrong as wrong:
                message = f"{node_name(node_id, node)}: {wrong}"
                errors.append(fault(place_of(node_id), "bad_mark", message))
    if errors:
        raise InvalidParameters(errors)
    return found


def found_outputs(graph: Graph, info: ObjectInfo | None) -> dict[str, Json]:
    """Make the manifest's `outputs`: nodes marked so, else every node that keeps what it makes."""
    named: dict[str, str] = {}
    errors: list[FieldError] = []
    for node_id, node in graph.items():
        for name in _marks(node, "output"):
            said = node_name(node_id, node)
            if not _NAME.fullmatch(name):
                message = f"{said}: {_no_name(name)}: write output: {_proposed(name)}"
                errors.append(fault(place_of(node_id), "bad_mark", message))
            elif name in named:
                message = f"{said}: node {named[name]} is the output {name!r} already"
                errors.append(fault(place_of(node_id), "bad_mark", message))
            named[name] = node_id
    if errors:
        raise InvalidParameters(errors)
    if not named:
        for node_id, node in graph.items():
            if nodes.is_output(info, node):
                named[_plain_name(nodes.output_kind(graph, info, node_id), named)] = node_id
    if not named:
        message = (
            "no node keeps what it makes: add one, such as SaveImage, or title one `output: <name>`"
        )
        raise InvalidParameters([fault("graph", "no_outputs", message)])
    most = max(1, min(MOST_FILES, MAX_SLOTS // len(named)))
    return {
        name: {"node": node_id, "kind": nodes.output_kind(graph, info, node_id), "max": most}
        for name, node_id in named.items()
    }


def _marks(node: Mapping[str, Any], kind: str) -> Iterator[str]:
    title = node.get("_meta", {}).get("title")
    mark = _MARK.fullmatch(title) if isinstance(title, str) else None
    if mark is not None and mark[1].lower() == kind:
        for part in mark[2].split(","):
            yield part.strip()


def _meant(info: ObjectInfo | None, node: Mapping[str, Any], part: str) -> tuple[str, str]:
    """Read one mark: the parameter's name, and the input it stands for."""
    name, dot, key = (piece.strip() for piece in part.partition("."))
    if not _NAME.fullmatch(name):
        raise _Wrong(f"{_no_name(name)}: write input: {_proposed(name)}")
    values = nodes.widgets(info, node)
    if dot:
        if key not in values:
            raise _Wrong(f"it has no value {key!r}: {_listed(values)}")
        return name, key
    files = file_inputs(info, node)
    if name in values and (name in files or not files):
        return name, name
    if files:
        # what else such a node holds is named by a dot
        values = files
    if len(values) == 1:
        return name, values[0]
    raise _Wrong(f"say which value {name!r} is, as input: {name}.<value>: {_listed(values)}")


def _listed(values: list[str]) -> str:
    return f"it has {', '.join(values)}" if values else "all its inputs are links"


def _no_name(name: str) -> str:
    return f"{name[:64]!r} is no name: a to z, 0 to 9 and _, beginning with a letter"


def _proposed(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789")
    return plain[:64] or "prompt"


def _plain_name(kind: str, taken: Mapping[str, str]) -> str:
    stem = {"image": "images", "model": "models", "file": "files"}.get(kind, kind)
    names = (stem, *(f"{stem}_{n}" for n in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)


def _param(info: ObjectInfo | None, node_id: str, node: Mapping[str, Any], key: str) -> Json:
    """Make the parameter that fills one input."""
    target = f"{node_id}.{key}"
    if key in file_inputs(info, node):
        kind = nodes.upload_kind(info, node, key)
        if kind is None:
            raise _Wrong(f"{key} takes a kind of file that cannot be sent")
        return {"upload": kind, "required": True, "bind": [target]}
    spec, value = nodes.input_of(info, node, key), node["inputs"][key]
    if isinstance(value, dict | list):
        raise _Wrong(f"{key} holds no plain value")
    whole = isinstance(value, int) and not isinstance(value, bool)
    if key in nodes.SEEDS and whole:
        return {"seed": True, "bind": [target]}
    if spec is None:
        return _by_name(key, target)
    if spec.type == "COMBO":
        return _choice(spec, key, target)
    if spec.is_socket or spec.type not in {"INT", "FLOAT", "STRING", "BOOLEAN"}:
        raise _Wrong(f"{key} of the type {spec.type} cannot be an input")
    return {"bind": [target]}


def _by_name(key: str, target: str) -> Json:
    if key == "ckpt_name":
        return {"choices": "checkpoints", "bind": [target]}
    if key == "lora_name":
        return {"choices": "loras", "bind": [target]}
    if key.endswith("_name"):
        raise _Wrong(
            f"what {key} may be is not known while no GPU service answers: send it again once one "
            "does, or a manifest with `map`"
        )
    return {"bind": [target]}


def _choice(spec: InputSpec, key: str, target: str) -> Json:
    choices = [str(choice) for choice in spec.choices or ()]
    if key in {"ckpt_name", "lora_name"}:
        return _by_name(key, target)
    if not choices or any(map(names_a_model, choices)):
        raise _Wrong(
            f"{key} names a model file, which only an operator puts there: leave it as it is, or "
            "send a manifest whose `map` lists those a caller may name"
        )
    words: Json = {}
    for choice in spec.choices or ():
        words[str(choice).lower() if isinstance(choice, bool) else str(choice)] = choice
    return {"bind": [{"to": target, "map": words}]}


def _join(found: dict[str, Json], name: str, made: Json) -> None:
    """Add a parameter; one of that name fills this input, too."""
    known = found.setdefault(name, made)
    if known is made:
        return
    alike = {k: v for k, v in known.items() if k != "bind"}
    if alike != {k: v for k, v in made.items() if k != "bind"}:
        raise _Wrong(f"{name!r} is an input of another kind already: choose another name")
    before, added = known["bind"], made["bind"]
    known["bind"] = [*_list(before), *_list(added)]


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]
