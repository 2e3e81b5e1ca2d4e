"""Closes holes whose rim is short, with the vertices that are there."""

import numpy as np

from gpu_server.mesh.model import Floats, Ints
from gpu_server.mesh.order import Clean
from gpu_server.mesh.surface import Surface, degenerate


def close(surface: Surface, step: Clean, group: list[int]) -> tuple[int, int]:
    """Fill each small hole with a fan of faces; how many were closed, how many rims are left.

    `group` says for each primitive the first one that has the same vertices: a rim that runs
    through several groups is left, as no primitive has all of its vertices.
    """
    if not len(surface.places):
        return 0, 0
    rims = _rims(surface.places)
    size = surface.points[np.unique(surface.places)]
    longest = float((size.max(axis=0) - size.min(axis=0)).max())
    corners, places, owners = list[Ints](), list[Ints](), list[int]()
    closed = 0
    for rim in rims:
        # each edge of the rim as (face, corner it begins at)
        face, corner = rim[:, 0], rim[:, 1]
        at, owner = surface.places[face, corner], surface.owner[face]
        if (
            len(rim) > step.hole_edges
            or len(np.unique(np.asarray(group)[owner])) > 1
            or _length(surface.points[at]) > step.hole_perimeter * longest
        ):
            continue
        fan = _fan(len(rim))
        if degenerate(surface.points, at[fan]).any() or _is_back(face):
            continue
        corners.append(surface.corners[face, corner][fan])
        places.append(at[fan])
        owners.extend([int(owner[0])] * len(fan))
        closed += 1
    if closed:
        surface.corners = np.concatenate([surface.corners, *corners])
        surface.places = np.concatenate([surface.places, *places])
        surface.owner = np.concatenate([surface.owner, np.array(owners, dtype=np.int64)])
    return closed, len(rims) - closed


def _fan(edges: int) -> Ints:
    """Triangles over a rim, turned against it, so that they look the way its faces do."""
    steps = np.arange(1, edges - 1)
    return np.stack([np.zeros_like(steps), steps + 1, steps], axis=1)


def _length(points: Floats) -> float:
    return float(np.linalg.norm(points - np.roll(points, -1, axis=0), axis=1).sum())


def _is_back(face: Ints) -> bool:
    """Whether the rim is all of one lonely face: to fill it would only add its back."""
    return len(face) == 3 and bool((face == face[0]).all())  # noqa: PLR2004  # a triangle


def _rims(places: Ints) -> list[Ints]:
    """Closed rims as rows of (face, corner): edges that only one face has, one after another."""
    begin, end = places.ravel(), np.roll(places, -1, axis=1).ravel()
    width = int(places.max()) + 1
    there, back = begin * width + end, np.sort(end * width + begin)
    lone = np.flatnonzero(back[np.minimum(np.searchsorted(back, there), len(back) - 1)] != there)
    start, stop = begin[lone].tolist(), end[lone].tolist()
    following: dict[int, int] = {}
    forked: set[int] = set()
    for n, place in enumerate(start):
        if place in following:
            forked.add(place)
        following[place] = n
    rims: list[Ints] = []
    seen: set[int] = set()
    for first in range(len(lone)):
        rim: list[int] = []
        edge = first
        # a place where several rims meet leaves open which way to go
        while edge not in seen and start[edge] not in forked and stop[edge] in following:
            seen.add(edge)
            rim.append(edge)
            edge = following[stop[edge]]
        if rim and edge == first:
            edges = lone[rim]
            rims.append(np.stack([edges // 3, edges % 3], axis=1))
    return rims
