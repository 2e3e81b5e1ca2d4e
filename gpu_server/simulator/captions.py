"""Saying in words what can be measured of a picture, which is all a simulator sees."""

import numpy as np
from PIL import Image as Pillow

from gpu_server.simulator.values import Image

MARK = "[simulated]"
_COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "grey": (128, 128, 128),
    "red": (205, 40, 40),
    "orange": (240, 140, 40),
    "yellow": (240, 220, 60),
    "green": (50, 150, 60),
    "turquoise": (60, 190, 190),
    "blue": (50, 90, 200),
    "purple": (130, 60, 160),
    "pink": (240, 150, 190),
    "brown": (120, 75, 45),
    "beige": (225, 205, 170),
}
_SMALL = 64
_DARK, _BRIGHT = 85, 170
_SQUARE = 1.1
_WORTH_NAMING = 0.08


def describe(picture: Image, sentences: int, words: int) -> str:
    """Describe shape, brightness and colours in so many sentences and words at most."""
    height, width = picture.shape[:2]
    small = Pillow.fromarray(picture[..., :3]).resize((_SMALL, _SMALL), Pillow.Resampling.BOX)
    pixels = np.asarray(small).reshape(-1, 3)
    names = _colours(pixels)
    said = [
        f"A {_shape(width, height)} picture, mostly {names[0]}.",
        f"It is {_brightness(pixels)} and has "
        + (" and ".join(names[1:4]) or "no other colour")
        + ".",
        f"It measures {width} by {height} pixels.",
    ]
    return " ".join([MARK, *" ".join(said[:sentences]).split()[:words]])


def _shape(width: int, height: int) -> str:
    if max(width, height) < _SQUARE * min(width, height):
        return "square"
    return "wide" if width > height else "tall"


def _brightness(pixels: Image) -> str:
    mean = float(pixels.mean())
    return "dark" if mean < _DARK else "bright" if mean > _BRIGHT else "neither dark nor bright"


def _colours(pixels: Image) -> list[str]:
    """Name the colours that cover the picture, the commonest first."""
    known = np.array(list(_COLOURS.values()), np.int32)
    distance = np.abs(pixels[:, None, :].astype(np.int32) - known[None]).sum(axis=2)
    count = np.bincount(distance.argmin(axis=1), minlength=len(known))
    names = list(_COLOURS)
    order = [int(index) for index in np.argsort(-count, kind="stable")]
    return [
        names[index]
        for place, index in enumerate(order)
        if place == 0 or count[index] >= _WORTH_NAMING * len(pixels)
    ]
