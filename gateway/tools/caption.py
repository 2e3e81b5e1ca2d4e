"""Captioning: what a picture shows, in words."""

from typing import Literal

from pydantic import BaseModel, Field

from gateway.examples import MUG
from gateway.media import ImageUrl, Label
from gateway.tool import Tool, ToolParams, ToolResult


class CaptionParams(ToolParams):
    """Parameters of `POST /api/caption`."""

    image_url: ImageUrl = Field(description="The picture to describe.")
    detail: Literal["brief", "detailed", "tags"] = Field(
        default="detailed",
        description="A sentence, a paragraph, or words separated by commas. Not every variant "
        "writes tags.",
    )
    trigger_word: Label | None = Field(
        default=None,
        description="A word the caption is asked to begin with, as LoRA training wants it. "
        "Absent: none.",
        examples=["TOK_MUG"],
    )


class UsedCaptionParams(BaseModel):
    """Every value really used."""

    detail: str
    trigger_word: str | None


class CaptionResult(ToolResult):
    """The caption; there is no file."""

    caption: str = Field(description="What the picture shows.")
    caption_params: UsedCaptionParams


CAPTION = Tool(
    name="caption",
    summary="Describe a picture in words",
    description="Writes a caption, for people or as the text beside a training picture.",
    path="/api/caption",
    files_path=None,
    prefix="captions",
    params=CaptionParams,
    result=CaptionResult,
    text_key="caption",
    params_key="caption_params",
    reported={name: name for name in UsedCaptionParams.model_fields},
    default_variant="qwen3-vl",
    timeout_s=600,
    deadline_s=6 * 3600,
    examples={"a sentence": {"image_url": MUG, "detail": "brief"}},
)
