"""Moving pictures: a still that the camera travels over while it changes into another one."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from PIL import Image as Pillow

from gpu_server.simulator import pictures
from gpu_server.simulator.values import Image

_ZOOM = 0.25
"""How much closer the camera is at the end."""
_CHANGE = 0.45
"""How much of the second picture shows at the end."""
_IN_MEMORY = 64 << 20
"""Batches larger than this lie in a file, so that a long video does not fill the memory."""


def travel(key: str, first: Image, second: Image, length: int) -> Iterator[Image]:
    """Yield the frames of a video; frame 0 is the first picture as it is."""
    height, width = first.shape[:2]
    dice = np.random.default_rng(int(key[:32], 16))
    across, down = dice.uniform(0, 1, 2)
    start, end = Pillow.fromarray(first), Pillow.fromarray(second)
    for number in range(length):
        done = number / max(1, length - 1)
        closer = 1 / (1 + _ZOOM * done)
        left, top = width * (1 - closer) * across, height * (1 - closer) * down
        box = (left, top, left + width * closer, top + height * closer)
        moved = start.resize((width, height), Pillow.Resampling.BILINEAR, box)
        yield np.asarray(Pillow.blend(moved, end, _CHANGE * done))


def batch(folder: Path, frames: int, height: int, width: int, channels: int = 3) -> Image:
    """Make room for a batch of pictures: in memory, or in a nameless file if it is a large one."""
    shape = (frames, height, width, channels)
    if frames * height * width * channels <= _IN_MEMORY:
        return np.empty(shape, np.uint8)
    with TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def marked_frames(key: str, first: Image, second: Image, into: Image) -> None:
    """Fill a batch with the frames of a video, each with the mark."""
    for number, frame in enumerate(travel(key, first, second, len(into))):
        into[number] = pictures.marked(frame)
