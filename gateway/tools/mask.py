"""Masking: where in a picture a named thing is."""

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import DECIMAL, WHOLE, ImageUrl, Label, Seed
from gateway.tool import FileParams, Tool, ToolResult


class MaskParams(FileParams):
    """Parameters of `POST /api/mask`."""

    image_url: ImageUrl = Field(description="The picture to look in.")
    object_name: Label = Field(
        description="What to find, in plain words; several things separated by commas.",
        examples=["mug"],
    )
    seed: Seed | None = Field(
        default=None,
        description="Taken and reported; the variants draw nothing at random.",
    )
    mask_dilation: Annotated[int, Field(ge=0, le=256), WHOLE] = Field(
        default=50, description="Pixels the mask grows on every side."
    )
    mask_blur: Annotated[float, Field(ge=0, le=100), DECIMAL] = Field(
        default=50,
        description="How softly the mask ends: the blur's sigma in pixels, 0 for a hard edge. The "
        "thing itself stays solid. A small picture may take less; the value used is reported.",
    )


class MaskingParams(BaseModel):
    """Every value really used."""

    seed: int
    mask_dilation: int
    mask_blur: float


class MaskResult(ToolResult):
    """The mask, white where the thing is."""

    image_url: str = Field(description="Stable path of the mask.")
    object_name: str
    masking_params: MaskingParams


MASK = Tool(
    name="mask",
    summary="Find a thing in a picture",
    description="Makes a mask the size of the picture: white where the named thing is, black "
    "elsewhere. It fits `mask_url` of inpainting as it is.",
    path="/api/mask",
    files_path="/api/masks",
    prefix="masks",
    params=MaskParams,
    result=MaskResult,
    url_key="image_url",
    params_key="masking_params",
    reported={name: name for name in MaskingParams.model_fields},
    echoed=("object_name",),
    default_variant="sam3",
    timeout_s=600,
    deadline_s=6 * 3600,
    examples={
        "a mug": {"image_url": MUG, "object_name": "mug"},
    },
)
