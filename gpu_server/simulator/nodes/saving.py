"""Output nodes: saved and previewed pictures, and text."""

import json
import random
import string
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image as Pillow

from gpu_server.simulator import png
from gpu_server.simulator.nodes.masks import mask_to_image
from gpu_server.simulator.nodes.table import Context, Shown, node
from gpu_server.simulator.values import Image, Mask

_METHODS = {"default": 4, "fastest": 0, "slowest": 6}
_EXIF_MODEL, _EXIF_SOFTWARE = 0x0110, 0x0131
_PNG_INPUTS = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}


def _expanded(prefix: str, width: int, height: int) -> str:
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    names = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
    fields = ("month", now.tm_mon), ("day", now.tm_mday), ("hour", now.tm_hour)
    for name, value in (*fields, ("minute", now.tm_min), ("second", now.tm_sec)):
        names[name] = f"{value:02}"
    for name, text in names.items():
        prefix = prefix.replace(f"%{name}%", text)
    return prefix


def _next_counter(folder: Path, stem: str) -> int:
    highest = 0
    for path in folder.iterdir():
        if path.name.startswith(f"{stem}_"):
            digits = path.name[len(stem) + 1 :].split("_")[0]
            highest = max(highest, int(digits) if digits.isdecimal() else 0)
    return highest + 1


def place(context: Context, kind: str, prefix: str, size: tuple[int, int]) -> tuple[Path, str, int]:
    """Return the folder a prefix leads to, the files' stem, and the next free counter."""
    target = context.folders.within(kind, _expanded(prefix, *size))
    base = context.folders.directory(kind)
    if target is None or target == base:
        message = "**** ERROR: Saving image outside the output folder is not allowed."
        raise Exception(message)  # noqa: TRY002 - ComfyUI reports this very type
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent, target.name, _next_counter(target.parent, target.name)


def _save(context: Context, images: Image, kind: str, prefix: str) -> Shown:
    height, width = images.shape[1:3]
    folder, stem, counter = place(context, kind, prefix, (width, height))
    texts = {"prompt": json.dumps(context.graph)}
    texts |= {key: json.dumps(value) for key, value in context.extra_pnginfo.items()}
    texts["engine"] = "simulator"
    saved: list[dict[str, Any]] = []
    for index, frame in enumerate(images):
        # ComfyUI numbers files of one batch on from the counter; %batch_num% stands for the index.
        name = f"{stem.replace('%batch_num%', str(index))}_{counter + index:05}_.png"
        png.write(folder / name, frame, texts, context.output_bytes)
        saved.append(_file(context, folder / name, kind))
    return Shown(ui={"images": saved})


def _file(context: Context, path: Path, kind: str) -> dict[str, Any]:
    subfolder = path.parent.relative_to(context.folders.directory(kind)).as_posix()
    return {
        "filename": path.name,
        "subfolder": "" if subfolder == "." else subfolder,
        "type": kind,
    }


@node(
    "SaveImage",
    display_name="Save Image",
    category="image",
    inputs={"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
    hidden=_PNG_INPUTS,
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
    hidden=_PNG_INPUTS,
    output_node=True,
)
def preview_image(context: Context, *, images: Image) -> Shown:
    """Write numbered PNG files into temp/."""
    suffix = "".join(random.choices(string.ascii_lowercase, k=5))  # noqa: S311 - a file name
    return _save(context, images, "temp", f"ComfyUI_temp_{suffix}")


_CODECS = {"vp9": "libvpx-vp9", "av1": "libsvtav1"}


@node(
    "SaveWEBM",
    category="image/video",
    module="comfy_extras.nodes_video",
    v3=True,
    experimental=True,
    inputs={
        "images": ("IMAGE", {}),
        "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
        "codec": ("COMBO", {"multiselect": False, "options": list(_CODECS)}),
        "fps": ("FLOAT", {"default": 24.0, "min": 0.01, "max": 1000.0, "step": 0.01}),
        "crf": ("FLOAT", {"default": 32.0, "min": 0, "max": 63.0, "step": 1}),
    },
    hidden=_PNG_INPUTS,
    output_node=True,
)
def save_webm(
    _: Context, *, images: Image, filename_prefix: str, codec: str, fps: float, crf: float
) -> Shown:
    """Fail: there is no video encoder here. The class is declared for its unchecked choice."""
    wanted = f"{_CODECS[codec]} at {fps} frames a second, crf {crf}"
    raise NotImplementedError(
        f"the simulator encodes no video: {len(images)} frames for {filename_prefix} with {wanted}"
    )


@node(
    "MaskPreview",
    category="mask",
    module="comfy_extras.nodes_mask",
    inputs={"mask": ("MASK",)},
    hidden=_PNG_INPUTS,
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
    hidden=_PNG_INPUTS,
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
    return Shown(ui={"images": [_file(context, path, "output")], "animated": [True]})


@node(
    "PreviewAny",
    display_name="Preview Any",
    category="utils",
    module="comfy_extras.nodes_preview_any",
    inputs={"source": ("*", {})},
    output_node=True,
)
def preview_any(_: Context, *, source: object = None) -> Shown:
    """Show any value as text."""
    return Shown(ui={"text": [_text(source)]})


def _text(source: object) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, int | float | bool):
        return str(source)
    if source is None:
        return "None"
    try:
        return json.dumps(source)
    except TypeError:
        return str(source)
