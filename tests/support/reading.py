"""A tool that reads files, with its workflow, as the catalogue has none to test inputs with."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import yaml
from PIL import Image
from pydantic import BaseModel, Field

from gateway.media import DECIMAL, ImageUrl, MaskUrl
from gateway.tool import Tool, ToolParams, ToolResult

ROOT = Path(__file__).parents[2]
GENERATE = ("checkpoint", "flux1-dev", "z-image-turbo")
GRAPH: dict[str, Any] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    "2": {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["1", 0], "upscale_method": "nearest-exact", "scale_by": 1.0},
    },
    "3": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
    "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
}
MANIFEST: dict[str, Any] = {
    "manifest": 1,
    "tool": "invert",
    "variant": "plain",
    "title": "Turns a picture's colours round",
    "guard": {"1": "LoadImage", "2": "ImageScaleBy", "3": "ImageInvert", "4": "SaveImage"},
    "params": {
        "image_url": {"upload": "image", "bind": "1.image", "required": True},
        "scale": {"bind": "2.scale_by"},
    },
    "fixed": {"4.filename_prefix": "jobs/{run_id}/image"},
    "outputs": {"images": {"node": "4", "kind": "image", "min": 1, "max": 1}},
}


class InvertParams(ToolParams):
    """Parameters of `POST /api/invert`."""

    image_url: ImageUrl = Field(description="The picture.")
    scale: Annotated[float, Field(ge=0.1, le=4), DECIMAL] = Field(
        default=1.0, description="How much larger it gets."
    )
    mask_url: MaskUrl | None = Field(default=None, description="No variant takes it.")
    face_images: Annotated[tuple[ImageUrl, ...], Field(max_length=5)] = Field(
        default=(), description="No variant takes them either."
    )


class InvertParamsUsed(BaseModel):
    scale: float


class InvertResult(ToolResult):
    """The picture."""

    image_url: str
    invert_params: InvertParamsUsed


INVERT = Tool(
    name="invert",
    summary="Turn a picture's colours round",
    description="Only for tests.",
    path="/api/invert",
    files_path="/api/inverted",
    prefix="inverted",
    params=InvertParams,
    result=InvertResult,
    url_key="image_url",
    params_key="invert_params",
    reported={"scale": "scale"},
    default_variant="plain",
    timeout_s=600,
    deadline_s=600,
    examples={"a picture": {"image_url": "https://example.com/mug.png"}},
)


def workflows(folder: Path) -> Path:
    """A folder of the workflows of image generation and this tool's."""
    folder.mkdir()
    for name in GENERATE:
        for ending in ("json", "yaml"):
            shutil.copy(ROOT / "workflows" / f"{name}.{ending}", folder)
    (folder / "invert.json").write_text(json.dumps(GRAPH))
    (folder / "invert.yaml").write_text(yaml.safe_dump(MANIFEST))
    return folder


def picture(colour: str = "red", size: tuple[int, int] = (32, 16), kind: str = "PNG") -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def data_uri(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def colour_of(data: bytes) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Size of a picture, and the colour in its middle."""
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        pixel: Any = opened.convert("RGB").getpixel((width // 2, height // 2))
        return (width, height), tuple(pixel)
