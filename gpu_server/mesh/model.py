"""A glTF document with its bytes: rows are read from it and new ones put into it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gpu_server.mesh import container
from gpu_server.mesh.check import check, understood
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import (
    COMPONENTS,
    FAN,
    TRIANGLES,
    WIDTHS,
    Accessor,
    Buffer,
    BufferView,
    Document,
    Image,
    Mesh,
    Primitive,
)
from gpu_server.mesh.order import MeshLimits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[Any]

CODES = {name: code for code, name in COMPONENTS.items()}
_OF_THE_ROWS = ("bufferView", "byteOffset", "componentType", "count", "type", "min", "max")
_TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


class Model:
    """What is being worked on: parts of the document are replaced, the file's bytes never."""

    def __init__(self, document: Document, blob: memoryview) -> None:
        self.document = document
        self._blob = blob
        self._accessors = list(document.accessors)
        self._views = list(document.buffer_views)
        self._added: dict[int, bytes] = {}

    @classmethod
    def load(cls, path: Path, limits: MeshLimits) -> "Model":
        """Read a GLB after everything about it that can be checked has been."""
        document, blob = container.read(path, limits)
        check(document, blob, limits)
        return cls(document, blob)

    def save(self, path: Path) -> None:
        """Write a GLB with all that is still referred to; untouched bytes stay as they were."""
        document = self.document
        used = self._used()
        meshes = tuple(_renumbered(mesh, used) for mesh in document.meshes)
        accessors = [self._accessors[n] for n in used]
        views = sorted(
            {a.buffer_view for a in accessors if a.buffer_view is not None}
            | {image.buffer_view for image in document.images if image.buffer_view is not None}
        )
        if not self._closed():
            views = list(range(len(self._views)))
        place = {view: n for n, view in enumerate(views)}
        moved, slices, at = list[BufferView](), list[memoryview | bytes](), 0
        for number in views:
            data = self._slice(number)
            moved.append(self._views[number].model_copy(update={"byte_offset": at}))
            slices.append(data)
            at += len(data) + -len(data) % 4
        changed: dict[str, Any] = {
            "meshes": meshes,
            "accessors": tuple(_with_view(a, place) for a in accessors),
            "images": tuple(_with_view(i, place) for i in document.images),
            "buffer_views": tuple(moved),
            "buffers": (Buffer(byte_length=at),) if at else (),
        }
        # an empty list is not valid glTF
        kept = {k: v for k, v in changed.items() if v or getattr(document, k)}
        container.write(path, document.model_copy(update=kept), slices)

    def _closed(self) -> bool:
        """Whether every reference into the buffer is one that is known here."""
        return all(understood(name) for name in self.document.extensions_used)

    def _used(self) -> dict[int, int]:
        """Accessors that are referred to, each with its new number."""
        if not self._closed():
            return {n: n for n in range(len(self._accessors))}
        used = {
            n
            for mesh in self.document.meshes
            for primitive in mesh.primitives
            for n in (*primitive.attributes.values(), primitive.indices)
            if n is not None
        }
        return {old: new for new, old in enumerate(sorted(used))}

    def _slice(self, number: int) -> memoryview | bytes:
        view = self._views[number]
        if number in self._added:
            return self._added[number]
        return self._blob[view.byte_offset : view.byte_offset + view.byte_length]

    def image(self, number: int) -> bytes:
        """The file of an image."""
        return bytes(self._slice(self.document.images[number].buffer_view or 0))

    def rows(self, index: int) -> Rows:
        """Rows of an accessor as they are stored, (count, width), read only."""
        accessor = self._accessors[index]
        number = accessor.buffer_view or 0
        dtype = np.dtype(COMPONENTS[accessor.component_type])
        width = WIDTHS[accessor.type]
        stride = self._views[number].byte_stride or width * dtype.itemsize
        rows: Rows = np.ndarray(
            (accessor.count, width),
            dtype,
            buffer=self._slice(number),
            offset=accessor.byte_offset,
            strides=(stride, dtype.itemsize),
        )
        rows.flags.writeable = False
        return rows

    def numbers(self, index: int) -> Floats:
        """Rows of an accessor as the numbers they stand for (integers may mean fractions)."""
        accessor, rows = self._accessors[index], self.rows(index)
        numbers = rows.astype(np.float64)
        if accessor.normalized and rows.dtype.kind in "iu":
            numbers = np.maximum(numbers / np.iinfo(rows.dtype).max, -1.0)
        return numbers

    def points(self, index: int) -> Floats:
        """Vertices of an accessor, (n, 3), all of them finite."""
        points = self.numbers(index)
        if not np.isfinite(points).all():
            raise MeshError("mesh_not_finite", "A vertex of the model lies at NaN or infinity.")
        return points

    def count(self, index: int) -> int:
        """How many rows an accessor has."""
        return self._accessors[index].count

    def drawn(self, primitive: Primitive) -> int:
        """How many triangles a primitive has, at most."""
        index = primitive.attributes["POSITION"] if primitive.indices is None else primitive.indices
        corners = self.count(index)
        return corners // 3 if primitive.mode == TRIANGLES else corners

    def corners(self, primitive: Primitive) -> Ints:
        """Numbers of the vertices that are drawn, in their order."""
        count = self.count(primitive.attributes["POSITION"])
        if primitive.indices is None:
            return np.arange(count, dtype=np.int64)
        corners = self.rows(primitive.indices)[:, 0].astype(np.int64)
        if len(corners) and int(corners.max()) >= count:
            raise MeshError("mesh_invalid", "A face refers to a vertex that is not there.")
        return corners

    def faces(self, primitive: Primitive) -> Ints:
        """Triangles of a primitive as vertex numbers, (n, 3); none for points and lines."""
        if primitive.mode < TRIANGLES:
            return np.empty((0, 3), dtype=np.int64)
        corners = self.corners(primitive)
        if primitive.mode == TRIANGLES:
            return corners[: len(corners) // 3 * 3].reshape(-1, 3)
        first, second, third = corners[:-2], corners[1:-1], corners[2:]
        if primitive.mode == FAN:
            return np.stack([second, third, np.full_like(second, corners[0])], axis=1)
        strip = np.stack([first, second, third], axis=1)
        strip[1::2] = strip[1::2][:, [0, 2, 1]]
        return strip

    def add(self, rows: Rows, *, indices: bool = False, **properties: object) -> int:
        """Store rows under a new accessor and return its number."""
        height, width = rows.shape
        row = rows.dtype.itemsize * width
        # vertex data wants each row at a multiple of four, indices want no gaps
        gap = 0 if indices else -row % 4
        data = np.ascontiguousarray(rows)
        if gap:
            data = np.pad(data.view(np.uint8).reshape(height, row), ((0, 0), (0, gap)))
        stride = {"byteStride": row + gap} if gap else {}
        view = {"buffer": 0, "byteOffset": 0, "byteLength": data.nbytes, **stride}
        accessor = {
            "bufferView": len(self._views),
            "componentType": CODES[rows.dtype.str.replace("|", "<")],
            "count": height,
            "type": _TYPES[width],
            **properties,
        }
        self._added[len(self._views)] = data.tobytes()
        self._views.append(BufferView.model_validate(view))
        self._accessors.append(Accessor.model_validate(accessor))
        return len(self._accessors) - 1

    def add_like(self, index: int, rows: Rows) -> int:
        """Store rows in place of an accessor's, meaning the same; bounds of positions made anew."""
        old = self._accessors[index].plain()
        old = {k: v for k, v in old.items() if k not in _OF_THE_ROWS}
        bounds = "min" in self._accessors[index].plain()
        if bounds:
            old |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        return self.add(rows, **old)

    def add_positions(self, points: Floats) -> int:
        """Store vertices as floats, with the bounds glTF wants."""
        with np.errstate(over="ignore"):
            stored = points.astype("<f4")
        if not np.isfinite(stored).all():
            raise MeshError("mesh_out_of_range", "The scaled model would be far too large.")
        return self.add(stored, min=stored.min(axis=0).tolist(), max=stored.max(axis=0).tolist())

    def add_faces(self, faces: Ints) -> int:
        """Store triangles, (n, 3), as indices."""
        return self.add_indices(faces.ravel())

    def add_indices(self, corners: Ints) -> int:
        """Store vertex numbers in the smallest type that holds them."""
        # the largest number of a type is reserved
        dtype = "<u2" if int(corners.max()) < np.iinfo(np.uint16).max else "<u4"
        return self.add(corners.reshape(-1, 1).astype(dtype), indices=True)


P = TypeVar("P", Accessor, Image)


def _with_view(part: P, place: Mapping[int, int]) -> P:
    if part.buffer_view is None:
        return part
    return part.model_copy(update={"buffer_view": place[part.buffer_view]})


def _renumbered(mesh: Mesh, used: Mapping[int, int]) -> Mesh:
    def one(primitive: Primitive) -> Primitive:
        attributes = {name: used[n] for name, n in primitive.attributes.items()}
        changed: dict[str, Any] = {"attributes": attributes}
        if primitive.indices is not None:
            changed["indices"] = used[primitive.indices]
        return primitive.model_copy(update=changed)

    return mesh.model_copy(update={"primitives": tuple(one(p) for p in mesh.primitives)})
