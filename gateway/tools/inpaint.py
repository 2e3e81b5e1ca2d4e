"""Inpainting: a product put into a scene, where a mask says."""

from typing import Annotated

from pydantic import BaseModel, Field

from gateway.examples import MUG, WHERE_THE_MUG_IS
from gateway.media import DECIMAL, WHOLE, ImageUrl, MaskUrl, Prompt, Seed
from gateway.tool import PictureParams, Tool, ToolResult


class InpaintParams(PictureParams):
    """Parameters of `POST /api/inpaint`."""

    scene_url: ImageUrl = Field(
        description="The scene. Without `mask_url` its red channel is the mask as well."
    )
    mask_url: MaskUrl | None = Field(
        default=None,
        description="What to paint over, white or red, in the size of the scene; masking makes "
        "such pictures. Absent: the scene's own red channel.",
    )
    reference_url: ImageUrl = Field(description="The product to put there.")
    prompt: Prompt = Field(
        default="product on a surface",
        description='What the result shows; it may call the scene "image 1" and the product '
        '"image 2".',
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )
    steps: Annotated[int, Field(ge=1, le=50), WHOLE] = Field(
        default=4, description="Sampling steps: more is slower and finer."
    )
    denoise: Annotated[float, Field(ge=0.05, le=1), DECIMAL] = Field(
        default=1.0, description="How much of what was there is painted over, 1 = all."
    )
    guidance: Annotated[float, Field(ge=0, le=30), DECIMAL] = Field(
        default=4.0,
        description="How strictly it keeps to the prompt. Distilled models do not heed it.",
    )


class InpaintingParams(BaseModel):
    """Every value really used."""

    prompt: str
    seed: int
    steps: int
    denoise: float
    guidance: float


class InpaintResult(ToolResult):
    """The scene with the product in it; outside the mask it is unchanged."""

    image_url: str = Field(description="Stable path of the picture.")
    inpainting_params: InpaintingParams


INPAINT = Tool(
    name="inpaint",
    summary="Put a product into a scene",
    description="Paints the product into the scene where the mask is white. Everything else stays "
    "as it is, at the scene's own size.",
    path="/api/inpaint",
    files_path="/api/inpainted",
    prefix="inpainted",
    params=InpaintParams,
    result=InpaintResult,
    url_key="image_url",
    params_key="inpainting_params",
    reported={name: name for name in InpaintingParams.model_fields},
    default_variant="flux2-klein-9b",
    timeout_s=1800,
    deadline_s=6 * 3600,
    size=lambda values: float(values.get("steps") or 4),  # pyright: ignore[reportArgumentType]
    examples={
        "a product": {
            "scene_url": MUG,
            "mask_url": WHERE_THE_MUG_IS,
            "reference_url": MUG,
        },
    },
)
