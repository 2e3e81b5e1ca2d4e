"""Image generation: a picture from a prompt."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gateway.media import DECIMAL, WHOLE, NegativePrompt, Prompt, Seed, Side, VariantName
from gateway.tool import LoraParams, LoraUse, PictureParams, Tool, ToolResult

_SIDES = (("width", 1024), ("height", 1024))


class GenerateParams(LoraParams, PictureParams):
    """Parameters of `POST /api/generate`."""

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"base_model"})

    prompt: Prompt = Field(
        description="What the picture shows.",
        examples=["a photo of a ceramic mug on a wooden table"],
    )
    variant: VariantName | None = Field(
        default=None,
        description="Model family: `flux1-dev`, `z-image-turbo`, or `checkpoint:<file>` for an "
        "installed SD 1.5 or SDXL checkpoint. Absent: that of `model_id`, else `flux1-dev`. The "
        "other defaults shown here are those of `flux1-dev`; `GET /api/tools` has each variant's.",
        examples=["flux1-dev", "z-image-turbo", "checkpoint:v1-5-pruned-emaonly.safetensors"],
    )
    base_model: VariantName | None = Field(
        default=None,
        description="Another name of `variant`.",
        examples=["flux1-dev"],
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(
        default=25, description="Sampling steps: more is slower and finer."
    )
    width: Side = Field(default=1024, description="Width in pixels, a multiple of 16.")
    height: Side = Field(default=1024, description="Height in pixels, a multiple of 16.")
    seed: Seed | None = Field(
        default=None,
        description="The same seed and parameters give the same picture. Absent: drawn at random; "
        "the seed used is always reported.",
    )
    guidance_scale: Annotated[float, Field(ge=0, le=30), DECIMAL] = Field(
        default=1.0,
        description="The sampler's cfg: how strictly it keeps to the prompt. At 1.0 the negative "
        "prompt has no effect.",
    )
    negative_prompt: NegativePrompt | None = Field(
        default=None, description="What to avoid. Absent: the workflow's own."
    )
    num_images: Annotated[int, Field(ge=1, le=4), WHOLE] = Field(
        default=1, description="Pictures made in one run, from one seed."
    )

    @field_validator("base_model")
    @classmethod
    def _one_name(cls, base_model: str | None, info: ValidationInfo) -> str | None:
        variant = info.data.get("variant")
        if variant and base_model and variant != base_model:
            raise PydanticCustomError(
                "conflict", "variant and base_model are two names of one thing: send one of them"
            )
        return base_model

    def chosen_variant(self) -> str | None:
        """Name the variant the caller asked for, by either name."""
        return self.variant or self.base_model

    def variant_field(self) -> str:
        """Name the field in which the caller asked for it."""
        return "base_model" if self.base_model and not self.variant else "variant"


class GenerationParams(BaseModel):
    """Every value really used."""

    lora_scale: float
    width: int
    height: int
    steps: int
    seed: int
    guidance_scale: float
    negative_prompt: str | None = Field(description="Null where the variant has none.")


class GenerateResult(ToolResult):
    """The pictures, and how to make them again."""

    image_url: str = Field(description="Stable path of the first picture.")
    prompt: str
    model_id: int | None
    loras: list[LoraUse] = Field(description="LoRAs loaded, with the strength of each.")
    generation_params: GenerationParams


def _size(values: Mapping[str, JsonValue]) -> float:
    """Count the pixels sampled, in millions: pictures, steps and megapixels together."""
    size = 1e-6
    for name, default in (("num_images", 1), ("num_inference_steps", 25), *_SIDES):
        value = values.get(name)
        size *= value if isinstance(value, int | float) else default
    return size


GENERATE = Tool(
    name="generate",
    summary="Generate images from a prompt",
    description="Makes 1 to 4 pictures from a text prompt, with the base model alone or with "
    "LoRAs on top of it. Waits for the result; a job that lasts longer answers 202.",
    path="/api/generate",
    files_path="/api/images",
    prefix="generated",
    params=GenerateParams,
    result=GenerateResult,
    url_key="image_url",
    params_key="generation_params",
    reported={
        "lora_scale": "lora_scale",
        "width": "width",
        "height": "height",
        "steps": "num_inference_steps",
        "seed": "seed",
        "guidance_scale": "guidance_scale",
        "negative_prompt": "negative_prompt",
    },
    echoed=("prompt", "model_id", "loras"),
    default_variant="flux1-dev",
    timeout_s=1800,
    deadline_s=6 * 3600,
    size=_size,
    examples={
        "small and quick": {
            "prompt": "a photo of a ceramic mug on a wooden table",
            "width": 512,
            "height": 512,
            "num_inference_steps": 8,
        },
        "every common parameter": {
            "prompt": "a lighthouse at dawn, soft light, film grain",
            "variant": "flux1-dev",
            "width": 1024,
            "height": 768,
            "num_inference_steps": 25,
            "guidance_scale": 1.0,
            "seed": 42,
            "num_images": 2,
        },
        "another model family": {
            "prompt": "a lighthouse at dawn",
            "variant": "z-image-turbo",
            "width": 768,
            "height": 768,
        },
    },
)
