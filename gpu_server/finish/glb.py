"""GLB files without their metadata: the JSON in front is made anew, the meshes stream behind it.

ComfyUI writes prompt and workflow into `asset.extras`.
"""

import json
import struct
from collections.abc import Mapping
from functools import partial
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
_MOST_FACES = 2**31
"""More than the 32 bits of the column that keeps them take; no real file has as many."""

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
        removed = len(document) - len(made)
        try:
            header = _HEADER.pack(magic, version, length - removed)
        except struct.error:
            raise Unreadable("a GLB file whose length is wrong") from None
        self.removed = removed
        rest = self._front[_FRONT + size :]
        return b"".join([header, _CHUNK.pack(len(made), kind), made, rest])

    def _made(self, document: bytes) -> bytes:
        try:
            gltf = json.loads(document)
            asset = cast("dict[str, Any]", gltf["asset"])
            self.facts = Facts(faces=_faces(gltf))
            if self._keep or "extras" not in asset:
                return document
            extras = asset.pop("extras")
            if isinstance(extras, dict) and _MARK in cast("dict[str, Any]", extras).items():
                asset["extras"] = dict([_MARK])
            made = _dumped(gltf)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Unreadable("a GLB file that can't be read") from None
        return made + b" " * (-len(made) % 4)


def _dumped(gltf: _Object) -> bytes:
    # infinite where a number was too large: no JSON then, and so a ValueError
    dumps = partial(json.dumps, gltf, separators=(",", ":"), allow_nan=False)
    try:
        return dumps(ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # half a surrogate pair: JSON has it as an escape alone
        return dumps(ensure_ascii=True).encode()


def _faces(gltf: _Object) -> int | None:
    """Count the triangles; None where the file does not say."""
    try:
        faces = sum(
            _triangles(primitive, gltf["accessors"])
            for mesh in gltf["meshes"]
            for primitive in mesh["primitives"]
        )
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        return None
    return faces if 0 <= faces < _MOST_FACES else None


def _triangles(primitive: _Object, accessors: list[_Object]) -> int:
    corners: int | None = primitive.get("indices", primitive["attributes"].get("POSITION"))
    count = 0 if corners is None else int(accessors[corners]["count"])
    mode = primitive.get("mode", _TRIANGLES)
    if mode == _TRIANGLES:
        return count // _CORNERS
    return max(0, count - 2) if mode in {_STRIP, _FAN} else 0
