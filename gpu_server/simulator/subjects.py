"""Where the subject of a picture lies: what a segmentation model would have found."""

import re
from collections.abc import Iterator

import numpy as np

from gpu_server.simulator.values import Box, Image, Mask, key_of

NOT_FOUND = "nothing"
"""An object whose name begins with this is never found, so that a test can have that outcome."""
_COUNTED = re.compile(r"(.*?):(\d+)\s*$")
_MOST_OBJECTS = 32
_PLAIN_BORDER = 24
"""Mean deviation of the border from its own colour above which there is no plain background."""
_LEAST_DIFFERENCE = 20
_SMALLEST, _LARGEST = 0.001, 0.9
"""Share of the picture a subject covers."""


def differing(picture: Image) -> Mask | None:
    """Return how surely each pixel differs from a plain border, or None where there is none."""
    pixels = picture[..., :3].astype(np.int16)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(edge, axis=0).astype(np.int16)
    spread = float(np.abs(edge - colour).mean())
    if spread > _PLAIN_BORDER:
        return None
    least = np.float32(max(_LEAST_DIFFERENCE, 3 * spread))
    distance = np.abs(pixels - colour).max(axis=2).astype(np.float32)
    sure = (distance / least - np.float32(0.5)).clip(0, 1)
    share = float((sure > _HALF).mean())
    return sure if _SMALLEST < share < _LARGEST else None


_HALF = np.float32(0.5)


def ellipse(width: int, height: int, box: Box) -> Mask:
    """Return a mask with an ellipse that fills a box."""
    left, top, right, bottom = box
    x = (np.arange(width, dtype=np.float32) + _HALF - (left + right) / 2) * 2 / (right - left)
    y = (np.arange(height, dtype=np.float32) + _HALF - (top + bottom) / 2) * 2 / (bottom - top)
    return (x[None, :] ** 2 + y[:, None] ** 2 <= 1).astype(np.float32)


def foreground(picture: Image) -> Mask:
    """Return the subject of a picture; on a busy background, an ellipse in its middle."""
    sure = differing(picture)
    if sure is not None:
        return sure
    height, width = picture.shape[:2]
    box = (round(width * 0.2), round(height * 0.15), round(width * 0.8), round(height * 0.9))
    return ellipse(width, height, box)


def named(picture: Image, text: str) -> list[Mask]:
    """Return a mask for each object that a text names, such as `mug, spoon:2`.

    A subject before a plain border stands for whatever is named; otherwise each name has an ellipse
    at a place of its own. Names that begin with `nothing` are not found.
    """
    names = list(_names(text))[:_MOST_OBJECTS]
    sure = differing(picture) if names else None
    if sure is not None:
        return [(sure > _HALF).astype(np.float32)]
    height, width = picture.shape[:2]
    return [ellipse(width, height, _place(name, width, height)) for name in names]


def _names(text: str) -> Iterator[str]:
    for part in text.split(","):
        counted = _COUNTED.match(part)
        name, count = (counted[1], int(counted[2])) if counted else (part, 1)
        name = name.strip().lower()
        if name and not name.startswith(NOT_FOUND):
            yield from (f"{name} {number}" for number in range(min(count, _MOST_OBJECTS)))


def _place(name: str, width: int, height: int) -> Box:
    dice = np.random.default_rng(int(key_of("place", name)[:32], 16))
    across, down = dice.uniform(0.3, 0.7), dice.uniform(0.3, 0.7)
    half = dice.uniform(0.15, 0.25, 2) * (width, height)
    left, top = round(across * width - half[0]), round(down * height - half[1])
    return (
        left,
        top,
        max(left + 2, round(left + 2 * half[0])),
        max(top + 2, round(top + 2 * half[1])),
    )


def inside(picture: Image, box: Box) -> Mask:
    """Return the subject within a box; the ellipse that fills the box where there is none."""
    height, width = picture.shape[:2]
    left, top, right, bottom = box
    left, top = min(max(0, left), width - 1), min(max(0, top), height - 1)
    right, bottom = min(max(left + 1, right), width), min(max(top + 1, bottom), height)
    sure = differing(picture)
    found = np.zeros((height, width), np.float32)
    if sure is not None:
        window = (slice(top, bottom), slice(left, right))
        found[window] = sure[window] > _HALF
    return found if found.any() else ellipse(width, height, (left, top, right, bottom))
