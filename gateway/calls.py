"""From what a caller sent to the call a backend carries out: defaults, limits, seed, slots."""

import secrets
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field

from pydantic import JsonValue

from gateway.catalogue import Variant
from gateway.errors import FieldError, InvalidParameters
from gateway.job import Call, TrainedModel
from gateway.media import MAX_SEED, media_fields, plain, step_message
from gateway.tool import AnyTool, ToolParams
from gpu_server.protocol import FileOptions, PictureFormat
from gpu_server.workflow import Limits, Sizes, Workflow

_EXTENSIONS = {
    "image": "png",
    "video": "mp4",
    "audio": "flac",
    "model": "glb",
    "text": "txt",
    "file": "bin",
}
_OF_FORMAT: dict[PictureFormat, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
_AS_MADE = FileOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loras:
    """The LoRAs of a call, found and checked."""

    model: TrainedModel | None = None
    used: tuple[dict[str, JsonValue], ...] = ()
    given: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])


def values_of(params: ToolParams) -> dict[str, JsonValue]:
    """Collect what the caller set, without files: addresses are no values of a graph."""
    files = media_fields(type(params))
    return {name: value for name, value in params.bound().items() if name not in files}


def call_of(
    tool: AnyTool,
    variant: Variant,
    sent: Mapping[str, JsonValue],
    loras: Loras,
    timeout_s: float,
    *,
    files: FileOptions = _AS_MADE,
) -> Call:
    """Fill every default and draw the seed. Raises InvalidParameters."""
    workflow = variant.workflow
    _check_sent(variant, sent)
    values: dict[str, JsonValue] = {**workflow.defaults, **sent}
    if variant.argument is not None:
        values[variant.argument.param] = variant.file
    if loras.used:
        if "loras" not in workflow.manifest.params:
            raise refused("loras", "not_taken", f"{variant.name} loads no LoRAs: leave it out")
        values["loras"] = list[JsonValue](loras.used)
    for name, param in workflow.manifest.params.items():
        if param.seed and values.get(name) is None:
            values[name] = secrets.randbelow(MAX_SEED + 1)
    return Call(
        workflow=workflow.name,
        digest=workflow.digest,
        params=values,
        outputs=_slots(workflow, values),
        prefix=tool.prefix,
        models=_model_files(variant, loras),
        extensions=_extensions(workflow, files),
        timeout_s=timeout_s,
        files=files,
    )


def _extensions(workflow: Workflow, files: FileOptions) -> dict[str, str]:
    pictures = {"image": _OF_FORMAT[files.format]} if files.format else {}
    known = {**_EXTENSIONS, **pictures}
    return {name: known[output.kind] for name, output in workflow.outputs.items()}


def _check_sent(variant: Variant, sent: Mapping[str, JsonValue]) -> None:
    """Refuse what the variant does not take, or takes only within narrower bounds."""
    params, limits = variant.workflow.manifest.params, variant.workflow.limits
    choices = variant.workflow.choices
    errors: list[FieldError] = []
    for name, value in sent.items():
        if name not in params:
            errors.append(_not_taken(variant, name))
        elif name in limits and (found := _outside(limits[name], value)) is not None:
            code, message = found
            message = f"{message} (for {variant.name})"
            errors.append(FieldError(field=name, code=code, message=message))
        elif value not in choices.get(name, (value,)):
            message = f"must be one of {', '.join(map(str, choices[name]))} (for {variant.name})"
            errors.append(FieldError(field=name, code="literal_error", message=message))
    if errors:
        raise InvalidParameters(errors)


def check_files(variant: Variant, files: Mapping[str, Sized]) -> None:
    """Refuse files the variant does not read, or not so many, and a call without one it needs."""
    params = variant.workflow.manifest.params
    read = {name: param for name, param in params.items() if param.upload is not None}
    errors = [_not_taken(variant, name) for name in files if name not in read]
    for name, most in variant.workflow.files.items():
        if len(files.get(name, ())) > most:
            message = f"at most {most} (for {variant.name})"
            errors.append(FieldError(field=name, code="too_long", message=message))
    for name, param in read.items():
        if param.required and name not in files:
            message = f"is required (for {variant.name})"
            errors.append(FieldError(field=name, code="missing", message=message))
    if errors:
        raise InvalidParameters(errors)


def check_sizes(variant: Variant, call: Call, sizes: Sizes) -> None:
    """Refuse pictures whose size is known and does not fit the variant."""
    errors = [
        FieldError(
            field=call.as_sent(
                f"{found.param}.{found.number}" if len(sizes[found.param]) > 1 else found.param
            ),
            code=found.code,
            message=f"{found.message} (for {variant.name})",
        )
        for found in variant.workflow.misfits(call.params, sizes)
    ]
    if errors:
        raise InvalidParameters(errors)


def _not_taken(variant: Variant, name: str) -> FieldError:
    message = f"{variant.name} has no such parameter: leave it out or take another variant"
    return FieldError(field=name, code="not_taken", message=message)


def _outside(limits: Limits, value: JsonValue) -> tuple[str, str] | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if limits.minimum is not None and value < limits.minimum:
        return "greater_than_equal", f"must be at least {plain(limits.minimum)}"
    if limits.maximum is not None and value > limits.maximum:
        return "less_than_equal", f"must be at most {plain(limits.maximum)}"
    if limits.multiple_of is not None and value % limits.multiple_of:
        return "multiple_of", step_message(value, limits.multiple_of)
    return None


def _slots(workflow: Workflow, values: Mapping[str, JsonValue]) -> tuple[str, ...]:
    names: list[str] = []
    for output, spec in workflow.outputs.items():
        most = values.get(spec.max) if isinstance(spec.max, str) else spec.max
        names += [f"{output}/{n}" for n in range(most if isinstance(most, int) else 1)]
    return tuple(names)


def _model_files(variant: Variant, loras: Loras) -> tuple[str, ...]:
    files = [f"{m.directory}/{m.name}" for m in variant.workflow.models]
    if variant.argument is not None:
        files.append(f"{variant.argument.folder}/{variant.file}")
    return (*files, *(f"loras/{lora['name']}" for lora in loras.used))


def refused(field_name: str, code: str, message: str) -> InvalidParameters:
    """Make the error that refuses one field."""
    return InvalidParameters([FieldError(field=field_name, code=code, message=message)])
