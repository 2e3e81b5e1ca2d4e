"""Portraits: a person from pictures of their face."""

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import WHOLE, ImageUrl, Prompt, Seed, Side
from gateway.tool import PictureParams, StyledParams, Tool, ToolResult


class PortraitParams(StyledParams, PictureParams):
    """Parameters of `POST /api/portrait`."""

    face_images: tuple[ImageUrl, ...] = Field(
        min_length=1,
        max_length=5,
        description="1 to 5 pictures of one person's face; some variants take fewer. Whether there "
        "is a face on them is not checked.",
    )
    prompt: Prompt = Field(
        description='What the portrait shows; it may call the pictures "image 1" and so on.',
        examples=["a studio portrait of the person in image 1, soft light, grey backdrop"],
    )
    width: Side = Field(default=1024, description="Width in pixels, a multiple of 16.")
    height: Side = Field(default=1024, description="Height in pixels, a multiple of 16.")
    num_images: Annotated[int, Field(ge=1, le=4), WHOLE] = Field(
        default=1, description="Pictures made in one run, from one seed."
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )


class UsedPortraitParams(BaseModel):
    """Every value really used."""

    prompt: str = Field(description="As sent, without the words of the style.")
    styleId: str | None  # noqa: N815  # the name existing clients read
    width: int
    height: int
    num_images: int
    seed: int


class PortraitResult(ToolResult):
    """The portraits."""

    image_url: str = Field(description="Stable path of the first portrait.")
    portrait_params: UsedPortraitParams


PORTRAIT = Tool(
    name="portrait",
    summary="Make a portrait from pictures of a face",
    description="Makes portraits of the person on the pictures given, as the prompt says.",
    path="/api/portrait",
    files_path="/api/images",
    prefix="portraits",
    params=PortraitParams,
    result=PortraitResult,
    url_key="image_url",
    params_key="portrait_params",
    reported={name: name for name in UsedPortraitParams.model_fields},
    default_variant="flux2-klein-9b-multiref",
    timeout_s=1800,
    deadline_s=6 * 3600,
    examples={
        "one picture": {
            "face_images": [MUG],
            "prompt": "a studio portrait of the person in image 1, soft light, grey backdrop",
        },
        "in a style": {
            "face_images": [MUG],
            "prompt": "the person in image 1, head and shoulders",
            "styleId": "watercolor",
        },
    },
)
