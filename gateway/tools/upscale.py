"""Upscaling: the same picture, larger."""

from typing import Literal

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import ImageUrl
from gateway.tool import PictureParams, Tool, ToolResult


class UpscaleParams(PictureParams):
    """Parameters of `POST /api/upscale`."""

    image_url: ImageUrl = Field(description="The picture to enlarge, to at most 80 megapixels.")
    scale: Literal[2, 4] = Field(default=2, description="How many times as wide and as high.")


class UsedUpscaleParams(BaseModel):
    """Every value really used."""

    scale: int


class UpscaleResult(ToolResult):
    """The larger picture."""

    image_url: str = Field(description="Stable path of the picture.")
    upscale_params: UsedUpscaleParams


UPSCALE = Tool(
    name="upscale",
    summary="Enlarge a picture",
    description="Makes a picture two or four times as wide and as high, with detail added.",
    path="/api/upscale",
    files_path="/api/images",
    prefix="upscaled",
    params=UpscaleParams,
    result=UpscaleResult,
    url_key="image_url",
    params_key="upscale_params",
    reported={"scale": "scale"},
    default_variant="realesrgan",
    timeout_s=900,
    deadline_s=6 * 3600,
    examples={"twice": {"image_url": MUG, "scale": 2}},
)
