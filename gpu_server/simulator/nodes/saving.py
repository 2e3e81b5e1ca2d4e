"""Output nodes for pictures: saved, previewed, animated."""

import json
import random
import string
from typing import Any
from uuid import uuid4

from PIL import Image as Pillow

from gpu_server.simulator import png
from gpu_server.simulator.nodes.files import PNG_INPUTS, listed, place, told
from gpu_server.simulator.nodes.masks import mask_to_image
from gpu_server.simulator.nodes.table import Context, Shown, node
from gpu_server.simulator.values import Image, Mask

_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_EXIF_MODEL, _EXIF_SOFTWARE = 0x0110, 0x0131


def _save(context: Context, images: Image, kind: str, prefix: str) -> Shown:
    height, width = images.shape[1:3]
    folder, stem, counter = place(context, kind, prefix, (width, height))
    texts = told(context)
    saved: list[dict[str, Any]] = []
    for index, frame in enumerate(images):
        # ComfyUI numbers files of one batch on from the counter; %batch_num% stands for the index.
        name = f"{stem.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
        png.write(folder / name, frame, texts, context.output_bytes)
        saved.append(listed(context, folder / name, kind))
    return Shown(ui={"images": saved})


@node(
    "SaveImage",
    display_name="Save Image",
    category="image",
    inputs={"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
    hidden=PNG_INPUTS,
    output_node=True,
)
def save_image(context: Context, *, images: Image, filename_prefix: str) -> Shown:
    """Write numbered PNG files into output/."""
    return _save(context, images, "output", filename_prefix)


@node(
    "PreviewImage",
    display_name="Preview Image",
    category="image",
    inputs={"images": ("IMAGE",)},
    hidden=PNG_INPUTS,
    output_node=True,
)
def preview_image(context: Context, *, images: Image) -> Shown:
    """Write numbered PNG files into temp/."""
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311 - a file name
    return _save(context, images, "temp", f"ComfyUI_temp_{suffix}")


@node(
    "MaskPreview",
    category="mask",
    module="comfy_extras.nodes_mask",
    inputs={"mask": ("MASK",)},
    hidden=PNG_INPUTS,
    output_node=True,
)
def mask_preview(context: Context, *, mask: Mask) -> Shown:
    """Write masks in grey into temp/."""
    (images,) = mask_to_image(context, mask=mask)
    return preview_image(context, images=images)


@node(
    "SaveImageWebsocket",
    category="api/image",
    module="custom_nodes.websocket_image_save",
    inputs={"images": ("IMAGE",)},
    output_node=True,
    fingerprint=lambda _folders, _inputs: uuid4().hex,
)
def save_image_websocket(context: Context, *, images: Image) -> tuple[()]:
    """Send pictures over the websocket; nothing is stored, so nothing is ever cached."""
    for index, frame in enumerate(images):
        context.show(index, len(images), png.encode(frame, {"engine": "simulator"}))
    return ()


@node(
    "SaveAnimatedWEBP",
    category="image/animation",
    module="comfy_extras.nodes_images",
    inputs={
        "images": ("IMAGE",),
        "filename_prefix": ("STRING", {"default": "ComfyUI"}),
        "fps": ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
        "lossless": ("BOOLEAN", {"default": True}),
        "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
        "method": (list(_METHODS),),
    },
    hidden=PNG_INPUTS,
    output_node=True,
)
def save_animated_webp(
    context: Context,
    *,
    images: Image,
    filename_prefix: str,
    fps: float,
    lossless: bool,
    quality: int,
    method: str,
) -> Shown:
    """Write one animated WEBP into output/."""
    height, width = images.shape[1:3]
    folder, stem, counter = place(context, "output", filename_prefix, (width, height))
    path = folder / f"{stem}_{counter:05}_.webp"
    first, *others = [Pillow.fromarray(frame) for frame in images]
    exif = Pillow.Exif()
    exif[_EXIF_MODEL] = f"prompt:{json.dumps(context.graph)}"
    exif[_EXIF_SOFTWARE] = "simulator"
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=int(1000 / fps),
        lossless=lossless,
        quality=quality,
        method=_METHODS[method],
        exif=exif,
    )
    return Shown(ui={"images": [listed(context, path, "output")], "animated": [True]})
