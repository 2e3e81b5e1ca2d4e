"""Video: a picture set in motion."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, JsonValue
from pydantic_core import PydanticCustomError

from gateway.examples import MUG
from gateway.media import WHOLE, ImageUrl, Prompt, Seed, multiple_of
from gateway.tool import FileParams, Tool, ToolResult

VideoSide = Annotated[
    int,
    Field(ge=256, le=1280, json_schema_extra={"multipleOf": 16}),
    AfterValidator(multiple_of(16)),
    WHOLE,
]


def _four_n_plus_one(length: int) -> int:
    if length % 4 != 1:
        below = length - (length - 1) % 4
        # the model itself would drop the rest without a word
        raise PydanticCustomError(
            "frame_count",
            "must be a multiple of 4, plus 1: use {below} or {above}",
            {"below": below, "above": below + 4},
        )
    return length


class VideoParams(FileParams):
    """Parameters of `POST /api/video`."""

    image_url: ImageUrl = Field(description="The first frame; cropped to the size asked for.")
    prompt: Prompt | None = Field(
        default=None,
        description="What moves, and how. Absent: the workflow's own prompt.",
        examples=["steam rises from the mug, the camera moves slowly closer"],
    )
    width: VideoSide = Field(default=832, description="Width in pixels, a multiple of 16.")
    height: VideoSide = Field(default=480, description="Height in pixels, a multiple of 16.")
    length: Annotated[int, Field(ge=5, le=121), AfterValidator(_four_n_plus_one), WHOLE] = Field(
        default=33, description="Frames: a multiple of 4, plus 1."
    )
    steps: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(
        default=20, description="Sampling steps: more is slower and finer."
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )


class UsedVideoParams(BaseModel):
    """Every value really used."""

    prompt: str
    width: int
    height: int
    length: int
    steps: int
    seed: int


class VideoResult(ToolResult):
    """The video."""

    video_url: str = Field(description="Stable path of the video.")
    video_params: UsedVideoParams


def _size(values: Mapping[str, JsonValue]) -> float:
    """Count the pixels sampled, in millions: frames, steps and size together."""
    size = 1e-6
    for name, default in (("length", 33), ("steps", 20), ("width", 832), ("height", 480)):
        value = values.get(name)
        size *= value if isinstance(value, int | float) else default
    return size


VIDEO = Tool(
    name="video",
    summary="Make a video from a picture",
    description="Sets a picture in motion, as the prompt says. Waits for the result; a job that "
    "lasts longer, as most of these do, answers 202.",
    path="/api/video",
    files_path="/api/videos",
    prefix="videos",
    params=VideoParams,
    result=VideoResult,
    url_key="video_url",
    params_key="video_params",
    reported={name: name for name in UsedVideoParams.model_fields},
    default_variant="wan2.1-480p",
    timeout_s=2 * 3600,
    deadline_s=12 * 3600,
    size=_size,
    examples={
        "short": {"image_url": MUG, "length": 17, "steps": 10},
    },
)
