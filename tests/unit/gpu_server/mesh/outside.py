"""Reads results with trimesh, which shares nothing with the code under test."""

from pathlib import Path
from typing import Any

import numpy as np
import trimesh


def scene(path: Path, format_: str = "glb") -> Any:
    with path.open("rb") as file:
        return trimesh.load_scene(file, file_type=format_, process=False)


def bounds(path: Path, format_: str = "glb") -> tuple[np.ndarray, np.ndarray]:
    low, high = scene(path, format_).bounds
    return low, high


def parts(path: Path) -> dict[str, Any]:
    """The box of each node, in the world."""
    loaded = scene(path)
    found: dict[str, Any] = {}
    for name in loaded.graph.nodes_geometry:
        matrix, geometry = loaded.graph[name]
        found[name] = loaded.geometry[geometry].copy().apply_transform(matrix).bounds
    return found


def volume(path: Path, format_: str = "glb") -> float:
    return float(scene(path, format_).to_mesh().volume)
