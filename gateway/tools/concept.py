"""2D concepts: one thing to look at, from words or a picture, in a style."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gateway.examples import MUG
from gateway.media import WHOLE, ImageUrl, Prompt, Seed
from gateway.tool import PictureParams, StyledParams, Tool, ToolResult


class ConceptParams(StyledParams, PictureParams):
    """Parameters of `POST /api/concept`."""

    type: Literal["text", "image"] = Field(
        default="text", description="From `prompt` alone, or from the picture at `image_url`."
    )
    prompt: Prompt | None = Field(
        default=None,
        validate_default=True,
        description="What it is; required for `text`. For `image` what to make of the picture, "
        '"image 1"; absent: the thing itself, on white.',
        examples=["a wooden toy car, whole and centred, on a plain white background"],
    )
    image_url: ImageUrl | None = Field(
        default=None,
        validate_default=True,
        description="The picture to go by; required for `image`, and refused for `text`.",
    )
    count: Annotated[int, Field(ge=1, le=4), WHOLE] = Field(
        default=2, description="Pictures made in one run, from one seed."
    )
    seed: Seed | None = Field(
        default=None, description="Absent: drawn at random; the seed used is always reported."
    )

    @field_validator("prompt")
    @classmethod
    def _said_in_words(cls, prompt: str | None, info: ValidationInfo) -> str | None:
        if prompt is None and info.data.get("type") == "text":
            raise PydanticCustomError("required_for_text", "is required for type text")
        return prompt

    @field_validator("image_url")
    @classmethod
    def _as_its_type_says(cls, image_url: str | None, info: ValidationInfo) -> str | None:
        asked = info.data.get("type")
        if image_url is None and asked == "image":
            raise PydanticCustomError("required_for_image", "is required for type image")
        if image_url is not None and asked == "text":
            raise PydanticCustomError(
                "not_for_text", "is not read for type text: send type image, or leave it out"
            )
        return image_url


class UsedConceptParams(BaseModel):
    """Every value really used."""

    type: str
    prompt: str = Field(description="As sent, without the words of the style.")
    styleId: str | None  # noqa: N815  # the name existing clients read
    count: int
    seed: int


class ConceptResult(ToolResult):
    """The concepts."""

    concept_urls: list[str] = Field(description="Stable paths of all pictures.")
    concept_params: UsedConceptParams


CONCEPT = Tool(
    name="concept",
    summary="Draw concepts of an object",
    description="Draws a thing from words or from a picture, in a style of `GET /api/styles`: a "
    "first step to a cut-out or a 3D model.",
    path="/api/concept",
    files_path="/api/concepts",
    prefix="concepts",
    params=ConceptParams,
    result=ConceptResult,
    urls_key="concept_urls",
    params_key="concept_params",
    reported={name: name for name in UsedConceptParams.model_fields},
    default_variant="flux2-klein-4b",
    timeout_s=1800,
    deadline_s=6 * 3600,
    size=lambda values: float(values.get("count") or 2),  # pyright: ignore[reportArgumentType]
    examples={
        "words": {"prompt": "a wooden toy car, whole and centred, on a plain white background"},
        "words in a style": {"prompt": "a wooden chair", "styleId": "clay", "count": 1},
        "a picture in a style": {"type": "image", "image_url": MUG, "styleId": "figurine"},
    },
)
