"""What each parameter takes, derived: from its node's declaration, else from the graph's value.

What the manifest says of it comes on top; it may only narrow what the node takes.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from pydantic import JsonValue, ValidationError

from gateway.media import MAX_PROMPT, MAX_SEED
from gateway.own_workflows import nodes
from gateway.own_workflows.faults import node_name, refused
from gpu_server.workflow import Graph
from gpu_server.workflow.bind import choices_of
from gpu_server.workflow.graph import resolve
from gpu_server.workflow.manifest import Chain, Param, Target
from gpu_server.workflow.node_specs import InputSpec, ObjectInfo
from gpu_server.workflow.param_schema import ParamSchema, SchemaType

MOST = 2**53 - 1
"""Largest whole number every JSON reader keeps exact."""
_LARGEST = 1e15
_MOST_FILE_NAME = 255
_TYPES: Mapping[str, SchemaType] = {
    "INT": "integer",
    "FLOAT": "number",
    "STRING": "string",
    "BOOLEAN": "boolean",
}


def schema_of(graph: Graph, name: str, param: Param, info: ObjectInfo | None) -> ParamSchema:
    """Say what a parameter takes. Raises InvalidParameters for a schema that cannot be."""
    try:
        return _narrowed(name, _derived(graph, param, info), param.json_schema)
    except ValidationError as error:
        said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        message = f"no value fits it together with what its nodes take: {said}"
        raise refused(f"params.{name}.schema", "no_value_fits", message) from None


def _narrowed(name: str, found: ParamSchema, stated: ParamSchema | None) -> ParamSchema:
    """Narrow what the nodes take by what the manifest says."""
    if stated is None:
        return found
    place = f"params.{name}.schema"
    if stated.type not in _allowed(found):
        message = f"is {stated.type}, but what it goes to takes {found.type}"
        raise refused(f"{place}.type", "wrong_type", message)
    for value in stated.enum or ():
        offered = found.enum is None or value in found.enum
        if not offered or _type_of(value) not in _allowed(found):
            message = f"{value!r} is nothing that it goes to takes"
            raise refused(f"{place}.enum", "wrong_choice", message)
    if (stated.items, stated.properties, stated.required) != (None, None, None):
        message = "what is in a list is read off the nodes: leave out items, properties, required"
        raise refused(place, "wrong_type", message)
    merged = {**_said(found), **_said(stated)}
    low, high = (_both(key, found, stated) for key in ("minimum", "maximum"))
    low = _aligned(low, found)
    many = _common_multiple(found.multiple_of, stated.multiple_of)
    return ParamSchema.model_validate(
        {**merged, "minimum": low, "maximum": high, "multiple_of": many, "step": found.step}
    )


def _said(schema: ParamSchema) -> dict[str, Any]:
    return schema.model_dump(exclude_none=True)


def _aligned(low: float | None, declared: ParamSchema) -> float | None:
    """Raise a bound to the next value a node takes: it counts its steps from its own minimum."""
    base, step = declared.minimum, declared.step
    if low is None or base is None or step is None:
        return low
    return base + math.ceil((low - base) / step) * step


def _allowed(found: ParamSchema) -> set[SchemaType | None]:
    return {None, found.type, "integer" if found.type == "number" else found.type}


def _both(key: str, one: ParamSchema, other: ParamSchema) -> float | None:
    """Take the narrower of two bounds."""
    known = [v for v in (getattr(one, key), getattr(other, key)) if v is not None]
    return (max if key == "minimum" else min)(known) if known else None


def _derived(graph: Graph, param: Param, info: ObjectInfo | None) -> ParamSchema:
    said = _description(graph, param)
    if param.upload is not None:
        several = param.chain is not None or bool(param.items)
        one = ParamSchema(type="string", description=said)
        return ParamSchema(type="array", max_items=param.most, description=said) if several else one
    if param.chain is not None:
        return _list_of(graph, param.chain, info, said)
    choices = choices_of(param)
    if choices:
        return ParamSchema.model_validate(
            {"type": _type_of(choices[0]), "enum": choices, "description": said}
        )
    if param.seed:
        return ParamSchema(
            type="integer",
            minimum=0,
            maximum=MAX_SEED,
            description="Drawn at random when absent; the result tells it.",
        )
    if param.choices is not None:
        text = f"{said} One of the installed {param.choices}."
        return ParamSchema(type="string", max_length=_MOST_FILE_NAME, description=text)
    taken = [_target(graph, target, info) for target in param.bind]
    return _bounded(_common(taken), param).model_copy(update={"description": said})


def _description(graph: Graph, param: Param) -> str:
    target = next(iter(param.targets), None)
    if target is None:
        return "Changes the graph."
    node, key = resolve(graph, target.to)
    where = f"{node_name(node, graph[node])}."
    if param.upload is not None:
        return f"The {param.upload} that {where[:-1]} reads."
    return f"`{key}` of {where}"


def _target(graph: Graph, target: Target, info: ObjectInfo | None) -> ParamSchema:
    """Say what one input takes of what the caller sends."""
    node, key = resolve(graph, target.to)
    value: JsonValue = graph[node]["inputs"].get(key)
    if target.template is not None or target.append:
        return ParamSchema(type="string")
    if target.transforms:
        return ParamSchema(type="number")
    spec = nodes.input_of(info, graph[node], key)
    return _declared(spec) if spec is not None and spec.type in _TYPES else _as_is(value)


def _declared(spec: InputSpec) -> ParamSchema:
    kind = _TYPES[spec.type]
    if kind not in {"integer", "number"}:
        return ParamSchema(type=kind)
    low, high = (_number(spec.options.get(bound)) for bound in ("min", "max"))
    # A FLOAT's step is the widget's increment only; an INT's is a rule of the model.
    step = _number(spec.options.get("step")) if kind == "integer" else None
    if step is None or step <= 1:
        return ParamSchema(type=kind, minimum=low, maximum=high)
    if (low or 0) % step:
        return ParamSchema(type=kind, minimum=low, maximum=high, step=step)
    return ParamSchema(type=kind, minimum=low, maximum=high, multiple_of=step)


def _number(value: object) -> float | None:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(cast("float", value)) if plain else None


def _common_multiple(one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    if all(value.is_integer() for value in known):
        return float(math.lcm(*map(int, known))) if known else None
    return max(known)


def _as_is(value: JsonValue) -> ParamSchema:
    # a link that a value takes the place of says nothing of the value
    return (
        ParamSchema(type="number") if isinstance(value, list) else ParamSchema(type=_type_of(value))
    )


def _type_of(value: JsonValue) -> SchemaType:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            return "string"


def _common(taken: list[ParamSchema]) -> ParamSchema:
    """Say what all inputs of a parameter take."""
    first, *others = taken
    found = _said(first)
    for other in others:
        if {first.type, other.type} == {"integer", "number"}:
            found["type"] = "integer"
        current = ParamSchema.model_validate(found)
        for key in ("minimum", "maximum"):
            found[key] = _both(key, current, other)
        found["step"] = max(filter(None, (current.step, other.step)), default=None)
        found["multiple_of"] = _common_multiple(current.multiple_of, other.multiple_of)
    return ParamSchema.model_validate(found)


def _bounded(found: ParamSchema, param: Param) -> ParamSchema:
    """Narrow by the manifest's limits, and leave nothing without a bound."""
    limits = param.limits
    stated = ParamSchema.model_validate(limits.model_dump(exclude_none=True)) if limits else found
    changes: dict[str, Any] = {
        "multiple_of": _common_multiple(found.multiple_of, stated.multiple_of)
    }
    if found.type == "string":
        changes["max_length"] = MAX_PROMPT
    elif found.type in {"integer", "number"}:
        most = MOST if found.type == "integer" else _LARGEST
        widest = ParamSchema(minimum=-most, maximum=most)
        for key in ("minimum", "maximum"):
            narrowed = _both(key, found, stated)
            changes[key] = _both(key, ParamSchema.model_validate({key: narrowed}), widest)
        changes["minimum"] = _aligned(changes["minimum"], found)
    return found.model_copy(update=changes)


def _list_of(graph: Graph, chain: Chain, info: ObjectInfo | None, said: str) -> ParamSchema:
    properties: dict[str, ParamSchema] = {}
    for to, key in chain.set.items():
        if key in chain.choices:
            one = ParamSchema(type="string", max_length=_MOST_FILE_NAME)
        else:
            one = _bounded(_target(graph, Target(to=to), info), Param(seed=True))
        properties[key] = one.model_copy(update={"description": f"Goes to {to}."})
    whole = properties.get(".")
    item = whole or ParamSchema(
        type="object", properties=properties, required=tuple(sorted(chain.choices))
    )
    return ParamSchema(type="array", max_items=chain.max_items, items=item, description=said)
