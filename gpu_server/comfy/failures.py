"""From what ComfyUI says went wrong to a `Failure` in words of our own (pure).

ComfyUI's texts carry paths, tracebacks and whole lists of files: none of them passes this module.
A caller reads the names of nodes and inputs, the limits of an input and the value it received.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gpu_server.protocol import Failure, FailureKind


class RunFailed(Exception):
    """A run ended without result; `failure` says why."""

    def __init__(
        self, kind: FailureKind, code: str, message: str, *, node: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.failure = Failure(kind=kind, code=code, message=message, node=node)


class RunCancelled(Exception):
    """A run ended because it was asked to."""


class ComfyUnavailable(RunFailed):
    """ComfyUI can't be reached, or doesn't answer as it should."""

    def __init__(self, message: str = "ComfyUI does not answer") -> None:
        super().__init__("transient", "comfyui_unavailable", message)


_MODEL_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".gguf", ".onnx")
_SHOWN = 80
_GPU_WORDS = ("cuda", "cublas", "cudnn", "hip error", "nvidia")
_GPU_LOST = (
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid address space",
    "invalid program counter",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable",
    "unknown error",
    "initialization error",
    "driver shutting down",
    "fallen off the bus",
    "gpu is lost",
    "busy or unavailable",
    "no cuda-capable device",
    "no cuda gpus are available",
    "found no nvidia driver",
    "status_execution_failed",
    "status_internal_error",
    "status_mapping_error",
)
"""What CUDA calls sticky: its context stays broken until the process is started anew. Not here are
errors of one call: a kernel this GPU lacks, an argument out of range."""
_FATAL = frozenset(
    {
        "required_input_missing",
        "bad_linked_input",
        "return_type_mismatch",
        "exception_during_validation",
        "exception_during_inner_validation",
        "dependency_cycle",
    }
)
# What tells most about a prompt with several faults comes first: a caller can only mend `usage`.
_ORDER = ("missing_model", "workflow_rejected", "missing_input_file", "invalid_input")


def rejected(answer: object, graph: Mapping[str, Mapping[str, Any]]) -> RunFailed:
    """Explain an answer of POST /prompt that carries errors (400, or 200 with `node_errors`)."""
    body = _mapping(answer)
    found = [
        _validation(node_id, str(node.get("class_type", "")), _mapping(error))
        for node_id, node in _nodes(body.get("node_errors"))
        for error in _list(node.get("errors"))
    ]
    if found:
        return min(found, key=lambda each: _ORDER.index(each.failure.code))
    error = _mapping(body.get("error"))
    reason = {
        "prompt_no_outputs": "the workflow has no output node",
        "missing_node_type": "ComfyUI lacks a node class of the workflow",
        "invalid_prompt": "ComfyUI lacks a node class of the workflow",
        "invalid_prompt_id": "ComfyUI takes only a lowercase UUID as a run's id",
        "prompt_outputs_failed_validation": "the workflow's nodes form a cycle or do not fit",
    }.get(str(error.get("type")), "ComfyUI refused the workflow")
    return RunFailed("fatal", "workflow_rejected", reason, node=_blamed(error, graph))


def _blamed(error: Mapping[str, Any], graph: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the node an error of a whole prompt is about, if it names one of the graph's."""
    info = _mapping(error.get("extra_info"))
    told = re.search(r"#(.+?)'", str(error.get("details")))
    node_id = str(info.get("node_id") or (told and told[1]))
    return f"{node_id} {graph[node_id].get('class_type')}" if node_id in graph else None


def _validation(node_id: str, class_type: str, error: Mapping[str, Any]) -> RunFailed:
    node = f"{node_id} {class_type}".strip()
    info = _mapping(error.get("extra_info"))
    key, value, kind = info.get("input_name"), info.get("received_value"), str(error.get("type"))
    where = f"input {key} of {node}" if key else node
    if kind == "value_not_in_list" and _is_model(value):
        return RunFailed(
            "fatal", "missing_model", f"{where}: ComfyUI has no {_shown(value)}", node=node
        )
    if kind in _FATAL:
        return RunFailed("fatal", "workflow_rejected", f"{where} does not fit ({kind})", node=node)
    if kind == "custom_validation_failed" and class_type.startswith("Load"):
        # The file is one this service uploaded: the next attempt uploads it again.
        return RunFailed("transient", "missing_input_file", f"{where}: the file is gone", node=node)
    reason = {
        "value_smaller_than_min": f"is below the minimum{_limit(info, 'min')}",
        "value_bigger_than_max": f"is above the maximum{_limit(info, 'max')}",
        "value_not_in_list": "is none of the values the node offers",
        "invalid_input_type": "has the wrong type",
    }.get(kind, "is not accepted")
    return RunFailed("usage", "invalid_input", f"{where}: {_shown(value)} {reason}", node=node)


def verdict(entry: Mapping[str, Any]) -> RunFailed | None:
    """Read from a history entry why its run failed; None: it succeeded."""
    status = _mapping(entry.get("status"))
    if status.get("status_str", "success") == "success":
        return None
    told = [_list(each) for each in _list(status.get("messages"))]
    return execution_failure([(str(each[0]), _mapping(each[1])) for each in told])


def execution_failure(messages: Sequence[tuple[str, Mapping[str, Any]]]) -> RunFailed:
    """Explain a run that failed by its messages, of which the last one tells."""
    event, data = messages[-1] if messages else ("", _mapping(None))
    node = f"{data.get('node_id', '')} {data.get('node_type', '')}".strip() or None
    if event == "execution_interrupted":
        return RunFailed("transient", "interrupted", "the run was interrupted", node=node)
    class_type = data.get("node_type")
    what = f"node {class_type}" if class_type else "the workflow"
    error, text = str(data.get("exception_type", "")), str(data.get("exception_message", ""))
    if _is_out_of_memory(error, text):
        return RunFailed("transient", "out_of_memory", f"{what} ran out of memory", node=node)
    if _is_gpu_lost(text):
        return RunFailed("transient", "gpu_failed", f"the GPU failed in {what}", node=node)
    if error.endswith("UnidentifiedImageError"):
        return RunFailed("usage", "unreadable_image", f"{what} can't read the image", node=node)
    return RunFailed("fatal", "execution_failed", f"{what} failed", node=node)


def _is_out_of_memory(error: str, text: str) -> bool:
    low = text.lower()
    return (
        error.endswith(("OutOfMemoryError", "MemoryError"))
        or "can't allocate memory" in low
        or "out of memory" in low
    )


def _is_gpu_lost(text: str) -> bool:
    """Tell the errors after which nothing runs in ComfyUI's process any more."""
    low = text.lower()
    return any(word in low for word in _GPU_WORDS) and any(each in low for each in _GPU_LOST)


def _is_model(value: object) -> bool:
    return isinstance(value, str) and value.lower().endswith(_MODEL_ENDINGS)


def _limit(info: Mapping[str, Any], name: str) -> str:
    spec = _list(info.get("input_config"))
    limit = _mapping(spec[1]).get(name) if len(spec) > 1 else None
    return f" {limit}" if isinstance(limit, int | float) and math.isfinite(limit) else ""


def _shown(value: object) -> str:
    if not isinstance(value, str | int | float | bool):
        return "the value"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _nodes(value: object) -> list[tuple[str, Mapping[str, Any]]]:
    return [(node_id, _mapping(node)) for node_id, node in _mapping(value).items()]


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
