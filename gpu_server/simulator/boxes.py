"""Boxes and points as the segmentation nodes write them."""

import json
from collections.abc import Mapping, Sequence
from typing import cast

from gpu_server.simulator.values import Box, Image

_CORNERS = 4
_SPOT = 8
"""A point stands for a box of the smaller side divided by this, to each side."""


def as_dict(box: Box) -> dict[str, int]:
    """Write a box as a corner and a size."""
    left, top, right, bottom = box
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def read(given: object) -> list[Box]:
    """Read boxes as either pack writes them: corners, or a corner and a size; nested at will."""
    if isinstance(given, Mapping):
        sides = cast("Mapping[str, float]", given)
        left, top = round(sides["x"]), round(sides["y"])
        return [(left, top, left + round(sides["width"]), top + round(sides["height"]))]
    if not isinstance(given, list | tuple):
        return []
    several = cast("Sequence[object]", given)
    if len(several) == _CORNERS and all(isinstance(one, int | float) for one in several):
        left, top, right, bottom = (round(one) for one in cast("Sequence[float]", several))
        return [(left, top, right, bottom)]
    return [box for one in several for box in read(one)]


def around(picture: Image, points: str | None) -> list[Box]:
    """Return a small box around each point of a JSON list of x and y."""
    radius = max(1, min(picture.shape[:2]) // _SPOT)
    listed = cast("list[dict[str, float]]", json.loads(points) if points else [])
    return [
        (
            round(point["x"]) - radius,
            round(point["y"]) - radius,
            round(point["x"]) + radius,
            round(point["y"]) + radius,
        )
        for point in listed
    ]
