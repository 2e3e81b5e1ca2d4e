"""What a decoded picture takes over from the pictures it was made from."""

from collections.abc import Sequence

import numpy as np
from PIL import Image as Pillow

from gpu_server.simulator.values import Box, Control, Image, Mask

_OPAQUE = np.float32(0.9)
"""How much of a reference shows in the picture made from it."""
_MARGIN = 0.06
_STAGE = (0.06, 0.12, 0.94, 0.82)
"""Where references hang when no mask says where: left, top, right, bottom of the whole."""
_INSIDE = 0.5


def fitted(picture: Image, width: int, height: int) -> Image:
    """Scale a picture to a size and keep its proportions; what is over is cut on both sides."""
    rows, columns = picture.shape[:2]
    scale = min(columns / width, rows / height)
    left, top = (columns - width * scale) / 2, (rows - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    size = (width, height)
    return np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.BILINEAR, box))


def bounds(mask: Mask) -> Box | None:
    """Return the box around what a mask (rows, columns) covers by half or more."""
    inside = mask >= _INSIDE
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def stage(width: int, height: int) -> Box:
    """Return where the references of a whole picture hang."""
    left, top, right, bottom = _STAGE
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def with_references(picture: Image, references: Sequence[Image], box: Box) -> Image:
    """Hang pictures side by side into a box, each as large as fits."""
    result = picture.copy()
    left, top, right, bottom = box
    cell = (right - left) / max(1, len(references))
    margin = _MARGIN * min(cell, bottom - top)
    for index, reference in enumerate(references):
        rows, columns = reference.shape[:2]
        scale = min((cell - 2 * margin) / columns, (bottom - top - 2 * margin) / rows)
        width, height = max(1, round(columns * scale)), max(1, round(rows * scale))
        x = max(0, round(left + (index + 0.5) * cell - width / 2))
        y = max(0, round((top + bottom - height) / 2))
        small = Pillow.fromarray(reference).resize((width, height), Pillow.Resampling.BILINEAR)
        window = result[y : y + height, x : x + width]
        above = np.asarray(small)[: window.shape[0], : window.shape[1]]
        window[:] = window * (1 - _OPAQUE) + above * _OPAQUE
    return result


def with_control(picture: Image, control: Control) -> Image:
    """Lighten a picture where the control image is light."""
    height, width = picture.shape[:2]
    strength = np.float32(min(1.0, max(0.0, control.strength)))
    grey = Pillow.fromarray(control.image).convert("L").resize((width, height))
    light = np.asarray(grey, np.float32)[..., None] * (strength / np.float32(255))
    return (picture + (255 - picture) * light).astype(np.uint8)


def repainted(base: Image, drawn: Image, mask: Mask) -> Image:
    """Lay a drawing over a picture through a mask; outside of it not one bit changes."""
    opacity = mask.clip(0, 1)[..., None]
    # A half for rounding, so that what is fully covered or not at all comes out exactly.
    return (base * (1 - opacity) + drawn * opacity + np.float32(0.5)).astype(np.uint8)
