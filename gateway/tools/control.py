"""Guided generation: a new picture along the lines of another."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import DECIMAL, ImageUrl, Prompt, Seed, Side
from gateway.tool import PictureParams, Tool, ToolResult

_VARIANTS = {"depth": "z-image-turbo-depth", "pose": "z-image-turbo-pose"}
"""What is read off the picture by a model of its own is a workflow of its own."""


class ControlParams(PictureParams):
    """Parameters of `POST /api/control`."""

    image_url: ImageUrl = Field(
        description="The picture that guides; at most 4 times as long as wide, unless `width` and "
        "`height` are given."
    )
    control: Literal["canny", "depth", "pose", "ready"] = Field(
        default="canny",
        description="What of it guides: its edges, its depth, the poses in it, or `ready`: it is a "
        "control picture already.",
    )
    strength: Annotated[float, Field(ge=0, le=2), DECIMAL] = Field(
        default=1.0, description="How strictly the result keeps to it."
    )
    prompt: Prompt = Field(
        description="What the picture shows.", examples=["a modern living room in the evening"]
    )
    width: Side | None = Field(
        default=None,
        description="Width in pixels, a multiple of 16. Absent: as the picture's, at 1 megapixel.",
    )
    height: Side | None = Field(
        default=None,
        description="Height in pixels, a multiple of 16. Absent: as the picture's.",
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )

    def chosen_variant(self) -> str | None:
        """Name the variant asked for, or the one that reads off what is to guide."""
        return self.variant or _VARIANTS.get(self.control)


class UsedControlParams(BaseModel):
    """Every value really used."""

    control: str
    strength: float
    prompt: str
    width: int | None = Field(description="Null: the picture's own.")
    height: int | None = Field(description="Null: the picture's own.")
    seed: int


class ControlResult(ToolResult):
    """The picture."""

    image_url: str = Field(description="Stable path of the picture.")
    control_params: UsedControlParams


CONTROL = Tool(
    name="control",
    summary="Generate an image along another one",
    description="Makes a picture from a prompt whose edges, depth or poses are those of another.",
    path="/api/control",
    files_path="/api/images",
    prefix="controlled",
    params=ControlParams,
    result=ControlResult,
    url_key="image_url",
    params_key="control_params",
    reported={name: name for name in UsedControlParams.model_fields},
    default_variant="z-image-turbo",
    timeout_s=1800,
    deadline_s=6 * 3600,
    examples={
        "edges": {
            "image_url": MUG,
            "prompt": "a modern living room in the evening",
        },
    },
)
