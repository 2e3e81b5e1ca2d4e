"""Writing binary glTF 2.0: one mesh with several bodies, textures inside the file."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_server import __version__
from gpu_server.simulator.solids import Solid

GENERATOR = f"SIMULATED: ComfyUI simulator {__version__}, no model made this"
_MAGIC, _VERSION = b"glTF", 2
_ARRAY_BUFFER, _ELEMENT_BUFFER = 34962, 34963
_FLOAT, _UNSIGNED_INT = 5126, 5125
_GREY = [0.72, 0.72, 0.72, 1.0]


class _Binary:
    """The file's one buffer, with views and accessors into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        """Append bytes, on a multiple of four as every accessor needs it."""
        self.data += b"\0" * (-len(self.data) % 4)
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.data += data
        self.views.append(view if target is None else {**view, "target": target})
        return len(self.views) - 1

    def accessor(self, values: NDArray[Any], kind: str, *, bounded: bool = False) -> int:
        """Append an array; `bounded` adds its least and greatest values, as positions must have."""
        floats = values.dtype == np.float32
        flat = values if floats else values.reshape(-1)
        accessor: dict[str, Any] = {
            "bufferView": self.view(
                np.ascontiguousarray(flat).tobytes(), _ARRAY_BUFFER if floats else _ELEMENT_BUFFER
            ),
            "componentType": _FLOAT if floats else _UNSIGNED_INT,
            "count": len(flat),
            "type": kind,
        }
        if bounded:
            accessor |= {"min": values.min(axis=0).tolist(), "max": values.max(axis=0).tolist()}
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def encode(solids: list[Solid], textures: Mapping[str, bytes], extras: Mapping[str, Any]) -> bytes:
    """Encode bodies with one material.

    Args:
        solids: the bodies; they need texture coordinates if there are textures.
        textures: PNG files by their place in the material: `baseColorTexture`,
            `metallicRoughnessTexture`.
        extras: what else the file says about itself.
    """
    binary = _Binary()
    primitives = [_primitive(binary, solid) for solid in solids]
    surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
    if not textures:
        surface["baseColorFactor"] = _GREY
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": GENERATOR, "extras": dict(extras)},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": primitives}],
        "materials": [{"pbrMetallicRoughness": surface}],
    }
    for index, (place, png) in enumerate(textures.items()):
        image = {"bufferView": binary.view(png), "mimeType": "image/png"}
        document.setdefault("images", []).append(image)
        document.setdefault("textures", []).append({"source": index})
        surface[place] = {"index": index}
        if place == "metallicRoughnessTexture":
            # The factors multiply what the texture says.
            surface |= {"metallicFactor": 1.0, "roughnessFactor": 1.0}
    document |= {
        "buffers": [{"byteLength": len(binary.data)}],
        "bufferViews": binary.views,
        "accessors": binary.accessors,
    }
    return _container(json.dumps(document, separators=(",", ":")).encode(), bytes(binary.data))


def _primitive(binary: _Binary, solid: Solid) -> dict[str, Any]:
    attributes = {
        "POSITION": binary.accessor(solid.positions, "VEC3", bounded=True),
        "NORMAL": binary.accessor(solid.normals, "VEC3"),
    }
    if solid.uvs is not None:
        attributes["TEXCOORD_0"] = binary.accessor(solid.uvs, "VEC2")
    indices = binary.accessor(solid.indices, "SCALAR")
    return {"attributes": attributes, "indices": indices, "material": 0}


def _container(document: bytes, binary: bytes) -> bytes:
    document += b" " * (-len(document) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = b"".join(
        struct.pack("<I4s", len(data), kind) + data
        for kind, data in ((b"JSON", document), (b"BIN\0", binary))
    )
    return struct.pack("<4sII", _MAGIC, _VERSION, 12 + len(chunks)) + chunks


def write(
    path: Path, solids: list[Solid], textures: Mapping[str, bytes], extras: Mapping[str, Any]
) -> None:
    """Write a GLB file."""
    path.write_bytes(encode(solids, textures, extras))
