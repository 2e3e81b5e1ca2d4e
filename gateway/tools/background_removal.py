"""Background removal: the foreground of a picture on nothing."""

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import ImageUrl
from gateway.tool import CutoutParams, Tool, ToolResult


class BackgroundRemovalParams(CutoutParams):
    """Parameters of `POST /api/background-removal`."""

    image_url: ImageUrl = Field(description="The picture to cut the foreground out of.")


class RemovalParams(BaseModel):
    """Every value really used; there is none to choose."""


class BackgroundRemovalResult(ToolResult):
    """The cut-out: a picture whose background is transparent."""

    image_url: str = Field(description="Stable path of the cut-out.")
    removal_params: RemovalParams


BACKGROUND_REMOVAL = Tool(
    name="background-removal",
    summary="Remove a picture's background",
    description="Cuts the foreground out: a picture of the same size with nothing behind it.",
    path="/api/background-removal",
    files_path="/api/cutouts",
    prefix="cutouts",
    params=BackgroundRemovalParams,
    result=BackgroundRemovalResult,
    url_key="image_url",
    params_key="removal_params",
    reported={},
    default_variant="birefnet",
    timeout_s=600,
    deadline_s=6 * 3600,
    examples={"a picture": {"image_url": MUG}},
)
