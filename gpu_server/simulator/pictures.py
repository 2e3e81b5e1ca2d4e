"""Procedural pictures: what a model would have drawn, drawn from a key, with the mark on it."""

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from gpu_server.simulator.values import Box, Image

Field = NDArray[np.float32]

MARK = "SIMULATED"
_WORK_SIDE = 512
"""Pictures are computed no larger than this and scaled up: the colour fields are smooth anyway."""
_NOISE_SIDE = 128
_LARGEST_FONT = 48
_SMALLEST_FONT = 4
_MIST = 0.45

_ZENITH, _HORIZON, _LIGHT, _CLOUD, _LAND = range(5)
_PALETTES: Field = np.array(
    [
        [(70, 98, 160), (250, 190, 150), (255, 244, 214), (255, 214, 196), (38, 44, 74)],
        [(46, 38, 92), (240, 120, 96), (255, 226, 170), (216, 110, 130), (28, 20, 46)],
        [(64, 134, 206), (206, 232, 244), (255, 252, 232), (250, 252, 255), (30, 66, 74)],
        [(8, 14, 40), (58, 84, 140), (236, 240, 255), (70, 92, 150), (6, 10, 24)],
        [(40, 110, 130), (214, 240, 214), (255, 250, 220), (236, 250, 240), (16, 54, 58)],
        [(150, 90, 150), (252, 206, 206), (255, 246, 238), (255, 228, 232), (64, 30, 66)],
        [(92, 142, 176), (248, 214, 160), (255, 246, 220), (252, 232, 206), (104, 48, 36)],
        [(52, 62, 78), (176, 190, 196), (240, 244, 240), (120, 132, 146), (24, 32, 38)],
    ],
    np.float32,
)
"""Skies that look like skies: zenith, horizon, sun or moon, clouds, land."""


def draw(key: str, width: int, height: int) -> Image:
    """Draw a landscape under a sky; the same key and size give the same pixels."""
    dice = np.random.default_rng(int(key[:32], 16))
    scale = min(1.0, _WORK_SIDE / max(width, height))
    columns, rows = max(8, round(width * scale)), max(8, round(height * scale))
    first, second = dice.choice(len(_PALETTES), 2, replace=False)
    lean = np.float32(dice.uniform(0, 0.5))
    mixed = _PALETTES[first] + (_PALETTES[second] - _PALETTES[first]) * lean
    palette = np.asarray(mixed, np.float32)
    # One plane a channel: numpy is several times faster on these than on interleaved pixels.
    planes = _sky(dice, palette, columns, rows)
    _ridges(dice, palette, planes)
    pixels = np.ascontiguousarray(planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
    if (columns, rows) == (width, height):
        return pixels
    return np.asarray(Pillow.fromarray(pixels).resize((width, height), Pillow.Resampling.BICUBIC))


def _smooth(grid: Field, width: int, height: int) -> Field:
    scaled = Pillow.fromarray(grid).resize((width, height), Pillow.Resampling.BICUBIC)
    return np.asarray(scaled, np.float32)


def _noise(dice: np.random.Generator, width: int, height: int, cells: int) -> Field:
    """Sum smooth random fields of doubling fineness, drawn out sideways; about -1..1."""
    total = np.zeros((_NOISE_SIDE, _NOISE_SIDE), np.float32)
    for octave in range(4):
        rows = cells << octave
        columns = max(2, rows * width // (2 * height))
        grid = dice.uniform(-1, 1, (rows, columns)).astype(np.float32)
        total += _smooth(grid, _NOISE_SIDE, _NOISE_SIDE) * np.float32(0.5**octave)
    return _smooth(total, width, height)


def _sky(dice: np.random.Generator, palette: Field, width: int, height: int) -> Field:
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(0, width / height, width, dtype=np.float32)[None, :]
    fade = (down / np.float32(0.75)).clip(0, 1) ** np.float32(0.8)
    x = np.float32(dice.uniform(0.2, 0.8) * width / height)
    y, radius = np.float32(dice.uniform(0.18, 0.5)), np.float32(dice.uniform(0.05, 0.12))
    distance = np.hypot(across - x, down - y)
    disc = ((radius - distance) * np.float32(height / 2)).clip(0, 1)
    light = np.maximum(disc, np.exp(distance * np.float32(-4)) * np.float32(0.6))
    clouds = (_noise(dice, width, height, 3) - np.float32(0.15)).clip(0, 0.8)
    clouds *= 1 - down * np.float32(0.6)
    planes = np.empty((3, height, width), np.float32)
    for channel in range(3):
        zenith, horizon, sun, cloud, _ = palette[:, channel]
        plane = np.repeat(zenith + (horizon - zenith) * fade, width, axis=1)
        plane += (sun - plane) * light
        plane += (cloud - plane) * clouds
        planes[channel] = plane
    return planes


def _ridges(dice: np.random.Generator, palette: Field, planes: Field) -> None:
    """Draw mountains from far to near over the sky."""
    height, width = planes.shape[1:]
    layers = int(dice.integers(4, 7))
    top = dice.uniform(0.45, 0.6)
    for layer in range(layers):
        near = (layer + 1) / layers
        crest = _crest(dice, width, 3 + 2 * layer) * np.float32(0.16 - 0.06 * near)
        line = (np.float32(top + (0.98 - top) * layer / layers) - crest) * np.float32(height)
        start = max(0, int(line.min()))
        depth = np.arange(start, height, dtype=np.float32)[:, None] - line[None, :]
        cover = depth.clip(0, 1)
        # Mist lightens the foot of every ridge.
        mist = (depth / np.float32(height * _MIST)).clip(0, 1) * np.float32(_MIST) * cover
        ridge = palette[_HORIZON] * (0.85 * (1 - near)) + palette[_LAND] * (0.25 + 0.75 * near)
        for channel, plane in enumerate(planes):
            seen, colour = plane[start:], np.float32(ridge[channel])
            seen += (colour - seen) * cover
            seen += (palette[_HORIZON, channel] - colour) * mist


def _crest(dice: np.random.Generator, width: int, points: int) -> Field:
    total = np.zeros(width, np.float32)
    for octave in range(4):
        heights = dice.uniform(-1, 1, (1, points << octave)).astype(np.float32)
        total += _smooth(heights, width, 1)[0] * np.float32(0.5**octave)
    return total


def blend(base: Image, drawn: Image, strength: float) -> Image:
    """Lay a drawing over a picture: 0 leaves it alone, 1 hides it."""
    above = np.float32(strength)
    mixed = base.astype(np.float32) * (1 - above) + drawn.astype(np.float32) * above
    return mixed.clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _banner(width: int, height: int) -> Pillow.Image:
    """Render the mark, white on a dark band, in the largest size that fits a picture."""
    wanted = max(10, min(min(width, height) // 18, _LARGEST_FONT))
    fitting = (size for size in range(wanted, _SMALLEST_FONT, -1) if _band(size)[0] <= width)
    size = next(fitting, _SMALLEST_FONT)
    font = ImageFont.load_default(size)
    left, top, _, _ = font.getbbox(MARK)
    banner = Pillow.new("L", _band(size), 24)
    ImageDraw.Draw(banner).text((size // 3 - left, size // 3 - top), MARK, 255, font)
    return banner


def _band(size: int) -> tuple[int, int]:
    left, top, right, bottom = ImageFont.load_default(size).getbbox(MARK)
    return round(right - left) + 2 * (size // 3), round(bottom - top) + 2 * (size // 3)


def marked(picture: Image, box: Box | None = None) -> Image:
    """Return the picture with the mark in its lower left corner, or in the middle of a box."""
    height, width = picture.shape[:2]
    left, top, right, bottom = box or (0, 0, width, height)
    banner = np.asarray(_banner(right - left, bottom - top))[: bottom - top, : right - left]
    rows, columns = banner.shape
    if box is None:
        top = height - rows
    else:
        left, top = (left + right - columns) // 2, (top + bottom - rows) // 2
    result = picture.copy()
    result[top : top + rows, left : left + columns, :3] = banner[..., None]
    return result


def preview_jpeg(key: str, width: int, height: int, longest: int) -> bytes:
    """Draw a small JPEG of what a sampler is making, with the mark."""
    scale = longest / max(width, height)
    picture = marked(draw(key, max(8, round(width * scale)), max(8, round(height * scale))))
    file = io.BytesIO()
    Pillow.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()
