"""One value on its way into a graph: transformed as its target says, checked as its node says."""

import json
import math
from typing import Any, cast

from pydantic import JsonValue

from gpu_server.workflow.manifest import Limits, Param, Target
from gpu_server.workflow.node_specs import InputSpec

MAX_SEED = 2**53 - 1
"""Largest seed every JSON reader keeps exact; ComfyUI itself takes up to 2^64 - 1."""


LONGEST_TEXT = 20_000
"""Most characters of a text that a template makes: a full prompt, and as much again around it."""


class ParamError(Exception):
    """A parameter's value does not fit the workflow: the caller's fault, named by parameter."""

    def __init__(self, param: str, code: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.message = message


def check_value(name: str, param: Param, value: JsonValue) -> None:
    """Raise ParamError for a value outside the manifest's own rules."""
    if param.limits is not None:
        _check_limits(name, param.limits, value)
    if param.seed and not (_is_whole(value) and 0 <= cast("int", value) <= MAX_SEED):
        message = f"{name} must be a whole number within 0 and {MAX_SEED}."
        raise ParamError(name, "invalid_param", message)
    words = [case for case in param.when if not param.bind]
    if words and not any(case.matches(value) for case in words):
        known = ", ".join(str(case.equals) for case in words)
        raise ParamError(name, "invalid_param", f"{name} must be one of {known}.")


def _is_whole(value: JsonValue) -> bool:
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def _word(value: JsonValue) -> str:
    """Write a value as the keys of a map are written."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def value_of(word: str) -> JsonValue:
    """Read a map's key as the caller writes the value: true and 2 are no texts."""
    try:
        value = cast("JsonValue", json.loads(word))
    except ValueError:
        return word
    return value if isinstance(value, bool | int | float) else word


def transformed(name: str, target: Target, value: JsonValue) -> JsonValue:
    """Change a value as its target says; raises ParamError when that can't be."""
    if target.map is not None:
        key = _word(value)
        if key not in target.map:
            raise ParamError(
                name, "invalid_param", f"{name} must be one of {', '.join(target.map)}."
            )
        return target.map[key]
    if target.template is not None:
        if not isinstance(value, str):
            raise ParamError(name, "invalid_param", f"{name} must be a string.")
        return _expanded(name, target.template, value)
    if not target.transforms:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParamError(name, "invalid_param", f"{name} must be a number.")
    result = _scaled(target, value)
    if not math.isfinite(result):
        raise ParamError(name, "invalid_param", f"{name} is too large: it becomes infinite.")
    return result if isinstance(value, float) or not float(result).is_integer() else int(result)


def _expanded(name: str, template: str, value: str) -> str:
    """Fill in a template; what it becomes is counted before any of it is made."""
    mark = "{value}"
    length = len(template) + template.count(mark) * (len(value) - len(mark))
    if length > LONGEST_TEXT:
        message = f"{name} is too long: inside its template it has {length} characters, at most "
        raise ParamError(name, "invalid_param", f"{message}{LONGEST_TEXT} are taken.")
    return template.replace(mark, value)


def _scaled(target: Target, value: float) -> float:
    try:
        result = value * target.scale + target.offset
    except OverflowError:
        # a whole number too large to become a float at all
        return math.inf
    return result if target.clamp is None else max(target.clamp[0], min(target.clamp[1], result))


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


def check_installed(name: str, spec: InputSpec | None, value: JsonValue) -> None:
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
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
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
