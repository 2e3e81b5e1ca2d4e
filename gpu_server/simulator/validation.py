"""What `POST /prompt` checks before it queues anything, with ComfyUI's error types.

Checks walk upstream from the output nodes; a node no output needs is not looked at.
"""

import traceback
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from gpu_server.simulator.folders import Folders
from gpu_server.simulator.graph import is_link
from gpu_server.simulator.nodes import NODE_CLASSES, NodeClass

Error = dict[str, Any]
Graph = Mapping[str, Any]

_LONGEST_CHOICES_SHOWN = 20
_LINK_LENGTH = 2
_CONVERSIONS: dict[str, type] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a prompt: outputs that will run, and what was wrong."""

    outputs: list[str]
    error: Error | None
    node_errors: dict[str, Any]


@dataclass(slots=True)
class Checked:
    """One node's outcome; `valid` is false too when only something upstream is wrong."""

    valid: bool = True
    errors: list[Error] = field(default_factory=list[Error])


def validate(graph: Graph, targets: Container[object] | None, folders: Folders) -> Outcome:
    """Check a prompt; values are converted in place. Raises on what ComfyUI answers 500 to."""
    outputs: list[str] = []
    for node_id in graph:
        error = _class_error(node_id, graph[node_id])
        if error is not None:
            return Outcome([], error, {})
        node_class = NODE_CLASSES[graph[node_id]["class_type"]]
        if node_class.output_node and (targets is None or node_id in targets):
            outputs.append(node_id)
    if not outputs:
        return Outcome([], _error("prompt_no_outputs", "Prompt has no outputs"), {})
    return _validate_outputs(graph, outputs, Validator(graph, folders))


def _class_error(node_id: str, node: Any) -> Error | None:  # noqa: ANN401 - as posted
    details = f"Node ID '#{node_id}'"
    if "class_type" not in node:
        message = "Cannot execute because a node is missing the class_type property."
        return _error("invalid_prompt", message, details)
    if node["class_type"] not in NODE_CLASSES:
        message = f"Cannot execute because node {node['class_type']} does not exist."
        return _error("invalid_prompt", message, details)
    return None


def _error(kind: str, message: str, details: str = "", **extra_info: object) -> Error:
    return {"type": kind, "message": message, "details": details, "extra_info": extra_info}


def _validate_outputs(graph: Graph, outputs: list[str], validator: "Validator") -> Outcome:
    good: list[str] = []
    reasons: list[Error] = []
    node_errors: dict[str, Any] = {}
    for output in outputs:
        checked = validator.check_output(output)
        if checked.valid:
            good.append(output)
            continue
        reasons += checked.errors
        for node_id, result in validator.checked.items():
            # A node below a faulty one is invalid as well, but has no errors of its own to show.
            if result.valid or not result.errors:
                continue
            shown = node_errors.setdefault(
                node_id,
                {
                    "errors": result.errors,
                    "dependent_outputs": [],
                    "class_type": graph[node_id]["class_type"],
                },
            )
            shown["dependent_outputs"].append(output)
    if good:
        return Outcome(good, None, node_errors)
    details = "\n".join(f"{reason['message']}: {reason['details']}" for reason in reasons)
    message = "Prompt outputs failed validation"
    return Outcome([], _error("prompt_outputs_failed_validation", message, details), node_errors)


class Validator:
    """Checks nodes of one prompt, each once."""

    def __init__(self, graph: Graph, folders: Folders) -> None:
        self.checked: dict[str, Checked] = {}
        self._graph = graph
        self._folders = folders
        self._open: set[str] = set()

    def check_output(self, node_id: str) -> Checked:
        """Check an output node and everything upstream of it."""
        try:
            return self._check(node_id)
        except Exception as error:  # noqa: BLE001 - reported to the caller, whatever it is
            reason = _exception(
                "exception_during_validation", "Exception when validating node", error
            )
            self.checked[node_id] = Checked(valid=False, errors=[reason])
            return self.checked[node_id]

    def _check(self, node_id: str) -> Checked:
        if node_id in self.checked:
            return self.checked[node_id]
        if node_id in self._open:
            # ComfyUI recurses until Python stops it and is left with no error to show.
            return Checked(valid=False)
        self._open.add(node_id)
        try:
            return self._check_new(node_id)
        finally:
            self._open.discard(node_id)

    def _check_new(self, node_id: str) -> Checked:
        node = self._graph[node_id]
        inputs: dict[str, Any] = node["inputs"]
        node_class = NODE_CLASSES[node["class_type"]]
        result = Checked()
        for name, (kind, options, required) in node_class.inputs(self._folders).items():
            if name not in inputs:
                if required:
                    missing = "Required input is missing"
                    error = _error("required_input_missing", missing, name, input_name=name)
                    result.errors.append(error)
                continue
            check = _InputCheck(name, kind, options, custom=name in node_class.checks)
            if isinstance(inputs[name], list):
                self._check_link(check, inputs[name], result)
            else:
                result.errors += check.value(inputs)
        result.errors += self._custom(node_class, inputs)
        result.valid = result.valid and not result.errors
        self.checked[node_id] = result
        return result

    def _check_link(self, check: "_InputCheck", link: list[Any], result: Checked) -> None:
        if len(link) != _LINK_LENGTH:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            result.errors.append(check.error("bad_linked_input", message, check.name, link))
            return
        source = link[0]
        source_class = NODE_CLASSES[self._graph[source]["class_type"]]
        received = cast("str", source_class.outputs[link[1]])
        if not _types_meet(received, check.kind):
            result.errors.append(check.mismatch(received, link))
            return
        try:
            if not self._check(source).valid:
                result.valid = False
        except Exception as error:  # noqa: BLE001 - reported to the caller, whatever it is
            result.valid = False
            reason = _exception(
                "exception_during_inner_validation", "Exception when validating inner node", error
            )
            reason["extra_info"] |= check.info() | {
                "exception_message": str(error),
                "linked_node": link,
            }
            self.checked[source] = Checked(valid=False, errors=[reason])

    def _custom(self, node_class: NodeClass, inputs: Mapping[str, Any]) -> list[Error]:
        errors: list[Error] = []
        for name, check in node_class.checks.items():
            if name not in inputs:
                continue
            value = None if is_link(inputs[name]) else inputs[name]
            fault = check(self._folders, value)
            if fault is not None:
                message = "Custom validation failed for node"
                details = f"{name} - {fault}"
                error = _error("custom_validation_failed", message, details, input_name=name)
                errors.append(error)
        return errors


@dataclass(frozen=True, slots=True)
class _InputCheck:
    """The declaration of one input, and what can be wrong with a value for it."""

    name: str
    kind: str | list[str]
    options: dict[str, Any]
    custom: bool

    def info(self) -> dict[str, Any]:
        return {"input_name": self.name, "input_config": [self.kind, self.options]}

    def error(self, kind: str, message: str, details: str, received: object) -> Error:
        return _error(kind, message, details, **self.info(), received_value=received)

    def mismatch(self, received: str, link: list[Any]) -> Error:
        details = f"{self.name}, received_type({received}) mismatch input_type({self.kind})"
        message = "Return type mismatch between linked nodes"
        extra = {**self.info(), "received_type": received, "linked_node": link}
        return _error("return_type_mismatch", message, details, **extra)

    def value(self, inputs: dict[str, Any]) -> list[Error]:
        """Convert a plain value in place and check it."""
        value = _unwrapped(inputs[self.name])
        try:
            inputs[self.name] = value
            if isinstance(self.kind, str) and self.kind in _CONVERSIONS:
                value = inputs[self.name] = _CONVERSIONS[self.kind](value)
        except Exception as error:  # noqa: BLE001 - reported to the caller, whatever it is
            message = f"Failed to convert an input value to a {self.kind} value"
            details = f"{self.name}, {value}, {error}"
            failed = self.error("invalid_input_type", message, details, value)
            failed["extra_info"]["exception_message"] = str(error)
            return [failed]
        if self.custom:
            return []
        if "min" in self.options and value < self.options["min"]:
            message = f"Value {value} smaller than min of {self.options['min']}"
            return [self.error("value_smaller_than_min", message, self.name, value)]
        if "max" in self.options and value > self.options["max"]:
            message = f"Value {value} bigger than max of {self.options['max']}"
            return [self.error("value_bigger_than_max", message, self.name, value)]
        return self._choice(value)

    def _choice(self, value: object) -> list[Error]:
        # Choices of the newer form, "COMBO" with options, are not checked, as in ComfyUI 0.3.64.
        if isinstance(self.kind, str) or value in self.kind:
            return []
        choices = self.kind
        few = len(choices) <= _LONGEST_CHOICES_SHOWN
        listed = str(choices) if few else f"(list of length {len(choices)})"
        details = f"{self.name}: '{value}' not in {listed}"
        error = self.error("value_not_in_list", "Value not in list", details, value)
        if not few:
            error["extra_info"]["input_config"] = None
        return [error]


def _unwrapped(value: Any) -> Any:  # noqa: ANN401 - as posted
    """Return a plain value; a list comes wrapped, because a bare one would be a link."""
    if not isinstance(value, dict):
        return value
    wrapped = cast("dict[str, Any]", value)
    return wrapped.get("__value__", wrapped)


def _types_meet(received: str, wanted: object) -> bool:
    if not isinstance(wanted, str):
        return False
    if "*" in (received, wanted):
        return True
    offered = {kind.strip() for kind in received.split(",")}
    return not offered.isdisjoint(kind.strip() for kind in wanted.split(","))


def _exception(kind: str, message: str, error: Exception) -> Error:
    frames = traceback.format_tb(error.__traceback__)
    name = exception_name(type(error))
    return _error(kind, message, str(error), exception_type=name, traceback=frames)


def exception_name(kind: type[BaseException]) -> str:
    """Name an exception class as ComfyUI does: qualified, unless it is built in."""
    plain = kind.__module__ == "builtins"
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"
