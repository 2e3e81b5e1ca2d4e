"""What is found out about a picture or video, what is made of it, and within which limits."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

from gateway.thumbnails.unfit import UnfitCode

THUMBNAIL_TYPE = "image/webp"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaLimits:
    """How large a file may unfold and what reading it may cost; above it is `too_large`."""

    pixels: int = 80_000_000
    side: int = 16_384
    video_pixels: int = 8192 * 4352
    video_side: int = 8192
    video_seconds: float = 24 * 3600
    """Length of a video."""
    memory_bytes: int = 1536 * 2**20
    """Address space of the process that reads it."""
    cpu_seconds: int = 30
    seconds: float = 60
    made_bytes: int = 16 * 2**20
    """What the process may write."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MediaOrder(_Frozen):
    """Read `source`; with `target`, write it there as a WebP that fits `side` by `side`."""

    source: Path
    target: Path | None = None
    side: int | None = None
    moving: bool = True
    """Whether pictures with several frames are taken."""
    limits: MediaLimits


class Looked(_Frozen):
    """A picture decoded to its last pixel, or a video whose first frame was."""

    media_type: str
    width: int
    """As it is seen: turned as EXIF or the video says."""
    height: int
    frames: int | None = None
    """Of what moves, where the file says it."""
    duration_s: float | None = None
    """Of a video that says it."""


class Made(_Frozen):
    """A thumbnail that was written."""

    media_type: Literal["image/webp"] = THUMBNAIL_TYPE
    width: int
    height: int
    bytes: int
    sha256: str


class MediaAnswer(_Frozen):
    """What the process says before it ends."""

    looked: Looked | None = None
    made: Made | None = None
    code: UnfitCode | None = None
    message: str = ""
    errno: int | None = None
    """Why the thumbnail could not be written: no fault of the file."""
