"""Moves and scales a scene by its vertices, so that whoever ignores nodes sees the true size too.

Only positions are written anew, and normals and tangents where a node turns or stretches them; a
mesh that is shown several times becomes as many meshes, which share all the rest. Nodes keep names
and children.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import TRIANGLES, Mesh, Node, Primitive, Scene
from gpu_server.mesh.model import Floats, Model
from gpu_server.mesh.order import Rescale, TargetDimensions
from gpu_server.mesh.scene import bounds, instances, moved, placements

_SMALLEST, _LARGEST = 1e-9, 1e9
"""Metres of a longest side that single precision still holds with all its digits."""
_FLAT = 1e-9
"""Of the longest side: an axis shorter than that has no size."""
_INEXACT = 1e-5
"""Of the longest side: far more than storing vertices in single precision may change."""
_TRANSFORM = {"matrix", "translation", "rotation", "scale", "camera", "skin"}


def normalise(model: Model) -> None:
    """Centre the scene on the origin and make its longest side 1."""
    low, high = bounds(model)
    longest = _longest(high - low)
    _bake(model, high - low, np.full(3, 1 / longest), (low + high) / 2, np.zeros(3))


def rescale(model: Model, step: Rescale) -> None:
    """Scale the scene about the origin."""
    low, high = bounds(model)
    size = high - low
    longest = _longest(size)
    if step.target_dimensions is not None:
        factors = _factors(step.target_dimensions, size, longest)
    else:
        factors = np.full(3, step.scale_factor)
    if not _SMALLEST <= float((size * factors).max()) <= _LARGEST:
        raise MeshError("mesh_out_of_range", "The scaled model would be far too small or large.")
    middle = (low + high) / 2
    _bake(model, size, factors, middle, middle * factors)


def _longest(size: Floats) -> float:
    longest = float(size.max())
    if longest <= 0:
        raise MeshError("mesh_flat", "All triangles of the model lie in one point.")
    return longest


def _factors(target: TargetDimensions, size: Floats, longest: float) -> Floats:
    wanted = {axis: side for axis, side in enumerate(target.metres()) if side is not None}
    flat = ["xyz"[axis] for axis in wanted if size[axis] <= _FLAT * longest]
    if flat:
        raise MeshError("mesh_flat", f"The model has no size along {' and '.join(flat)}.")
    ratios = {axis: side / float(size[axis]) for axis, side in wanted.items()}
    if target.mode == "fit":
        return np.full(3, min(ratios.values()))
    return np.array([ratios.get(axis, 1.0) for axis in range(3)])


def _bake(model: Model, size: Floats, factors: Floats, middle: Floats, at: Floats) -> None:
    """Scale every vertex about `middle` and bring that point to `at`, through all nodes."""
    # near the origin a float holds the place as well as the size; from afar a node holds the place
    aside = bool((np.abs(at) > size * factors).any())
    scaled = np.diag([*factors.tolist(), 1.0])
    scaled[:3, 3] = (0.0 if aside else at) - middle * factors
    bakery = _Bakery(model, {})
    shown = {index for index, _ in placements(model)}
    nodes = [_still(node, shown=n in shown) for n, node in enumerate(model.document.nodes)]
    meshes: list[Mesh] = []
    for index, matrix, mesh in instances(model):
        nodes[index] = nodes[index].model_copy(update={"mesh": len(meshes)})
        whole = tuple(bakery.primitive(p, scaled @ matrix) for p in mesh.primitives)
        meshes.append(mesh.model_copy(update={"primitives": whole}))
    roots = model.document.roots()
    if aside:
        place = {"name": "place", "translation": at.tolist(), "children": list(roots)}
        roots = (len(nodes),)
        nodes.append(Node.model_validate(place))
    # another scene would show the same nodes at another size
    scenes = model.document.scenes[model.document.scene or 0 :][:1] or (Scene(),)
    changed: dict[str, Any] = {
        "meshes": tuple(meshes),
        "nodes": tuple(nodes),
        "scenes": (scenes[0].model_copy(update={"nodes": roots}),),
        "scene": 0,
    }
    model.document = model.document.model_copy(update=changed)
    _check_size(model, size, factors, middle)


def _check_size(model: Model, size: Floats, factors: Floats, middle: Floats) -> None:
    """Refuse to hand out a model that came out at another size, whatever the reason."""
    low, high = bounds(model)
    # places far from the origin have lost digits before any work
    allowed = (_INEXACT * size.max() + 1e-12 * np.abs(middle)) * factors + _INEXACT * _SMALLEST
    if (np.abs(high - low - size * factors) > allowed).any():
        raise MeshError(
            "mesh_out_of_range", "Internal check: the model came out at a size it must not have."
        )


def _still(node: Node, *, shown: bool) -> Node:
    """Make a node that only names and groups; a camera or lamp would stand in the wrong place."""
    plain = node.plain()
    extensions: dict[str, Any] = plain.get("extensions", {})
    plain["extensions"] = {k: v for k, v in extensions.items() if k != "KHR_lights_punctual"}
    gone = _TRANSFORM if shown else _TRANSFORM | {"mesh"}
    return Node.model_validate({k: v for k, v in plain.items() if k not in gone and v != {}})


@dataclass(frozen=True, slots=True)
class _Bakery:
    """Writes vertices as seen from the world; what primitives share, they go on sharing."""

    model: Model
    done: dict[tuple[Hashable, ...], int]
    """Accessors by what they hold and all that it was made of: one number may serve as many."""

    def primitive(self, primitive: Primitive, matrix: Floats) -> Primitive:
        attributes = dict(primitive.attributes)
        index, seen = attributes["POSITION"], matrix.tobytes()
        attributes["POSITION"] = self._once(
            ("positions", index, seen), lambda: self._positions(index, matrix)
        )
        changed: dict[str, Any] = {}
        if not _keeps_directions(matrix[:3, :3]):
            if (normal := attributes.get("NORMAL")) is not None:
                attributes["NORMAL"] = self._once(
                    ("normals", normal, seen), lambda: self._normals(normal, matrix)
                )
            if (tangent := attributes.get("TANGENT")) is not None:
                attributes["TANGENT"] = self._once(
                    ("tangents", tangent, seen), lambda: self._tangents(tangent, matrix)
                )
            if np.linalg.det(matrix[:3, :3]) < 0:
                changed = self._turned(primitive)
        return primitive.model_copy(update={"attributes": attributes, **changed})

    def _turned(self, primitive: Primitive) -> dict[str, Any]:
        """What makes a mirrored primitive's triangles look outwards again."""
        faces = self.model.faces(primitive)
        if not len(faces):
            return {}
        count = self.model.count(primitive.attributes["POSITION"])
        key = ("faces", primitive.indices, primitive.mode, count)
        indices = self._once(key, lambda: self.model.add_faces(faces[:, ::-1]))
        return {"indices": indices, "mode": TRIANGLES}

    def _once(self, key: tuple[Hashable, ...], write: Callable[[], int]) -> int:
        if key not in self.done:
            self.done[key] = write()
        return self.done[key]

    def _positions(self, index: int, matrix: Floats) -> int:
        return self.model.add_positions(moved(self.model.points(index), matrix))

    def _normals(self, index: int, matrix: Floats) -> int:
        return self.model.add(carried_normals(self.model.numbers(index), matrix))

    def _tangents(self, index: int, matrix: Floats) -> int:
        linear = matrix[:3, :3]
        old = self.model.numbers(index)
        hand = old[:, 3:] * np.sign(np.linalg.det(linear))
        return self.model.add(np.hstack([_unit(old[:, :3] @ linear.T), hand.astype("<f4")]))


def carried_normals(normals: Floats, matrix: Floats) -> NDArray[np.float32]:
    """Carry normals through a 4x4 matrix; length 1 again."""
    return _unit(normals @ _cofactors(matrix[:3, :3]).T)


def _keeps_directions(linear: Floats) -> bool:
    """Whether normals and tangents stay as they are: the same positive scale on every axis."""
    scale = float(linear[0, 0])
    return scale > 0 and bool(np.allclose(linear, np.eye(3) * scale, rtol=0, atol=1e-12 * scale))


def _cofactors(linear: Floats) -> Floats:
    """What carries normals: the inverse transposed but for its length, and always there is one."""
    a, b, c = linear.T
    cofactors = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1)
    return cofactors * (-1 if np.linalg.det(linear) < 0 else 1)


def _unit(vectors: Floats) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype("<f4")
