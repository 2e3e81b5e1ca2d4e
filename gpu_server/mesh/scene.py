"""Where the meshes of a scene stand, and how large it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import Mesh, Node, Primitive, item
from gpu_server.mesh.model import Floats, Model
from gpu_server.mesh.order import Extents, MeshLimits

_IDENTITY: Floats = np.eye(4)


def placements(model: Model) -> list[tuple[int, Floats]]:
    """Every node that is shown with its 4x4 matrix to the world, parents first."""
    nodes = model.document.nodes
    found: list[tuple[int, Floats]] = []
    waiting = [(root, _IDENTITY) for root in model.document.roots()]
    while waiting:
        index, parent = waiting.pop()
        matrix = parent @ _local(item(nodes, index, "node"))
        if not np.isfinite(matrix).all():
            raise MeshError("mesh_not_finite", "A node of the model is scaled to infinity.")
        found.append((index, matrix))
        waiting.extend((child, matrix) for child in nodes[index].children)
    return found


def check_scene(model: Model, limits: MeshLimits) -> None:
    """Refuse a node graph that is no tree or too deep, and scenes that draw too much."""
    _check_tree(model, limits.depth)
    parts = vertices = faces = 0
    for _, _, mesh in instances(model):
        parts += len(mesh.primitives)
        for primitive in mesh.primitives:
            vertices += model.count(primitive.attributes["POSITION"])
            faces += model.drawn(primitive)
        if parts > limits.items or vertices > limits.vertices or faces > limits.faces:
            raise MeshError(
                "mesh_too_large",
                f"The model draws more than {limits.vertices} vertices, {limits.faces} faces"
                f" or {limits.items} parts.",
            )


def _check_tree(model: Model, depth: int) -> None:
    document = model.document
    if document.scenes:
        item(document.scenes, document.scene or 0, "scene")
    seen: set[int] = set()
    level = list(document.roots())
    for _ in range(depth):
        if len(set(level)) != len(level) or not seen.isdisjoint(level):
            raise MeshError("mesh_invalid", "The nodes of the model are no tree.")
        seen.update(level)
        level = [c for n in level for c in item(document.nodes, n, "node").children]
        if not level:
            return
    raise MeshError("mesh_too_large", f"The nodes of the model are more than {depth} deep.")


def instances(model: Model) -> Iterator[tuple[int, Floats, Mesh]]:
    """Every node that shows a mesh, with its matrix to the world."""
    for index, matrix in placements(model):
        number = model.document.nodes[index].mesh
        if number is not None:
            yield index, matrix, item(model.document.meshes, number, "mesh")


def moved(points: Floats, matrix: Floats) -> Floats:
    """Carry points through a 4x4 matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def bounds(model: Model) -> tuple[Floats, Floats]:
    """Corners of the box around every triangle that is shown, in metres."""
    low, high, empty = np.full(3, np.inf), np.full(3, -np.inf), True
    for _, matrix, mesh in instances(model):
        for primitive in mesh.primitives:
            points = moved(_cornered(model, primitive), matrix)
            if len(points):
                empty = False
                low = np.minimum(low, points.min(axis=0))
                high = np.maximum(high, points.max(axis=0))
    if empty:
        raise MeshError("mesh_empty", "The model has no triangles.")
    if not np.isfinite(high - low).all():
        raise MeshError("mesh_not_finite", "The model is larger than its numbers can hold.")
    return low, high


def extents(low: Floats, high: Floats) -> Extents:
    """The box's lengths."""
    x, y, z = (high - low).tolist()
    return Extents(x=x, y=y, z=z)


def _cornered(model: Model, primitive: Primitive) -> Floats:
    """Those vertices of a primitive that a triangle has."""
    points, faces = model.points(primitive.attributes["POSITION"]), model.faces(primitive)
    used = np.zeros(len(points), dtype=bool)
    used[faces.ravel()] = True
    return points[used]


def _local(node: Node) -> Floats:
    if node.matrix is not None:
        # glTF writes columns
        return np.array(node.matrix, dtype=np.float64).reshape(4, 4).T
    x, y, z, w = node.rotation
    length = float(np.hypot(np.hypot(x, y), np.hypot(z, w)))
    if not length:
        raise MeshError("mesh_invalid", "A node of the model has no rotation.")
    x, y, z, w = x / length, y / length, z / length, w / length
    turn: Any = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    local = np.eye(4)
    local[:3, :3] = np.array(turn, dtype=np.float64) * np.array(node.scale)
    local[:3, 3] = node.translation
    return local
