"""GLB files without their metadata: the JSON in front is made anew, the meshes stream behind it.

ComfyUI writes prompt and workflow into `asset.extras`.
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, cast

from gpu_server.finish.facts import Facts, Unreadable

_HEADER = struct.Struct("<4sII")
_CHUNK = struct.Struct("<I4s")
_FRONT = _HEADER.size + _CHUNK.size
_MAGIC, _JSON = b"glTF", b"JSON"
_LARGEST_JSON = 32 * 1024**2
_MARK = ("engine", "simulator")
"""What is kept of the extras: that no model made it."""
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_CORNERS = 3

_Object = Mapping[str, Any]


class GlbFilter:
    """Takes a GLB piece by piece; gives it back, without metadata unless that is to be kept."""

    def __init__(self, *, keep: bool) -> None:
        self.facts = Facts()
        self.removed = 0
        self.settled = False
        self.blocks = True
        self._keep = keep
        self._front = bytearray()

    def feed(self, piece: bytes) -> bytes:
        """Take the next bytes, return those that are ready. Raises Unreadable."""
        if self.settled:
            return piece
        self._front += piece
        try:
            made = self._begun()
        except Unreadable:
            if not self._keep:
                raise
            self.settled = True
            return bytes(self._front)
        self.settled = made is not None
        return made or b""

    def end(self) -> bytes:
        """Return what was held back. Raises Unreadable: the file ended within its JSON."""
        if self.settled:
            return b""
        if not self._keep:
            raise Unreadable("a GLB file that breaks off")
        return bytes(self._front)

    def _begun(self) -> bytes | None:
        """Make the file's front anew; None while it is not all there."""
        if len(self._front) < _FRONT:
            return None
        magic, version, length = _HEADER.unpack_from(self._front)
        size, kind = _CHUNK.unpack_from(self._front, _HEADER.size)
        if (magic, kind) != (_MAGIC, _JSON) or size > _LARGEST_JSON:
            raise Unreadable("a GLB file that is none")
        if len(self._front) < _FRONT + size:
            return None
        document = bytes(self._front[_FRONT : _FRONT + size])
        made = self._made(document)
        self.removed = len(document) - len(made)
        header = _HEADER.pack(magic, version, length - self.removed)
        rest = self._front[_FRONT + size :]
        return b"".join([header, _CHUNK.pack(len(made), kind), made, rest])

    def _made(self, document: bytes) -> bytes:
        try:
            gltf = json.loads(document)
            asset = cast("dict[str, Any]", gltf["asset"])
            told = _told(asset.get("extras"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unreadable("a GLB file that can't be read") from None
        self.facts = Facts(faces=_faces(gltf))
        if self._keep or "extras" not in asset:
            return document
        del asset["extras"]
        if _MARK in told:
            asset["extras"] = dict([_MARK])
        made = json.dumps(gltf, separators=(",", ":"), ensure_ascii=False).encode()
        return made + b" " * (-len(made) % 4)


def _told(extras: object) -> list[tuple[str, Any]]:
    if not isinstance(extras, dict):
        return []
    return list(cast("dict[str, Any]", extras).items())


def _faces(gltf: _Object) -> int | None:
    """Count the triangles; None where the file does not say."""
    try:
        return sum(
            _triangles(primitive, gltf["accessors"])
            for mesh in gltf["meshes"]
            for primitive in mesh["primitives"]
        )
    except (LookupError, TypeError, AttributeError, ValueError):
        return None


def _triangles(primitive: _Object, accessors: list[_Object]) -> int:
    corners: int | None = primitive.get("indices", primitive["attributes"].get("POSITION"))
    count = 0 if corners is None else int(accessors[corners]["count"])
    mode = primitive.get("mode", _TRIANGLES)
    if mode == _TRIANGLES:
        return count // _CORNERS
    return max(0, count - 2) if mode in {_STRIP, _FAN} else 0
