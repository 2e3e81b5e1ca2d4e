"""Media under a caller's own id: a form in, one picture or video out, made by whatever fits."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Request, Response
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from gateway.api.access import CALLER
from gateway.api.boundary import MAX_BODY
from gateway.api.cards import MEDIA_PATH, CardView, card_of_job, card_path
from gateway.api.context import Context
from gateway.api.forms import MAX_TEXT_KB, form_body, form_of
from gateway.api.lookup import waited
from gateway.api.prefer import IdempotencyKey, PreferHeader, preference
from gateway.api.problems import SUBMIT_ERRORS, documented
from gateway.api.views import Views, as_json, failure
from gateway.calls import refused
from gateway.catalogue import Catalogue, Variant
from gateway.choices import Order
from gateway.db.cards import Card, CardMedia
from gateway.errors import InvalidParameters, JobCancelled, JobFailed
from gateway.inline import BASE64_PER_BYTE
from gateway.job import Job
from gateway.media import MAX_DATA_URI, MAX_PROMPT, Label, MediaUrl, Prompt, Style, WebAddress
from gateway.settings import Settings
from gateway.submission import Origin
from gateway.tool import AnyTool, JobOptions
from gateway.tools import CONCEPT, GENERATE, PORTRAIT, VIDEO

GENERATE_PATH = f"{MEDIA_PATH}/generate"
_MOST_FILES = 16
"""No workflow takes as many: what is too much for one is told as that."""
_MOST_INLINE = 5
"""As many as a workflow takes may come as `data:` URIs."""
_STEP, _LEAST, _MOST = 16, 256, 2048

AspectRatio = Literal[
    "1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "5:4", "4:5", "21:9", "9:21"
]


def _listed(value: object) -> object:
    """Read the JSON array that a text of a form holds."""
    if not isinstance(value, str):
        return value
    try:
        found: object = json.loads(value or "[]")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise PydanticCustomError(
            "not_a_json_array", 'must be a JSON array of addresses, such as ["/api/images/….png"]'
        )
    return cast("list[object]", found)


def _nothing(value: object) -> object:
    # what a browser sends of a field that was not filled in
    return None if value == "" else value


InputFiles = Annotated[
    tuple[MediaUrl, ...],
    Field(max_length=_MOST_FILES),
    BeforeValidator(_listed),
    WithJsonSchema({"type": "string", "maxLength": _MOST_INLINE * MAX_DATA_URI}),
]


def _reachable(card_id: str) -> str:
    if card_id in {".", ".."}:
        raise PydanticCustomError("not_an_id", "must not be a dot or two: no path can name it")
    return card_id


def _text_kb(settings: Settings) -> int:
    """Most of `input_files`, in KiB."""
    return MAX_TEXT_KB + int(_MOST_INLINE * settings.max_image_size_mb * 1024 * BASE64_PER_BYTE)


def largest_form(settings: Settings) -> int:
    """Bytes a call may have."""
    return _text_kb(settings) * 1024 + MAX_BODY


_Backend = Annotated[str, Field(max_length=100)]


class GenerateMedia(BaseModel):
    """Media about to be made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    card_id: Annotated[Label, AfterValidator(_reachable)] = Field(
        description="Any text you know it by; its media are read under it. Sent again, the card "
        "shows the newer media.",
        examples=["card-1"],
    )
    prompt: Prompt = Field(
        description="What it shows; of given pictures what to make of them, and it may call them "
        '"image 1" and so on.'
    )
    media_type: CardMedia = Field(description="`image` or `video`.")
    input_files: InputFiles = Field(
        default_factory=tuple,
        json_schema_extra={"default": "[]"},
        description="JSON array of addresses. For an image pictures to go by, for a video the "
        "picture it begins with.",
        examples=['["/api/images/5f0c0d6f3a8e4b21.png"]'],
    )
    aspect_ratio: AspectRatio = Field(default="1:1", description="Width to height.")
    modifier: Annotated[Style | None, BeforeValidator(_nothing)] = Field(
        default=None, description="Words that are appended to the prompt after a comma."
    )
    webhook_url: Annotated[WebAddress | None, BeforeValidator(_nothing)] = Field(
        default=None,
        description="Address that is sent the job once it has ended, signed as Standard Webhooks "
        "describe. Absent: none.",
    )
    backend: Annotated[_Backend | None, BeforeValidator(_nothing)] = Field(
        default=None,
        description="Where it must be carried out: `gpu`, `runpod`, or the name of a backend as "
        "`/health` shows it. Absent: as the settings say.",
    )

    @property
    def places(self) -> Order | None:
        """Where it may be made; None: as the settings say."""
        return None if self.backend is None else (self.backend,)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A tool, as a way to make what is asked for."""

    tool: AnyTool
    files: str | None = None
    """Parameter that takes the pictures; None = it takes none."""
    several: bool = False
    """That parameter is a list."""
    sized: bool = True
    """It has a width and a height; else its pictures are square."""
    presets: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])

    def most(self, variant: Variant) -> int:
        """How many pictures a variant takes."""
        return 0 if self.files is None else variant.workflow.files.get(self.files, 1)


_WAYS: Mapping[CardMedia, Sequence[_Way]] = {
    "image": (
        _Way(tool=GENERATE),
        # one picture to a square one, as the mode `edit` does it, on a smaller model
        _Way(tool=CONCEPT, files="image_url", sized=False, presets={"type": "image", "count": 1}),
        # editing by several pictures, of any size: nothing in it is about faces
        _Way(tool=PORTRAIT, files="face_images", several=True),
    ),
    "video": (_Way(tool=VIDEO, files="image_url"),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where media are made."""

    way: _Way
    variant: Variant


def media_generate_router(context: Context, views: Views) -> APIRouter:
    """Make `POST /api/media/generate`."""
    router = APIRouter(tags=["media"])

    @router.post(
        GENERATE_PATH,
        summary="Generate an image or a video for a card",
        response_model=None,
        responses={
            200: {"model": CardView, "description": "Done."},
            202: {
                "model": CardView,
                "description": "Not done yet; `Location` is where the card is read.",
            },
            **documented(*SUBMIT_ERRORS, JobCancelled, JobFailed),
            504: {**documented(JobFailed)[502], "description": "`deadline_exceeded`"},
        },
        openapi_extra=form_body(GenerateMedia, _EXAMPLES),
    )
    async def generate_media(
        request: Request, prefer: PreferHeader = None, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Takes a form, and waits for the media as the tools' routes wait for their results.

        Without input files an image is generated; with one or several it is what the prompt makes
        of them. A video begins with the one picture given.
        """
        settings = context.settings
        async with form_of(request, GenerateMedia, text_kb=_text_kb(settings)) as asked:
            pass
        wanted = preference(prefer, default=settings.default_wait, longest=settings.request_timeout)
        card, taken = await _submitted(context, asked, idempotency_key)
        job = await waited(context, taken, wanted.wait)
        if (error := failure(job)) is not None:
            raise error
        headers = {"Preference-Applied": wanted.applied} if wanted.applied else {}
        view = card_of_job(views, card, job)
        if job.status == "completed":
            return as_json(view, headers=headers)
        return as_json(view, 202, headers | {"Location": card_path(card.id)})

    return router


async def _submitted(context: Context, asked: GenerateMedia, key: str | None) -> tuple[Card, Job]:
    """Take the call, and write the card that shows its job. Raises what `submit` raises."""
    place = _place(context.catalogue, asked)
    tool = place.way.tool
    origin = Origin(
        caller=CALLER,
        route=GENERATE_PATH,
        body=asked.model_dump(mode="json", exclude_unset=True),
        idempotency_key=key,
    )
    options = JobOptions(webhook_url=asked.webhook_url, backend=asked.backend)
    params = tool.params.model_validate(_values(place, asked))
    try:
        job, _ = await context.submission.submit(tool, params, origin, options)
    except InvalidParameters as error:
        raise _as_sent(error, place.way) from None
    card = Card(
        caller=CALLER,
        id=asked.card_id,
        job_id=job.id,
        media_type=asked.media_type,
        created_at=job.created_at,
    )
    await context.cards.put(card)
    return card, job


def _place(catalogue: Catalogue, asked: GenerateMedia) -> _Place:
    """Choose where it is made: the first place that takes it and is not known to lack a model.

    Raises InvalidParameters where none takes it.
    """
    places = [
        _Place(way=way, variant=variant)
        for way in _WAYS[asked.media_type]
        for variant in catalogue.families(way.tool)
        # which checkpoint, nobody said
        if variant.argument is None
    ]
    fitting = [place for place in places if _takes(place, asked)]
    if not fitting:
        raise _too_few_or_many(places, asked)
    able = (
        place
        for place in fitting
        if catalogue.readiness(place.variant, asked.places).readiness != "missing"
    )
    return next(able, fitting[0])


def _takes(place: _Place, asked: GenerateMedia) -> bool:
    files, most = len(asked.input_files), place.way.most(place.variant)
    enough = files <= most if not most else 1 <= files <= most
    return enough and (place.way.sized or asked.aspect_ratio == "1:1")


def _too_few_or_many(places: Sequence[_Place], asked: GenerateMedia) -> InvalidParameters:
    most = max(place.way.most(place.variant) for place in places)
    if not asked.input_files:
        return refused("input_files", "missing", "a video begins with a picture: send its address")
    pictures = "one picture" if most == 1 else f"{most} pictures"
    message = f"at most {pictures} for media_type {asked.media_type}"
    return refused("input_files", "too_long", message)


def _values(place: _Place, asked: GenerateMedia) -> dict[str, JsonValue]:
    way = place.way
    values: dict[str, JsonValue] = {**way.presets, "variant": place.variant.name}
    values["prompt"] = _prompt(asked)
    if way.files is not None:
        files = list[JsonValue](asked.input_files)
        values[way.files] = files if way.several else files[0]
    if way.sized:
        values["width"], values["height"] = _sides(place.variant, asked.aspect_ratio)
    return values


def _prompt(asked: GenerateMedia) -> str:
    prompt = f"{asked.prompt}, {asked.modifier}" if asked.modifier else asked.prompt
    if len(prompt) > MAX_PROMPT:
        message = f"follows the prompt after a comma: at most {MAX_PROMPT} characters together"
        raise refused("modifier", "string_too_long", message)
    return prompt


def _sides(variant: Variant, ratio: AspectRatio) -> tuple[int, int]:
    """Find the size of exactly that ratio which is nearest to the variant's usual area."""
    across, down = (int(number) for number in ratio.split(":"))
    common = math.gcd(across, down)
    limits = [variant.workflow.limits.get(name) for name in ("width", "height")]
    step = math.lcm(*(int((each and each.multiple_of) or _STEP) for each in limits))
    unit = (across // common * step, down // common * step)
    bounds = [
        range(int((each and each.minimum) or _LEAST), int((each and each.maximum) or _MOST) + 1)
        for each in limits
    ]
    allowed = [
        (unit[0] * times, unit[1] * times)
        for times in range(1, _MOST // step + 1)
        if unit[0] * times in bounds[0] and unit[1] * times in bounds[1]
    ]
    if not allowed:
        message = f"{variant.name} makes nothing of that shape: take one nearer to 1:1"
        raise refused("aspect_ratio", "not_taken", message)
    usual = math.prod(_usual(variant, name) for name in ("width", "height"))
    return min(allowed, key=lambda size: abs(math.log(size[0] * size[1] / usual)))


def _usual(variant: Variant, name: str) -> float:
    value = variant.workflow.defaults.get(name)
    return value if isinstance(value, int | float) and value > 0 else 1024


def _as_sent(error: InvalidParameters, way: _Way) -> InvalidParameters:
    """Name the tool's parameters as the form does."""

    def named(place: str) -> str:
        name, _, number = place.partition(".")
        if name == way.files:
            return f"input_files.{number or 0}"
        return "aspect_ratio" if name in {"width", "height"} else place

    moved = [one.model_copy(update={"field": named(one.field)}) for one in error.errors]
    return type(error)(moved)


_EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "an image": {
        "card_id": "mug",
        "prompt": "a photo of a ceramic mug on a wooden table",
        "media_type": "image",
        "aspect_ratio": "4:3",
        "modifier": "soft light",
    },
}
