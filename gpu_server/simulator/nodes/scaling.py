"""Nodes that change the size of pictures."""

import math
import re

import numpy as np
from PIL import Image as Pillow

from gpu_server.simulator import motion, pictures
from gpu_server.simulator.nodes.table import Context, ModelFiles, choice, node
from gpu_server.simulator.values import Described, Image

UPSCALE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
_FILTERS = {
    "nearest-exact": Pillow.Resampling.NEAREST,
    "bilinear": Pillow.Resampling.BILINEAR,
    "area": Pillow.Resampling.BOX,
    "bicubic": Pillow.Resampling.BICUBIC,
    "lanczos": Pillow.Resampling.LANCZOS,
}
_SIDE = {"default": 512, "min": 0, "max": 16384, "step": 1}
_MEGAPIXEL = 1024 * 1024
_KONTEXT_WIDTHS = (672, 688, 720, 752, 800, 832, 880, 944)
_KONTEXT_HEIGHTS = (1568, 1504, 1456, 1392, 1328, 1248, 1184, 1104)
_KONTEXT_SIZES = [
    *zip(_KONTEXT_WIDTHS, _KONTEXT_HEIGHTS, strict=True),
    (1024, 1024),
    *zip(_KONTEXT_HEIGHTS[::-1], _KONTEXT_WIDTHS[::-1], strict=True),
]
"""Sizes FLUX.1 Kontext was trained with."""
_FACTOR = re.compile(r"(?<![0-9])([1-8])x|x([1-8])(?![0-9])", re.IGNORECASE)
_USUAL_FACTOR = 4


def resized(images: Image, width: int, height: int, method: str, crop: str = "disabled") -> Image:
    """Scale every frame; `crop="center"` keeps the proportions and cuts what is over."""
    if crop == "center":
        images = _cropped_to(images, width / height)
    if images.shape[1:3] == (height, width):
        return images
    frames = [
        np.asarray(Pillow.fromarray(frame).resize((width, height), _FILTERS[method]))
        for frame in images
    ]
    return np.stack(frames)


def _cropped_to(images: Image, ratio: float) -> Image:
    height, width = images.shape[1:3]
    left = round((width - height * ratio) / 2) if width / height > ratio else 0
    top = round((height - width / ratio) / 2) if width / height < ratio else 0
    return images[:, top : height - top, left : width - left]


@node(
    "ImageScale",
    display_name="Upscale Image",
    category="image/upscaling",
    inputs={
        "image": ("IMAGE",),
        "upscale_method": (UPSCALE_METHODS,),
        "width": ("INT", _SIDE),
        "height": ("INT", _SIDE),
        "crop": (["disabled", "center"],),
    },
    outputs=("IMAGE",),
)
def image_scale(
    _: Context, *, image: Image, upscale_method: str, width: int, height: int, crop: str
) -> tuple[Image]:
    """Scale to a size; a side of 0 follows the other one."""
    rows, columns = image.shape[1:3]
    if width == 0 and height == 0:
        return (image,)
    width = width or max(1, round(columns * height / rows))
    height = height or max(1, round(rows * width / columns))
    return (resized(image, width, height, upscale_method, crop),)


@node(
    "ImageScaleBy",
    display_name="Upscale Image By",
    category="image/upscaling",
    inputs={
        "image": ("IMAGE",),
        "upscale_method": (UPSCALE_METHODS,),
        "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
    },
    outputs=("IMAGE",),
)
def image_scale_by(
    _: Context, *, image: Image, upscale_method: str, scale_by: float
) -> tuple[Image]:
    """Scale both sides by a factor."""
    height, width = (max(1, round(side * scale_by)) for side in image.shape[1:3])
    return (resized(image, width, height, upscale_method),)


@node(
    "ImageScaleToTotalPixels",
    display_name="Scale Image to Total Pixels",
    category="image/upscaling",
    module="comfy_extras.nodes_post_processing",
    v3=True,
    inputs={
        "image": ("IMAGE", {}),
        "upscale_method": choice(UPSCALE_METHODS),
        "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
        "resolution_steps": ("INT", {"advanced": True, "default": 1, "min": 1, "max": 256}),
    },
    outputs=("IMAGE",),
)
def image_scale_to_total_pixels(
    _: Context, *, image: Image, upscale_method: str, megapixels: float, resolution_steps: int
) -> tuple[Image]:
    """Scale to so many pixels, with sides that are multiples of `resolution_steps`."""
    rows, columns = image.shape[1:3]
    factor = math.sqrt(megapixels * _MEGAPIXEL / (rows * columns))
    height, width = (
        max(1, round(side * factor / resolution_steps)) * resolution_steps
        for side in (rows, columns)
    )
    return (resized(image, width, height, upscale_method),)


@node(
    "FluxKontextImageScale",
    category="advanced/conditioning/flux",
    module="comfy_extras.nodes_flux",
    v3=True,
    inputs={"image": ("IMAGE", {})},
    outputs=("IMAGE",),
)
def flux_kontext_image_scale(_: Context, *, image: Image) -> tuple[Image]:
    """Scale and crop to the nearest of the sizes the model knows."""
    rows, columns = image.shape[1:3]
    width, height = min(_KONTEXT_SIZES, key=lambda size: abs(columns / rows - size[0] / size[1]))
    return (resized(image, width, height, "lanczos", "center"),)


@node(
    "UpscaleModelLoader",
    display_name="Load Upscale Model",
    category="loaders",
    module="comfy_extras.nodes_upscale_model",
    v3=True,
    inputs={"model_name": choice(ModelFiles("upscale_models"))},
    outputs=("UPSCALE_MODEL",),
)
def upscale_model_loader(_: Context, *, model_name: str) -> tuple[Described]:
    """Name an upscale model."""
    return (Described(model_name),)


@node(
    "ImageUpscaleWithModel",
    display_name="Upscale Image (using Model)",
    category="image/upscaling",
    module="comfy_extras.nodes_upscale_model",
    v3=True,
    inputs={"upscale_model": ("UPSCALE_MODEL", {}), "image": ("IMAGE", {})},
    outputs=("IMAGE",),
)
def image_upscale_with_model(
    context: Context, *, upscale_model: Described, image: Image
) -> tuple[Image]:
    """Scale by the factor in the model's name, by four without one, and put the mark on it."""
    found = _FACTOR.search(upscale_model.key)
    factor = int(found[1] or found[2]) if found else _USUAL_FACTOR
    count, rows, columns = image.shape[:3]
    size = (columns * factor, rows * factor)
    scaled = motion.batch(context.folders.directory("temp"), count, size[1], size[0])
    for index, frame in enumerate(image):
        large = Pillow.fromarray(frame[..., :3]).resize(size, Pillow.Resampling.LANCZOS)
        scaled[index] = pictures.marked(np.asarray(large))
    return (scaled,)
