"""Mask nodes, computed for real. Masks never carry the simulator's mark."""

from collections.abc import Callable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter

from gpu_server.simulator.edges import connected
from gpu_server.simulator.nodes.table import Context, Specs, node
from gpu_server.simulator.values import Image, Mask

_MODULE = "comfy_extras.nodes_mask"
_OFFSET = {"default": 0, "min": 0, "max": 16384, "step": 1}
_SIDE = {"default": 512, "min": 1, "max": 16384, "step": 1}
_CHANNELS = ["red", "green", "blue", "alpha"]


def batched(mask: Mask) -> Mask:
    """Give a single mask its batch axis."""
    return mask.reshape(-1, *mask.shape[-2:])


def resized_masks(masks: Mask, width: int, height: int) -> Mask:
    """Scale every mask."""
    masks = batched(masks)
    if masks.shape[1:] == (height, width):
        return masks
    size = (width, height)
    return np.stack(
        [
            np.asarray(Pillow.fromarray(one).resize(size, Pillow.Resampling.BILINEAR))
            for one in masks
        ]
    )


def composite(
    destination: Mask,
    source: Mask,
    x: int,
    y: int,
    *,
    operation: Callable[..., Mask],
    mask: Mask | None = None,
) -> Mask:
    """Apply an operation where source, placed at (x, y), overlaps a copy of destination.

    A batch shorter than the destination's is repeated.
    """
    result = destination.copy()
    visible_rows = max(0, min(source.shape[1], destination.shape[1] - y))
    visible_columns = max(0, min(source.shape[2], destination.shape[2] - x))
    window = (slice(y, y + visible_rows), slice(x, x + visible_columns))
    for index, below in enumerate(result):
        pieces = [part[index % len(part)] for part in (source, mask) if part is not None]
        above = [piece[:visible_rows, :visible_columns] for piece in pieces]
        below[window] = operation(below[window], *above)
    return result


def _and(below: Mask, above: Mask) -> Mask:
    return np.logical_and(below.round(), above.round()).astype(np.float32)


def _or(below: Mask, above: Mask) -> Mask:
    return np.logical_or(below.round(), above.round()).astype(np.float32)


def _xor(below: Mask, above: Mask) -> Mask:
    return np.logical_xor(below.round(), above.round()).astype(np.float32)


_OPERATIONS: dict[str, Callable[[Mask, Mask], Mask]] = {
    "multiply": lambda below, above: below * above,
    "add": lambda below, above: below + above,
    "subtract": lambda below, above: below - above,
    "and": _and,
    "or": _or,
    "xor": _xor,
}


@node(
    "SolidMask",
    category="mask",
    module=_MODULE,
    inputs={
        "value": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
        "width": ("INT", _SIDE),
        "height": ("INT", _SIDE),
    },
    outputs=("MASK",),
)
def solid_mask(_: Context, *, value: float, width: int, height: int) -> tuple[Mask]:
    """Fill a mask with one value."""
    return (np.full((1, height, width), value, np.float32),)


@node(
    "InvertMask",
    category="mask",
    module=_MODULE,
    inputs={"mask": ("MASK",)},
    outputs=("MASK",),
)
def invert_mask(_: Context, *, mask: Mask) -> tuple[Mask]:
    """Turn every value round."""
    return (np.float32(1) - mask,)


@node(
    "GrowMask",
    category="mask",
    module=_MODULE,
    inputs={
        "mask": ("MASK",),
        "expand": ("INT", {"default": 0, "min": -16384, "max": 16384, "step": 1}),
        "tapered_corners": ("BOOLEAN", {"default": True}),
    },
    outputs=("MASK",),
)
def grow_mask(
    _: Context,
    *,
    mask: Mask,
    expand: int,
    tapered_corners: bool,
) -> tuple[Mask]:
    """Grow (or, below zero, shrink) what is masked by so many pixels."""
    return (grown(mask, expand, tapered=tapered_corners),)


def grown(mask: Mask, expand: int, *, tapered: bool) -> Mask:
    """Grow or shrink masks; tapered, the corners are left out at each step."""
    choose = np.maximum if expand >= 0 else np.minimum
    result = batched(mask).copy()
    for _step in range(abs(expand)):
        before = result
        padded = np.pad(before, ((0, 0), (1, 1), (1, 1)), mode="edge")
        across = choose(padded[:, 1:-1, :-2], padded[:, 1:-1, 2:])
        result = choose(choose(before, across), choose(padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]))
        if not tapered:
            for rows in (slice(None, -2), slice(2, None)):
                result = choose(result, choose(padded[:, rows, :-2], padded[:, rows, 2:]))
        if np.array_equal(before, result):
            break
    return result


_WITH_BLUR: Specs = {
    "expand": ("INT", {"default": 0, "min": -16384, "max": 16384, "step": 1}),
    "incremental_expandrate": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1}),
    "tapered_corners": ("BOOLEAN", {"default": True}),
    "flip_input": ("BOOLEAN", {"default": False}),
    "blur_radius": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100, "step": 0.1}),
    "lerp_alpha": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
    "decay_factor": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
}


@node(
    "GrowMaskWithBlur",
    display_name="Grow Mask With Blur",
    category="KJNodes/masking",
    module="custom_nodes.ComfyUI-KJNodes",
    inputs={"mask": ("MASK",), **_WITH_BLUR},
    optional={"fill_holes": ("BOOLEAN", {"default": False})},
    outputs=("MASK", "MASK"),
    output_names=("mask", "mask_inverted"),
)
def grow_mask_with_blur(
    _: Context,
    *,
    mask: Mask,
    expand: int,
    incremental_expandrate: float,
    tapered_corners: bool,
    flip_input: bool,
    blur_radius: float,
    lerp_alpha: float,
    decay_factor: float,
    fill_holes: bool = False,
) -> tuple[Mask, Mask]:
    """Grow each mask, more from frame to frame if asked, carry some of the last one over, blur."""
    results: list[Mask] = []
    pixels = float(expand)
    for one in batched(np.float32(1) - mask if flip_input else mask):
        result = grown(one, round(pixels), tapered=tapered_corners)[0]
        pixels += incremental_expandrate if expand >= 0 else -incremental_expandrate
        if fill_holes:
            result = _without_holes(result)
        if results and lerp_alpha < 1:
            result = lerp_alpha * result + (1 - lerp_alpha) * results[-1]
        if results and decay_factor < 1:
            result = result + decay_factor * results[-1]
            result = result / max(float(result.max()), 1)
        results.append(np.asarray(result, np.float32))
    blurred = np.stack([_blurred(one, blur_radius) for one in results])
    return blurred, np.float32(1) - blurred


def _blurred(mask: Mask, sigma: float) -> Mask:
    if sigma == 0:
        return mask
    grey = Pillow.fromarray((mask.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(sigma)), np.float32) / np.float32(255)


def _without_holes(mask: Mask) -> Mask:
    """Fill what is not masked and cannot be reached from the border."""
    empty = mask <= 0
    border = empty.copy()
    border[1:-1, 1:-1] = False
    outside = connected(border, empty, diagonal=False)
    return np.where(empty & ~outside, np.float32(1), mask)


@node(
    "MaskComposite",
    category="mask",
    module=_MODULE,
    inputs={
        "destination": ("MASK",),
        "source": ("MASK",),
        "x": ("INT", _OFFSET),
        "y": ("INT", _OFFSET),
        "operation": (list(_OPERATIONS),),
    },
    outputs=("MASK",),
)
def mask_composite(
    _: Context, *, destination: Mask, source: Mask, x: int, y: int, operation: str
) -> tuple[Mask]:
    """Combine two masks where they overlap."""
    combined = composite(
        batched(destination), batched(source), x, y, operation=_OPERATIONS[operation]
    )
    return (combined.clip(0, 1),)


@node(
    "ImageToMask",
    display_name="Convert Image to Mask",
    category="mask",
    module=_MODULE,
    inputs={"image": ("IMAGE",), "channel": (_CHANNELS,)},
    outputs=("MASK",),
)
def image_to_mask(_: Context, *, image: Image, channel: str) -> tuple[Mask]:
    """Take one channel as a mask."""
    return (image[..., _CHANNELS.index(channel)].astype(np.float32) / np.float32(255),)


@node(
    "MaskToImage",
    display_name="Convert Mask to Image",
    category="mask",
    module=_MODULE,
    inputs={"mask": ("MASK",)},
    outputs=("IMAGE",),
)
def mask_to_image(_: Context, *, mask: Mask) -> tuple[Image]:
    """Show a mask in grey."""
    grey = (batched(mask).clip(0, 1) * 255).astype(np.uint8)
    return (np.repeat(grey[..., None], 3, axis=3),)
