"""Edges of a picture after Canny, and what is connected to what."""

import numpy as np
from numpy.typing import NDArray

from gpu_server.simulator.values import Image, Mask

Flags = NDArray[np.bool_]

_SMOOTHING = np.array([0.0545, 0.2442, 0.4026, 0.2442, 0.0545], np.float32)
"""A Gaussian of sigma 1."""
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_QUARTERS = 4
"""Directions a gradient is rounded to: across, two diagonals, down."""


def canny(picture: Image, low: float, high: float) -> Flags:
    """Find edges: thin lines of at least `high` contrast, and of `low` where they go on.

    Thresholds are measured on the Sobel gradient of values 0..1.
    """
    grey = picture[..., :3].astype(np.float32) @ _LUMA / np.float32(255)
    for axis in (0, 1):
        grey = _convolved(grey, _SMOOTHING, axis)
    side, middle = np.array([-1, 0, 1], np.float32), np.array([1, 2, 1], np.float32)
    across = _convolved(_convolved(grey, side, 1), middle, 0)
    down = _convolved(_convolved(grey, side, 0), middle, 1)
    contrast = np.hypot(across, down)
    thin = _thinned(contrast, across, down)
    return connected((thin > high), (thin > low), diagonal=True)


def _convolved(values: Mask, kernel: Mask, axis: int) -> Mask:
    radius = len(kernel) // 2
    margin = [(radius, radius) if axis == other else (0, 0) for other in range(2)]
    padded = np.pad(values, margin, mode="edge")
    total = np.zeros(values.shape, np.float32)
    for tap, weight in enumerate(kernel):
        window = (slice(tap, tap + values.shape[0]), slice(None))
        if axis == 1:
            window = (slice(None), slice(tap, tap + values.shape[1]))
        total += weight * padded[window]
    return total


def _thinned(contrast: Mask, across: Mask, down: Mask) -> Mask:
    """Keep what is the highest along its own gradient."""
    quarter = np.round(np.arctan2(down, across) * (_QUARTERS / np.pi)).astype(np.int8) % _QUARTERS
    padded = np.pad(contrast, 1)
    rows, columns = contrast.shape
    kept = np.zeros_like(contrast)
    for number, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + y : 1 + y + rows, 1 + x : 1 + x + columns]
        behind = padded[1 - y : 1 - y + rows, 1 - x : 1 - x + columns]
        highest = (quarter == number) & (contrast >= ahead) & (contrast > behind)
        kept[highest] = contrast[highest]
    return kept


def connected(seeds: Flags, allowed: Flags, *, diagonal: bool) -> Flags:
    """Return the seeds and every allowed pixel that a path of allowed pixels joins to one."""
    rows, columns = seeds.shape
    # A frame of forbidden pixels keeps paths from running over the edge into the next row.
    free = np.pad(allowed & ~seeds, 1).ravel()
    found = np.pad(seeds, 1).ravel()
    width = columns + 2
    steps = [-width, -1, 1, width]
    if diagonal:
        steps += [-width - 1, -width + 1, width - 1, width + 1]
    front = np.flatnonzero(found)
    while len(front):
        near = np.unique((front[:, None] + np.array(steps)).ravel())
        front = near[free[near]]
        free[front] = False
        found[front] = True
    return found.reshape(rows + 2, width)[1:-1, 1:-1]
