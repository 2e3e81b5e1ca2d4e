"""Where a person's joints would be, and drawing them as pose models do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from gpu_server.simulator.values import Box, Image

Point = tuple[float, float]

_BODY: tuple[Point, ...] = (
    (0.50, 0.10),
    (0.50, 0.22),
    (0.32, 0.23),
    (0.22, 0.40),
    (0.18, 0.55),
    (0.68, 0.23),
    (0.78, 0.40),
    (0.82, 0.55),
    (0.40, 0.55),
    (0.38, 0.75),
    (0.37, 0.95),
    (0.60, 0.55),
    (0.62, 0.75),
    (0.63, 0.95),
    (0.46, 0.07),
    (0.54, 0.07),
    (0.42, 0.09),
    (0.58, 0.09),
)
"""Joints of a standing person in OpenPose's order, in shares of the box around it."""
_TRUNK_AND_LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13)),
)
_HEAD = ((1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
_WRISTS, _ANKLES, _NOSE = (4, 7), (10, 13), 0
_FINGERS, _FACE_POINTS = 5, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Stance:
    """One person's joints in pixels, and how large the person is."""

    joints: tuple[Point, ...]
    height: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What of a person is drawn, and how."""

    body: bool
    hands: bool
    face: bool
    feet: bool
    head: bool
    stick_width: int
    face_point_size: int


def standing(box: Box) -> Stance:
    """Put a standing person into a box."""
    left, top, right, bottom = box
    joints = tuple((left + x * (right - left), top + y * (bottom - top)) for x, y in _BODY)
    return Stance(joints=joints, height=bottom - top)


def draw(stances: Sequence[Stance], width: int, height: int, style: Style) -> Image:
    """Draw persons on black, each bone in a colour of its own."""
    sheet = Pillow.new("RGB", (width, height))
    pen = ImageDraw.Draw(sheet)
    for stance in stances:
        bones = [*(_TRUNK_AND_LIMBS if style.body else ()), *(_HEAD if style.head else ())]
        for number, (start, end) in enumerate(bones):
            line = (stance.joints[start], stance.joints[end])
            pen.line(line, _colour(number, len(bones)), style.stick_width)
        if style.hands:
            _fans(pen, stance, _WRISTS, style)
        if style.feet:
            _fans(pen, stance, _ANKLES, style)
        if style.face:
            _face(pen, stance, style)
    return np.asarray(sheet)


def _colour(number: int, count: int) -> str:
    return f"hsv({360 * number // count}, 100%, 100%)"


def _fans(pen: ImageDraw.ImageDraw, stance: Stance, joints: Sequence[int], style: Style) -> None:
    """Draw fingers or toes below a joint."""
    reach = stance.height * 0.04
    for joint in joints:
        x, y = stance.joints[joint]
        for finger in range(_FINGERS):
            turn = np.pi * (finger + 1) / (_FINGERS + 1)
            tip = (x + reach * float(np.cos(turn)), y + reach * float(np.sin(turn)))
            pen.line(((x, y), tip), _colour(finger, _FINGERS), max(1, style.stick_width // 2))


def _face(pen: ImageDraw.ImageDraw, stance: Stance, style: Style) -> None:
    x, y = stance.joints[_NOSE]
    radius, dot = stance.height * 0.045, style.face_point_size / 2
    for number in range(_FACE_POINTS):
        turn = 2 * np.pi * number / _FACE_POINTS
        across, down = x + radius * float(np.cos(turn)), y + radius * float(np.sin(turn))
        pen.ellipse((across - dot, down - dot, across + dot, down + dot), "white")
