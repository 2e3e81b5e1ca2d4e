"""Pictures that tests draw, the bundled graphs they feed, and how to tell the simulator's mark."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_server.simulator import pictures

from .client import Graph, Json, Simulator

Pixels = NDArray[np.uint8]
WORKFLOWS = Path(__file__).parents[3] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SUBJECT = (slice(60, 180), slice(100, 220))
"""Where the red square of `plain` lies."""
RED, PALE = (200, 40, 30), (230, 230, 230)


def plain() -> Pixels:
    """A red square before a pale background, 240 by 320."""
    picture = np.full((240, 320, 3), PALE, np.uint8)
    picture[SUBJECT] = RED
    return picture


def busy() -> Pixels:
    """Noise: nothing in it stands out."""
    return np.random.default_rng(5).integers(0, 256, (240, 320, 3), np.uint8)


def bundled(name: str, **inputs: object) -> Graph:
    """A graph that comes with the project; inputs replace each value of their name, but no link."""
    graph: Graph = json.loads((WORKFLOWS / f"{name}.json").read_text())
    for key, value in inputs.items():
        owners = [n for n in graph.values() if not isinstance(n["inputs"].get(key, []), list)]
        assert owners, key
        for owner in owners:
            owner["inputs"][key] = value
    return graph


def titled(graph: Graph, title: str) -> Json:
    """The inputs of the node with a title."""
    (found,) = [node for node in graph.values() if node["_meta"]["title"] == title]
    return found["inputs"]


def uploaded(sim: Simulator, **files: Pixels) -> None:
    """Put pictures into input/ under their names."""
    for name, pixels in files.items():
        sim.upload(f"{name}.png", pixels)


def has_mark(picture: Pixels) -> bool:
    """The banner is the only thing in a picture with this dark grey beside pure white."""
    return mark_error(picture) == 0


def mark_error(picture: Pixels) -> float:
    """How far the lower left corner is from the mark, on average; a lossy file is a little off."""
    blank = np.full((*picture.shape[:2], 3), 99, np.uint8)
    banner = pictures.marked(blank)
    covered = (banner != blank).any(axis=2)
    return float(np.abs(picture[covered].astype(int) - banner[covered]).mean())
