"""Procedural bodies: round, dented shapes described by a key."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Indices = NDArray[np.uint32]

MOST_FACES = 15_624
_FEWEST_ROWS, _MOST_ROWS = 4, 63
_WAVES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solid:
    """A closed body about the origin; triangles turn counter-clockwise seen from outside."""

    positions: Field
    """Vertices, 3; y points up."""
    normals: Field
    indices: Indices
    """Triangles, 3."""
    uvs: Field | None
    """Vertices, 2; v points down, as glTF has it."""


def body(key: str, faces: int, *, unwrapped: bool) -> Solid:
    """Build a body of at most so many triangles.

    Unwrapped, it has texture coordinates and therefore two vertices at each point of the seam.
    """
    # A sphere of n rows and 2n columns has 4n(n - 1) triangles.
    rows = min(_MOST_ROWS, max(_FEWEST_ROWS, int((1 + np.sqrt(1 + faces)) / 2)))
    columns = 2 * rows
    grid = _points(key, rows, columns)
    # Number of the point each place of the grid stands for: poles and seam appear several times.
    points = np.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    points[0], points[-1] = points[0, 0], points[-1, 0]
    points[:, -1] = points[:, 0]
    triangles = _triangles(rows, columns)
    normals = _normals(grid, points.ravel()[triangles])[points.ravel()]
    if unwrapped:
        down, across = np.mgrid[0 : rows + 1, 0 : columns + 1]
        uvs = np.stack([across / columns, down / rows], axis=2).reshape(-1, 2).astype(np.float32)
        return Solid(
            positions=grid[points.ravel()],
            normals=normals,
            indices=triangles.astype(np.uint32),
            uvs=uvs,
        )
    kept, numbers = np.unique(points.ravel(), return_inverse=True)
    return Solid(
        positions=grid[kept],
        normals=normals[kept],
        indices=numbers.ravel()[triangles].astype(np.uint32),
        uvs=None,
    )


def _points(key: str, rows: int, columns: int) -> Field:
    """Place a grid of points: north to south, then round the axis."""
    dice = np.random.default_rng(int(key[:32], 16))
    tilt = np.linspace(0, np.pi, rows + 1)[:, None]
    turn = np.linspace(0, 2 * np.pi, columns + 1)[None, :]
    radius = np.ones((rows + 1, columns + 1))
    for wave in range(1, _WAVES + 1):
        depth, phase = dice.uniform(-0.12, 0.12) / wave, dice.uniform(0, 2 * np.pi)
        # The power keeps every wave flat at the poles, where all columns meet.
        radius += depth * np.sin(tilt) ** wave * np.cos(wave * turn + phase)
    stretch = dice.uniform(0.7, 1.0, 3)
    x = radius * np.sin(tilt) * np.cos(turn) * stretch[0]
    y = radius * np.cos(tilt) * stretch[1]
    z = -radius * np.sin(tilt) * np.sin(turn) * stretch[2]
    points = np.stack([x, np.broadcast_to(y, x.shape), z], axis=2).reshape(-1, 3)
    return (points / (2 * np.abs(points).max())).astype(np.float32)


def _triangles(rows: int, columns: int) -> NDArray[np.int64]:
    down, across = (axis.ravel() for axis in np.mgrid[0:rows, 0:columns])
    here = down * (columns + 1) + across
    below = here + columns + 1
    lower = np.stack([here, below, below + 1], axis=1)[down < rows - 1]
    upper = np.stack([here, below + 1, here + 1], axis=1)[down > 0]
    return np.concatenate([lower, upper])


def _normals(points: Field, triangles: NDArray[np.int64]) -> Field:
    """Average the normals of the triangles at each point, weighted by their area."""
    first, second, third = (points[triangles[:, corner]] for corner in range(3))
    across = np.cross(second - first, third - first)
    total = np.zeros(points.shape, np.float64)
    for corner in range(3):
        np.add.at(total, triangles[:, corner], across)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    # Places of the grid that stand for another one belong to no triangle.
    length[length == 0] = 1
    return (total / length).astype(np.float32)
