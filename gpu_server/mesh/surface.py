"""The triangles of a mesh by the places of their corners, whatever vertices they are made of."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.mesh.gltf import Mesh
from gpu_server.mesh.model import Floats, Ints, Model

Mask = NDArray[np.bool_]
_THIN = 1e-8
"""Height of a triangle over its longest edge, below which it is no more than a line."""


@dataclass(slots=True)
class Surface:
    """The triangles of one mesh, as vertices of its primitives and as places."""

    points: Floats
    """Each place once."""
    corners: Ints
    """Vertex numbers within the face's primitive, (n, 3)."""
    places: Ints
    """The same corners as places, (n, 3)."""
    owner: Ints
    """The primitive each face belongs to."""

    def keep(self, mask: Mask) -> None:
        """Drop all faces but these."""
        self.corners, self.places = self.corners[mask], self.places[mask]
        self.owner = self.owner[mask]


def surface_of(model: Model, mesh: Mesh) -> Surface:
    """Gather all triangles of a mesh's primitives."""
    corners, owners, vertices, spread = list[Ints](), list[Ints](), list[Ints](), list[Floats]()
    starts: dict[int, int] = {}
    total = 0
    for number, primitive in enumerate(mesh.primitives):
        index = primitive.attributes["POSITION"]
        if index not in starts:
            starts[index] = total
            # adding zero makes -0.0 and 0.0 one place
            spread.append(model.points(index) + 0.0)
            total += len(spread[-1])
        faces = model.faces(primitive)
        corners.append(faces)
        owners.append(np.full(len(faces), number, dtype=np.int64))
        vertices.append(faces + starts[index])
    flat = np.concatenate(spread)
    places, first = same(flat)
    return Surface(
        flat[first],
        np.concatenate(corners),
        places[np.concatenate(vertices)],
        np.concatenate(owners),
    )


def degenerate(points: Floats, faces: Ints) -> Mask:
    """Which faces have no area to speak of."""
    a, b, c = (points[faces[:, n]] for n in range(3))
    edges = (b - a, c - b, a - c)
    longest = np.max([np.einsum("ij,ij->i", e, e) for e in edges], axis=0, initial=0)
    double_area = np.linalg.norm(np.cross(edges[0], c - a), axis=1)
    return np.asarray(double_area <= _THIN * longest)


def duplicates(surface: Surface) -> Mask:
    """Which faces an earlier one of the same primitive covers, looking the same way."""
    start = surface.places.argmin(axis=1)
    turned = np.take_along_axis(
        surface.places, (start[:, None] + np.arange(3)[None, :]) % 3, axis=1
    )
    _, first = same(np.column_stack([turned, surface.owner]))
    twice = np.ones(len(turned), dtype=bool)
    twice[first] = False
    return twice


def same(rows: NDArray[Any]) -> tuple[Ints, Ints]:
    """Number equal rows alike: the number of each row, and the first row of each number."""
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(rows), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    # lexsort is stable: the first of equals comes first
    return numbers, order[new]
