"""Types of tool parameters that several tools share, each with its bounds and its message."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, LiteralString, cast, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

MAX_SEED = 2**53 - 1
"""Largest seed every JSON reader keeps exact."""

MAX_PROMPT = 8000

MAX_ADDRESS = 4096
"""Most characters of a file's address that is no `data:` URI."""
MAX_DATA_URI = 140_000_000
"""Base64 of the largest picture the settings can allow, 100 MB."""

NO_CONTROL_CHARACTERS = r"^[^\x00-\x1f]+$"


def nearest(value: float, step: float, offset: float = 0) -> tuple[float, float]:
    """Find the allowed values just below and just above `value`."""
    below = offset + (value - offset) // step * step
    return below, below + step


def plain(number: float) -> str:
    """Write a number without a needless fraction."""
    return str(int(number)) if float(number).is_integer() else str(number)


def step_message(value: float, step: float) -> str:
    """Say which values near a wrong one are right."""
    below, above = nearest(value, step)
    return f"must be a multiple of {plain(step)}: use {plain(below)} or {plain(above)}"


def multiple_of(step: int) -> Callable[[int], int]:
    """Make the check that a whole number is a multiple; its message names the nearest."""

    def check(value: int) -> int:
        if value % step:
            raise PydanticCustomError(
                "multiple_of", "{reason}", {"reason": step_message(value, step)}
            )
        return value

    return check


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul_character", "must not contain the NUL character")
    return text


def _no_control(text: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise PydanticCustomError("control_character", "must not contain control characters")
    return text


def _not_blank(text: str) -> str:
    # C: control, format and unassigned characters; Z: every kind of space
    if all(unicodedata.category(character)[0] in "CZ" for character in text):
        raise PydanticCustomError("blank", "must not be blank")
    return text


def _web_address(text: str) -> str:
    try:
        parts = urlsplit(text)
        known = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    else:
        known = known and "@" not in parts.netloc
    if not known or any(character.isspace() or character < " " for character in text):
        raise PydanticCustomError(
            "not_a_web_address", "must be an http(s) address without user name or password"
        )
    return text


# what may follow is checked where the file is looked for
_MEDIA_ADDRESS = re.compile(
    r"(?:(?:https?|r2|s3|gs|local)://|/(?!/))[^\x00-\x20\x7f]+", re.IGNORECASE
)


def _media_address(text: str) -> str:
    if text[:5].lower() == "data:":
        return text
    if len(text) > MAX_ADDRESS:
        raise PydanticCustomError(
            "address_too_long",
            "must be at most {most} characters long, unless it is a data: URI",
            {"most": MAX_ADDRESS},
        )
    if not _MEDIA_ADDRESS.fullmatch(text):
        raise PydanticCustomError(
            "not_a_file_address",
            "must be an http(s) or storage address, a data: URI, or a path this API answered",
        )
    return text


def _number(code: LiteralString) -> Callable[[object], object]:
    def check(value: object) -> object:
        if isinstance(value, bool | str | bytes):
            raise PydanticCustomError(code, "must be a number")
        return value

    return check


WHOLE = BeforeValidator(_number("int_type"))
"""Keeps Pydantic from reading true as 1 and "8" as 8; JSON's 8.0 stays a whole number."""
DECIMAL = BeforeValidator(_number("float_type"))
"""Keeps Pydantic from reading true as 1.0 and "0.5" as 0.5."""

# An AfterValidator, so that bounds are checked first and the two values it names lie within them.
Side = Annotated[
    int,
    Field(ge=256, le=2048, json_schema_extra={"multipleOf": 16}),
    AfterValidator(multiple_of(16)),
    WHOLE,
]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE]
Prompt = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PROMPT),
    AfterValidator(_no_nul),
    AfterValidator(_not_blank),
]
Style = Annotated[
    str, Field(min_length=1, max_length=500), AfterValidator(_no_nul), AfterValidator(_not_blank)
]
Label = Annotated[
    str,
    Field(min_length=1, max_length=200),
    AfterValidator(_no_control),
    AfterValidator(_not_blank),
]
"""A short line for people."""
WebAddress = Annotated[
    str,
    Field(min_length=1, max_length=2000, json_schema_extra={"format": "uri"}),
    AfterValidator(_web_address),
]
VariantName = Annotated[str, Field(min_length=1, max_length=300, pattern=NO_CONTROL_CHARACTERS)]
NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT), AfterValidator(_no_nul)]
ModelFileName = Annotated[
    str,
    Field(min_length=1, max_length=255, pattern=NO_CONTROL_CHARACTERS),
]
"""A model file as ComfyUI lists it; only ever compared with what is installed."""

MediaUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_DATA_URI,
        description="Address of a file: `https://`, `http://`, `r2://`, `s3://`, `gs://`, "
        "`local://`, a base64 `data:` URI, or a path this API answered.",
        examples=[
            "https://example.com/mug.png",
            "/api/images/5f0c0d6f3a8e4b21.png",
            "data:image/png;base64,iVBORw0KGgo…",
        ],
        json_schema_extra={"format": "uri-reference"},
    ),
    AfterValidator(_media_address),
]
"""The address of a file a job reads; what it leads to is checked when the call is taken."""

MediaKind = Literal["image", "mask", "video", "model"]


@dataclass(frozen=True, slots=True)
class MediaInput:
    """Marks a parameter's MediaUrl, or those in its list, as a file the job reads."""

    kind: MediaKind


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaField:
    """A parameter whose value is one file or several."""

    kind: MediaKind
    most: int
    """How many files it takes."""


ImageUrl = Annotated[MediaUrl, MediaInput("image")]
MaskUrl = Annotated[MediaUrl, MediaInput("mask")]
VideoUrl = Annotated[MediaUrl, MediaInput("video")]
ModelUrl = Annotated[MediaUrl, MediaInput("model")]
"""A mesh."""


@cache
def media_fields(params: type[BaseModel]) -> Mapping[str, MediaField]:
    """Find the parameters that are files, by name.

    How many a list takes is the `max_length` of its own Field, not of one inside a union.
    """
    found: dict[str, MediaField] = {}
    for name, info in params.model_fields.items():
        marks = [mark for part in (*info.metadata, info.annotation) for mark in _marks(part)]
        if marks:
            inner = (info.annotation, *cast("tuple[object, ...]", get_args(info.annotation)))
            several = any(get_origin(part) in {tuple, list} for part in inner)
            limits = [getattr(rule, "max_length", None) for rule in info.metadata]
            most = max((limit for limit in limits if limit is not None), default=1)
            found[name] = MediaField(kind=marks[0].kind, most=most if several else 1)
    return found


def _marks(part: object) -> Iterator[MediaInput]:
    if isinstance(part, MediaInput):
        yield part
    for inner in cast("tuple[object, ...]", get_args(part)):
        yield from _marks(inner)
