"""The first clients' route: a mode is a name for a tool with presets."""

import asyncio
import base64
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Response
from pydantic import BaseModel, Field, JsonValue, ValidationError

from gateway.api.access import CALLER
from gateway.api.boundary import MAX_BODY
from gateway.api.context import Context
from gateway.api.lookup import job_of, waited
from gateway.api.prefer import IdempotencyKey, PreferHeader, preference
from gateway.api.problems import SUBMIT_ERRORS, documented, from_pydantic
from gateway.api.views import as_json
from gateway.errors import (
    FieldError,
    InvalidParameters,
    NotFound,
    Unauthorized,
)
from gateway.inputs import BASE64_PER_BYTE
from gateway.job import Artifact, Job
from gateway.media import MAX_PROMPT, Prompt, Style
from gateway.settings import Settings
from gateway.storage.base import StorageError
from gateway.submission import Origin
from gateway.tool import JobOptions, Mode, ToolParams, options_in
from gateway.tools import MODES

MAX_INLINE = 32 * 1024 * 1024
"""Largest file sent inside JSON: larger ones are fetched by their address."""

Picture = Annotated[str, Field(max_length=140_000_000)]
"""Base64 of the largest picture the settings can allow, 100 MB."""

_STYLE = "styleId"
_BY_NAME = {mode.name: mode for mode in MODES}
_FIXED = {"prompt", "style", "face_images", "target_image", *JobOptions.model_fields}


class GenerateRequest(JobOptions):
    """A call by mode."""

    mode: Annotated[str, Field(max_length=100)] = Field(
        description="What to do; `GET /modes` lists the modes.", examples=["free"]
    )
    prompt: Prompt | None = Field(default=None, description="What the picture shows.")
    style: Style | None = Field(
        default=None,
        description="For modes whose tool takes `styleId`: a style of `GET /api/styles`. For any "
        "other, words that are appended to the prompt after a comma.",
    )
    face_images: tuple[Picture, ...] = Field(
        default=(),
        max_length=20,
        description="Pictures of faces as base64, for modes that take them; at most "
        "`MAX_FACE_IMAGES` of at most `MAX_IMAGE_SIZE_MB`.",
    )
    target_image: Picture | None = Field(
        default=None,
        description="A picture as base64, for modes that take one; at most `MAX_IMAGE_SIZE_MB`.",
    )
    extra_params: dict[str, JsonValue] = Field(
        default_factory=dict,
        max_length=100,
        json_schema_extra={"default": {}},
        description="Further parameters of the mode's tool (for `free`: of `POST /api/generate`).",
        examples=[{"width": 512, "height": 512, "num_inference_steps": 8}],
    )


class GenerateTask(BaseModel):
    """How a call by mode stands."""

    task_id: str
    status: Literal["queued", "done", "failed"]
    image: str | None = Field(description="The first picture as base64, once done.")
    error: str | None


class ModeView(BaseModel):
    """One mode."""

    name: str
    summary: str
    tool: str


class ModeList(BaseModel):
    """Every mode."""

    items: list[ModeView]
    next_cursor: None = None


_SMALL = {
    "mode": "free",
    "prompt": "a photo of a ceramic mug on a wooden table",
    "extra_params": {"width": 512, "height": 512, "num_inference_steps": 8},
}


def largest_body(settings: Settings) -> int:
    """Bytes a call by mode may have: the pictures any mode takes, as base64, and the rest."""
    faces = settings.max_face_images if any(mode.faces for mode in MODES) else 0
    most = max(faces, 1 if any(mode.target for mode in MODES) else 0)
    return int(most * settings.max_image_size_mb * 1024 * 1024 * BASE64_PER_BYTE) + MAX_BODY


def modes_router(context: Context) -> APIRouter:
    """Make `/generate` and `/modes`."""
    router = APIRouter(tags=["modes"])
    _add_generate(router, context)
    _add_reads(router, context)
    return router


def _add_generate(router: APIRouter, context: Context) -> None:
    settings = context.settings

    @router.post(
        "/generate",
        summary="Generate by mode",
        response_model=None,
        responses={
            200: {"model": GenerateTask, "description": "Taken, or done within `Prefer: wait`."},
            **documented(*SUBMIT_ERRORS),
        },
    )
    async def generate_by_mode(
        request: Annotated[
            GenerateRequest, Body(openapi_examples={"free": {"summary": "free", "value": _SMALL}})
        ],
        prefer: PreferHeader = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Answers `queued` at once; with `Prefer: wait=N` the result, if it is done by then."""
        mode = _mode(request.mode)
        params = _params(mode, request, settings)
        wanted = preference(prefer, default=0, longest=settings.request_timeout)
        sent = request.model_dump(mode="json", exclude_unset=True)
        origin = Origin(
            caller=CALLER, route="/generate", body=sent, idempotency_key=idempotency_key
        )
        try:
            job, _ = await context.submission.submit(mode.tool, params, origin, options_in(request))
        except InvalidParameters as error:
            raise _as_sent(error, mode, request) from None
        headers = {"Preference-Applied": wanted.applied} if wanted.applied else {}
        headers["Location"] = f"/generate/{job.id}"
        task = await _task(context, await waited(context, job, wanted.wait))
        return as_json(task, headers=headers)


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "/modes",
        summary="List the modes",
        response_model=None,
        responses={
            200: {"model": ModeList, "description": "Every mode."},
            **documented(Unauthorized),
        },
    )
    async def list_modes() -> Response:
        """What `mode` of `POST /generate` may be."""
        views = [ModeView(name=m.name, summary=m.summary, tool=m.tool.name) for m in MODES]
        return as_json(ModeList(items=views))

    @router.get(
        "/generate/{task_id}",
        summary="State and picture of a call by mode",
        response_model=None,
        responses={
            200: {"model": GenerateTask, "description": "How it stands."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def generate_by_mode_status(
        task_id: Annotated[
            str, Path(json_schema_extra={"maxLength": 100}, description="The `task_id` answered.")
        ],
    ) -> Response:
        """The same shape as the call's own answer."""
        return as_json(await _task(context, await job_of(context, task_id)))


def _mode(name: str) -> Mode:
    mode = _BY_NAME.get(name)
    if mode is None:
        raise _refused("mode", "unknown_mode", f"use one of {', '.join(sorted(_BY_NAME))}")
    return mode


def _params(mode: Mode, request: GenerateRequest, settings: Settings) -> ToolParams:
    pictures = _pictures(mode, request, settings)
    for name in pictures.keys() & request.extra_params.keys():
        raise _refused(f"extra_params.{name}", "conflict", "send the picture once")
    values: dict[str, JsonValue] = {**mode.presets, **request.extra_params, **pictures}
    added = request.style
    if _has_styles(mode) and added is not None:
        if _STYLE in request.extra_params:
            raise _refused(f"extra_params.{_STYLE}", "conflict", "send the style once")
        values[_STYLE], added = added, None
    if request.prompt is not None:
        if "prompt" in request.extra_params:
            raise _refused("extra_params.prompt", "conflict", "send the prompt once")
        values["prompt"] = _styled(request.prompt, added)
    elif added is not None:
        message = "is put behind the prompt: send it with prompt, or leave it out"
        raise _refused("style", "not_taken", message)
    try:
        return mode.tool.params.model_validate(values)
    except ValidationError as error:
        raise _as_sent(from_pydantic(error, ""), mode, request) from None


def _has_styles(mode: Mode) -> bool:
    return _STYLE in mode.tool.params.model_fields


def _styled(prompt: str, style: str | None) -> str:
    styled = f"{prompt}, {style}" if style else prompt
    if len(styled) > MAX_PROMPT:
        message = f"follows the prompt after a comma: at most {MAX_PROMPT} characters together"
        raise _refused("style", "string_too_long", message)
    return styled


def _as_sent(error: InvalidParameters, mode: Mode, request: GenerateRequest) -> InvalidParameters:
    """Name the tool's parameters where they stand in the request."""
    own = {mode.faces: "face_images", mode.target: "target_image", _STYLE: "style"}

    def named(field: str) -> str:
        name, dot, place = field.partition(".")
        if name in own and name not in request.extra_params:
            return f"{own[name]}{dot}{place}"
        return field if name in _FIXED - request.extra_params.keys() else f"extra_params.{field}"

    moved = [e.model_copy(update={"field": named(e.field)}) for e in error.errors]
    return type(error)(moved)


def _pictures(mode: Mode, request: GenerateRequest, settings: Settings) -> dict[str, JsonValue]:
    """Give the tool's parameters the pictures that came as base64."""
    values: dict[str, JsonValue] = {}
    _check_pictures(request, settings)
    if request.face_images:
        if mode.faces is None:
            raise _refused("face_images", "not_taken", f"{mode.name} takes no pictures of faces")
        values[mode.faces] = [_as_address(text) for text in request.face_images]
    if request.target_image is not None:
        if mode.target is None:
            raise _refused("target_image", "not_taken", f"{mode.name} takes no picture")
        values[mode.target] = _as_address(request.target_image)
    return values


def _as_address(text: str) -> str:
    # what it is, its content tells
    return text if text.startswith("data:") else f"data:;base64,{text}"


def _check_pictures(request: GenerateRequest, settings: Settings) -> None:
    if len(request.face_images) > settings.max_face_images:
        raise _refused("face_images", "too_long", f"at most {settings.max_face_images} pictures")
    most = settings.max_image_size_mb * 1024 * 1024
    named = [(f"face_images.{n}", text) for n, text in enumerate(request.face_images)]
    if request.target_image is not None:
        named.append(("target_image", request.target_image))
    for field, text in named:
        if len(text) > most * BASE64_PER_BYTE + 100:
            raise _refused(field, "too_large", f"at most {settings.max_image_size_mb} MB, decoded")


async def _task(context: Context, job: Job) -> GenerateTask:
    match job.status:
        case "completed":
            image, error = await _inline(context, job)
            return GenerateTask(task_id=job.id, status="done", image=image, error=error)
        case "failed":
            said = job.error.message if job.error else "The job failed."
            return GenerateTask(task_id=job.id, status="failed", image=None, error=said)
        case "cancelled":
            return GenerateTask(task_id=job.id, status="failed", image=None, error="Cancelled.")
        case _:
            return GenerateTask(task_id=job.id, status="queued", image=None, error=None)


async def _inline(context: Context, job: Job) -> tuple[str | None, str | None]:
    """Read the first picture as base64, or say why it is not sent."""
    if not job.artifacts:
        return None, None
    first = job.artifacts[0]
    if first.bytes > MAX_INLINE:
        return None, f"The picture is too large to be sent inline; GET /api/jobs/{job.id} has it."
    try:
        data = await _read(context, first)
    except (KeyError, StorageError):
        return None, "The picture is not in storage any more."
    encoded = await asyncio.to_thread(base64.b64encode, data)
    return encoded.decode("ascii"), None


async def _read(context: Context, artifact: Artifact) -> bytes:
    data = bytearray()
    async for piece in context.storage.read(artifact.key):
        data += piece
    return bytes(data)


def _refused(field: str, code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field=field, code=code, message=message)])
