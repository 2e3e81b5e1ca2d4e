"""Removes faces that print or render wrongly and what nothing uses, and closes small holes.

Vertices count as one where they lie at the same place: a texture's seam is no rim of a hole, and
its two sides keep their own texture coordinates. No vertex is ever moved or merged.
"""

from collections import defaultdict

import numpy as np

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import TRIANGLES, Mesh, Node, Primitive
from gpu_server.mesh.holes import close
from gpu_server.mesh.model import Model
from gpu_server.mesh.order import Clean, Cleaned
from gpu_server.mesh.surface import degenerate, duplicates, surface_of


def clean(model: Model, step: Clean) -> Cleaned:
    """Clean every mesh; a mesh of which nothing is left goes."""
    counts: dict[str, int] = defaultdict(int)
    meshes = [_clean_mesh(model, mesh, step, counts) for mesh in model.document.meshes]
    kept = [mesh for mesh in meshes if mesh is not None]
    if not kept:
        raise MeshError("mesh_empty", "The model has no triangles.")
    numbers = {old: new for new, old in enumerate(n for n, m in enumerate(meshes) if m is not None)}
    counts["stray_vertices"] = _drop_strays(model, kept)
    nodes = tuple(_renumbered(node, numbers) for node in model.document.nodes)
    model.document = model.document.model_copy(update={"meshes": tuple(kept), "nodes": nodes})
    return Cleaned(**{name: counts[name] for name in Cleaned.model_fields})


def _clean_mesh(model: Model, mesh: Mesh, step: Clean, counts: dict[str, int]) -> Mesh | None:
    surface = surface_of(model, mesh)
    before = surface.corners
    thin = degenerate(surface.points, surface.places)
    counts["degenerate_faces"] += int(thin.sum())
    surface.keep(~thin)
    twice = duplicates(surface)
    counts["duplicate_faces"] += int(twice.sum())
    surface.keep(~twice)
    shared = [tuple(sorted(p.attributes.items())) for p in mesh.primitives]
    group = [shared.index(attributes) for attributes in shared]
    closed, left = close(surface, step, group)
    counts["holes_closed"] += closed
    counts["holes_left"] += left
    changed = closed or len(before) != len(surface.corners)
    primitives: list[Primitive] = []
    for number, primitive in enumerate(mesh.primitives):
        faces = surface.corners[surface.owner == number]
        if primitive.mode < TRIANGLES or (not changed and primitive.mode == TRIANGLES):
            primitives.append(primitive)
        elif len(faces):
            update = {"indices": model.add_faces(faces), "mode": TRIANGLES}
            primitives.append(primitive.model_copy(update=update))
    return mesh.model_copy(update={"primitives": tuple(primitives)}) if primitives else None


def _drop_strays(model: Model, meshes: list[Mesh]) -> int:
    """Give primitives that share their vertices only those that one of them uses."""
    groups: dict[tuple[tuple[str, int], ...], list[tuple[int, int]]] = defaultdict(list)
    for m, mesh in enumerate(meshes):
        for p, primitive in enumerate(mesh.primitives):
            groups[tuple(sorted(primitive.attributes.items()))].append((m, p))
    dropped = 0
    for attributes, members in groups.items():
        used = np.zeros(model.count(dict(attributes)["POSITION"]), dtype=bool)
        for m, p in members:
            used[model.corners(meshes[m].primitives[p])] = True
        if used.all():
            continue
        dropped += int((~used).sum())
        smaller = {name: model.add_like(n, model.rows(n)[used]) for name, n in attributes}
        place = np.cumsum(used) - 1
        for m, p in members:
            primitives = list(meshes[m].primitives)
            indices = place[model.corners(primitives[p])]
            update = {"attributes": smaller, "indices": model.add_indices(indices)}
            primitives[p] = primitives[p].model_copy(update=update)
            meshes[m] = meshes[m].model_copy(update={"primitives": tuple(primitives)})
    return dropped


def _renumbered(node: Node, numbers: dict[int, int]) -> Node:
    if node.mesh is None:
        return node
    if node.mesh in numbers:
        return node.model_copy(update={"mesh": numbers[node.mesh]})
    return Node.model_validate({k: v for k, v in node.plain().items() if k != "mesh"})
