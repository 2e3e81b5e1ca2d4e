"""GLB files made by hand, byte by byte, and read back without the code under test."""

import json
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, UINT8, UINT16, UINT32, INT8, INT16 = 5126, 5121, 5123, 5125, 5120, 5122
COMPONENTS = {
    "float32": FLOAT,
    "uint8": UINT8,
    "uint16": UINT16,
    "uint32": UINT32,
    "int8": INT8,
    "int16": INT16,
}
WIDTHS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}


def png(width: int, height: int, shade: int) -> bytes:
    """A grey picture, deflated by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([shade]) * width) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def pack(document: dict[str, Any], blob: bytes = b"") -> bytes:
    """Put a glTF document and its buffer into a GLB."""
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if blob:
        blob += b"\0" * (-len(blob) % 4)
        chunks += struct.pack("<II", len(blob), 0x004E4942) + blob
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunks)) + chunks


def unpack(glb: bytes | Path) -> tuple[dict[str, Any], bytes]:
    """Take a GLB apart."""
    data = glb.read_bytes() if isinstance(glb, Path) else glb
    magic, version, total = struct.unpack_from("<III", data)
    assert (magic, version, total) == (0x46546C67, 2, len(data))
    size, kind = struct.unpack_from("<II", data, 12)
    assert kind == 0x4E4F534A
    document = json.loads(data[20 : 20 + size])
    rest = data[20 + size :]
    return document, rest[8 : 8 + struct.unpack_from("<I", rest)[0]] if rest else b""


class Model:
    """A glTF document in the making."""

    def __init__(self) -> None:
        self.blob = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "by hand"},
            "scene": 0,
            "scenes": [{"nodes": []}],
            **{k: [] for k in ("nodes", "meshes", "accessors", "bufferViews", "materials")},
            **{k: [] for k in ("textures", "images", "samplers")},
        }

    def view(self, data: bytes, **more: Any) -> int:
        self.blob += b"\0" * (-len(self.blob) % 4)
        at = len(self.blob)
        self.blob += data
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": at, "byteLength": len(data), **more}
        )
        return len(self.document["bufferViews"]) - 1

    def accessor(self, rows: Any, dtype: str = "float32", **more: Any) -> int:
        array = np.asarray(rows, dtype=dtype)
        width = 1 if array.ndim == 1 else array.shape[1]
        entry = {
            "bufferView": self.view(array.tobytes()),
            "componentType": COMPONENTS[dtype],
            "count": len(array),
            "type": WIDTHS[width],
            **more,
        }
        if dtype == "float32" and width == 3 and len(array):
            entry |= {"min": array.min(axis=0).tolist(), "max": array.max(axis=0).tolist()}
        self.document["accessors"].append(entry)
        return len(self.document["accessors"]) - 1

    def texture(self, picture: bytes, media_type: str = "image/png") -> dict[str, int]:
        image = {"bufferView": self.view(picture), "mimeType": media_type}
        self.document["images"].append(image)
        if not self.document["samplers"]:
            self.document["samplers"].append({"wrapS": 33071, "wrapT": 33648, "magFilter": 9728})
        self.document["textures"].append({"source": len(self.document["images"]) - 1, "sampler": 0})
        return {"index": len(self.document["textures"]) - 1}

    def mesh(self, *primitives: dict[str, Any], name: str = "part") -> int:
        self.document["meshes"].append({"name": name, "primitives": list(primitives)})
        return len(self.document["meshes"]) - 1

    def node(self, *, root: bool = True, **node: Any) -> int:
        self.document["nodes"].append(node)
        index = len(self.document["nodes"]) - 1
        if root:
            self.document["scenes"][0]["nodes"].append(index)
        return index

    def bytes(self) -> bytes:
        document = {k: v for k, v in self.document.items() if v != []}
        if self.blob:
            document["buffers"] = [{"byteLength": len(self.blob)}]
        return pack(document, bytes(self.blob))

    def save(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path


def sphere(columns: int = 24, rows: int = 12, radius: float = 1.0) -> dict[str, np.ndarray]:
    """A UV sphere whose seam has every vertex twice, once for each side of the picture."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    # the seam's two columns must lie at the very same place
    angle = 2 * np.pi * np.where(u == 1, 0, u)
    polar = np.pi * v
    ring = np.where((v == 0) | (v == 1), 0, np.sin(polar))
    points = np.stack([ring * np.cos(angle), np.cos(polar), ring * np.sin(angle)], axis=-1)
    points = points.reshape(-1, 3)
    faces: list[Sequence[int]] = []
    for row in range(rows):
        for column in range(columns):
            a = row * (columns + 1) + column
            b, c, d = a + 1, a + columns + 1, a + columns + 2
            if row:
                faces.append((a, b, c))
            if row < rows - 1:
                faces.append((b, d, c))
    return {
        "points": (points * radius).astype(np.float32),
        "normals": points.astype(np.float32),
        "uv": np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32),
        "faces": np.array(faces, dtype=np.uint32),
    }


def box(x: float = 1, y: float = 1, z: float = 1) -> tuple[np.ndarray, np.ndarray]:
    """Eight corners and twelve triangles, centred on the origin."""
    corners = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return (corners * (x, y, z)).astype(np.float32), np.array(faces, dtype=np.uint32)


def read(document: dict[str, Any], blob: bytes, index: int) -> np.ndarray:
    """The rows of a plain accessor."""
    accessor = document["accessors"][index]
    view = document["bufferViews"][accessor["bufferView"]]
    dtype = np.dtype(next(n for n, c in COMPONENTS.items() if c == accessor["componentType"]))
    width = next(n for n, t in WIDTHS.items() if t == accessor["type"])
    at = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stride = view.get("byteStride") or width * dtype.itemsize
    rows = [
        np.frombuffer(blob, dtype, width, at + row * stride) for row in range(accessor["count"])
    ]
    return np.array(rows).reshape(accessor["count"], width)


def rich() -> Model:
    """A sphere with every PBR map, and two instances of a coloured box in a moved frame."""
    model = Model()
    ball = sphere()
    maps = [model.texture(png(8 * (n + 1), 8, 40 * n)) for n in range(5)]
    model.document["materials"] = [
        {
            "name": "skin",
            "pbrMetallicRoughness": {
                "baseColorFactor": [1, 0.9, 0.8, 1],
                "baseColorTexture": maps[0],
                "metallicRoughnessTexture": maps[1],
                "metallicFactor": 0.25,
                "roughnessFactor": 0.75,
            },
            "normalTexture": maps[2] | {"scale": 0.5},
            "occlusionTexture": maps[3] | {"strength": 0.3, "texCoord": 1},
            "emissiveTexture": maps[4],
            "emissiveFactor": [0.1, 0.2, 0.3],
            "alphaMode": "MASK",
            "alphaCutoff": 0.4,
            "doubleSided": True,
            "extensions": {"KHR_materials_clearcoat": {"clearcoatFactor": 0.7}},
        },
        {"name": "plain", "pbrMetallicRoughness": {"baseColorFactor": [0, 1, 0, 1]}},
    ]
    model.document["extensionsUsed"] = ["KHR_materials_clearcoat"]
    tangents = np.tile(np.float32([1, 0, 0, -1]), (len(ball["points"]), 1))
    attributes = {
        "POSITION": model.accessor(ball["points"]),
        "NORMAL": model.accessor(ball["normals"]),
        "TANGENT": model.accessor(tangents),
        "TEXCOORD_0": model.accessor(ball["uv"]),
        "TEXCOORD_1": model.accessor(ball["uv"] * 0.5),
    }
    half = len(ball["faces"]) // 2
    halves = (ball["faces"][:half], ball["faces"][half:])
    skin = model.mesh(
        *(
            {
                "attributes": attributes,
                "indices": model.accessor(part.ravel(), "uint32"),
                "material": material,
            }
            for material, part in enumerate(halves)
        ),
        name="ball",
    )
    corners, faces = box(0.5, 1, 2)
    colours = np.arange(32, dtype=np.uint8).reshape(8, 4) * 8
    cube = model.mesh(
        {
            "attributes": {
                "POSITION": model.accessor(corners),
                "COLOR_0": model.accessor(colours, "uint8", normalized=True),
            },
            "indices": model.accessor(faces.ravel(), "uint16"),
        },
        name="cube",
    )
    first = model.node(root=False, name="left", mesh=cube, translation=[-3, 0, 0])
    turned = {"rotation": [0, 0, 2**-0.5, 2**-0.5], "scale": [1, 2, 1]}
    second = model.node(root=False, name="right", mesh=cube, translation=[3, 1, 0], **turned)
    model.node(name="pair", children=[first, second], translation=[0, 0, 0.5])
    model.node(name="middle", mesh=skin, extras={"kept": True})
    return model
