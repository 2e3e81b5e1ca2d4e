"""What a job asks for: a RunRequest of the gateway, or a plain call of somebody without one."""

import json
import mimetypes
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gpu_server.catalogue import Catalogue, WorkflowMismatch
from gpu_server.protocol import (
    MAX_SLOTS,
    FileOptions,
    InputFile,
    PictureFormat,
    RunRequest,
    Slot,
    WorkflowRef,
)
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.inline import media_type_of
from gpu_server.serverless.tools import CHOOSING, MODEL3D, Endpoint
from gpu_server.workflow import Workflow, WorkflowError

_EXTENSIONS = {"image": "png", "video": "mp4", "audio": "flac", "model": "glb"}
_MEDIA_TYPES = {
    "image": "image/png",
    "mask": "image/png",
    "audio": "audio/mpeg",
    "video": "video/mp4",
    "model": "model/gltf-binary",
}
_SLOT_LIFETIME_S = 86_400
_DEFAULT_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A job that can be carried out."""

    run_id: str
    request: RunRequest
    workflow: Workflow
    plain: bool
    files: FileOptions = field(default_factory=FileOptions)
    """How a plain call's files are handed over."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where they go in the bucket, by slot; empty: into the result."""
    mesh: str | None = None
    """The output whose first file, cleaned and normalised, is all that is handed over."""


class _Options(BaseModel):
    """Keys of a plain call that say how its files are handed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep_metadata: bool = False
    output_format: PictureFormat | None = None
    output_quality: Annotated[int, Field(ge=1, le=100)] | None = None


def is_plain(raw: object) -> bool:
    """Tell the two forms apart: only a RunRequest has an object in `workflow`, or a graph."""
    if not isinstance(raw, dict):
        return True
    asked = cast("dict[str, object]", raw)
    return not (isinstance(asked.get("workflow"), dict) or "graph" in asked)


def read_request(raw: dict[str, JsonValue], catalogue: Catalogue) -> Call:
    """Read a RunRequest, which may carry the `run_id` it goes by; raises CallFailed."""
    asked = dict(raw)
    run_id = _run_id(asked.pop("run_id", None))
    try:
        request = RunRequest.model_validate(asked)
    except ValidationError as error:
        raise _invalid(error) from None
    try:
        workflow = catalogue.find(request)
    except WorkflowMismatch as error:
        message = f"{error}; send graph and manifest inline"
        raise CallFailed("fatal", "workflow_mismatch", message) from None
    except WorkflowError as error:
        raise CallFailed("fatal", "workflow_invalid", str(error)) from None
    return Call(run_id=run_id, request=request, workflow=workflow, plain=False)


def require_text(raw: object) -> None:
    """Raise CallFailed for what ComfyUI would choke on after the work is done."""
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        message = "input must be valid Unicode text: it holds half a surrogate pair"
        raise CallFailed("usage", "invalid_request", message) from None
    except RecursionError:
        raise CallFailed("usage", "invalid_request", "input is nested too deeply") from None


async def read_plain(raw: object, endpoint: Endpoint, bucket: Bucket | None) -> Call:
    """Read a plain call; raises CallFailed naming the key that is wrong."""
    if not isinstance(raw, dict):
        raise CallFailed("usage", "invalid_request", "input must be an object")
    asked = {k: v for k, v in cast("dict[str, JsonValue]", raw).items() if v is not None}
    workflow = endpoint.chosen(asked)
    files = _options({k: asked.pop(k) for k in _Options.model_fields if k in asked})
    run_id = str(uuid.uuid4())
    given: dict[str, JsonValue] = {k: v for k, v in asked.items() if k not in CHOOSING}
    inputs: dict[str, list[InputFile]] = {}
    for name in workflow.files:
        if name in given:
            addresses = _several(given.pop(name))
            kind = workflow.manifest.params[name].upload or "image"
            inputs[name] = [await file_at(each, name, kind, bucket) for each in addresses]
    mesh = _mesh(workflow)
    keys = {} if bucket is None else _keys(workflow, given, run_id, bucket)
    request = RunRequest(
        workflow=WorkflowRef(name=workflow.name, digest=workflow.digest),
        params=given,
        inputs=inputs,
        outputs=[] if bucket is None or mesh else await _slots(keys, files, bucket),
        details=True,
    )
    return Call(
        run_id=run_id,
        request=request,
        workflow=workflow,
        plain=True,
        files=files,
        keys=keys,
        mesh=mesh,
    )


def _options(asked: Mapping[str, JsonValue]) -> FileOptions:
    try:
        options = _Options.model_validate(asked)
    except ValidationError as error:
        raise _invalid(error) from None
    return FileOptions(
        format=options.output_format,
        quality=options.output_quality,
        keep_metadata=options.keep_metadata,
    )


def _run_id(value: object) -> str:
    if value is None:
        return str(uuid.uuid4())
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise CallFailed("usage", "invalid_request", "run_id must be a UUID") from None


def _invalid(error: ValidationError) -> CallFailed:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "input"
    return CallFailed("usage", "invalid_request", f"{place}: {first['msg']}")


def _several(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


async def file_at(address: JsonValue, name: str, kind: str, bucket: Bucket | None) -> InputFile:
    """Read the address of a file that a plain call names; raises CallFailed naming the key."""
    if not isinstance(address, str):
        raise CallFailed("usage", "invalid_param", f"{name} must be an address, or a list of them")
    guessed = media_type_of(address) or mimetypes.guess_type(address.partition("?")[0])[0]
    media_type = guessed or _MEDIA_TYPES[kind]
    key = None if bucket is None else bucket.own_key(address)
    if bucket is not None and key is not None:
        link = await bucket.link(key, _SLOT_LIFETIME_S)
        return InputFile(url=link, media_type=media_type, ours=True)
    return InputFile(url=address, media_type=media_type, ours=False)


def _keys(
    workflow: Workflow, params: Mapping[str, JsonValue], run_id: str, bucket: Bucket
) -> dict[str, str]:
    values = {**workflow.defaults, **params}
    keys: dict[str, str] = {}
    for name, output in workflow.outputs.items():
        if output.kind == "text":
            continue
        most = values.get(output.max) if isinstance(output.max, str) else output.max
        count = int(most) if isinstance(most, int | float) else _DEFAULT_MAX
        for n in range(min(count, MAX_SLOTS - len(keys))):
            ending = _EXTENSIONS.get(output.kind, "bin")
            keys[f"{name}/{n}"] = key_of(run_id, f"{name}-{n}.{ending}", bucket)
    return keys


def key_of(run_id: str, name: str, bucket: Bucket) -> str:
    """Where a plain call's file of that name goes."""
    return bucket.key(f"{datetime.now(UTC):%Y/%m/%d}/{run_id}/{name}")


async def slot_at(key: str, name: str, files: FileOptions, bucket: Bucket) -> Slot:
    """The slot of a plain call's file."""
    url = await bucket.slot(key, _SLOT_LIFETIME_S)
    return Slot(name=name, url=url, sized=True, **files.model_dump())


def _mesh(workflow: Workflow) -> str | None:
    if workflow.tool != MODEL3D:
        return None
    return next((name for name, o in workflow.outputs.items() if o.kind == "model"), None)


async def _slots(keys: Mapping[str, str], files: FileOptions, bucket: Bucket) -> list[Slot]:
    return [await slot_at(key, name, files, bucket) for name, key in keys.items()]
