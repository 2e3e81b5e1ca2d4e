"""GLB files: taken apart within limits, put together again."""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import Document
from gpu_server.mesh.order import MeshLimits

_MAGIC, _JSON, _BIN = 0x46546C67, 0x4E4F534A, 0x004E4942
_HEAD = 12


def read(path: Path, limits: MeshLimits) -> tuple[Document, memoryview]:
    """Read a GLB: its document, and the bytes it refers to."""
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise MeshError(
            "mesh_too_large", f"The file has {size} bytes; at most {limits.file_bytes} are allowed."
        )
    data = memoryview(path.read_bytes())
    if len(data) < _HEAD + 8 or struct.unpack_from("<I", data)[0] != _MAGIC:
        raise MeshError("mesh_invalid", "The file is not a GLB (binary glTF 2.0).")
    version, total = struct.unpack_from("<II", data, 4)
    if version != 2 or total > len(data):  # noqa: PLR2004  # the only version GLB has
        raise MeshError("mesh_invalid", "The GLB is cut short or of an unknown version.")
    chunks = _chunks(data[_HEAD:total])
    if not chunks or chunks[0][0] != _JSON:
        raise MeshError("mesh_invalid", "The GLB does not begin with its glTF document.")
    if len(chunks[0][1]) > limits.json_bytes:
        raise MeshError(
            "mesh_too_large", f"The glTF document is larger than {limits.json_bytes} bytes."
        )
    document = _document(bytes(chunks[0][1]))
    blob = chunks[1][1] if len(chunks) > 1 and chunks[1][0] == _BIN else memoryview(b"")
    return document, blob


def write(path: Path, document: Document, slices: Iterable[memoryview | bytes]) -> None:
    """Write a GLB whose buffer is the slices in their order, each begun at a multiple of four."""
    parts = list(slices)
    size = sum(_padded(len(part)) for part in parts)
    text = _text(document)
    text += b" " * (-len(text) % 4)
    total = _HEAD + 8 + len(text) + (8 + size if size else 0)
    if total >= 2**32:
        raise MeshError("mesh_too_large", "The model does not fit into a GLB of 4 GiB.")
    with path.open("wb") as file:
        file.write(struct.pack("<IIIII", _MAGIC, 2, total, len(text), _JSON))
        file.write(text)
        if size:
            file.write(struct.pack("<II", size, _BIN))
        for part in parts:
            file.write(part)
            file.write(b"\0" * (_padded(len(part)) - len(part)))


def _text(document: Document) -> bytes:
    return json.dumps(document.plain(), separators=(",", ":"), ensure_ascii=False).encode()


def _padded(size: int) -> int:
    return size + -size % 4


def _chunks(data: memoryview) -> list[tuple[int, memoryview]]:
    found: list[tuple[int, memoryview]] = []
    # the document and its buffer; what may follow is for extensions nobody has defined
    while len(data) >= 8 and len(found) < 2:  # noqa: PLR2004  # a chunk's head
        size, kind = struct.unpack_from("<II", data)
        if size > len(data) - 8:
            raise MeshError("mesh_invalid", "A chunk of the GLB reaches behind the file's end.")
        found.append((kind, data[8 : 8 + size]))
        data = data[8 + size :]
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _document(text: bytes) -> Document:
    try:
        document = Document.model_validate(json.loads(text, parse_constant=_no_constant))
        # what cannot be written again, as it is nested too deeply, is refused before any work
        _text(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"][:6])
        raise MeshError("mesh_invalid", f"The glTF document is wrong at {where}.") from None
    except UnicodeEncodeError:
        # JSON can escape half of a surrogate pair, which no Unicode text may have
        raise MeshError("mesh_invalid", "A text of the glTF document is no Unicode.") from None
    except (ValueError, RecursionError):
        raise MeshError("mesh_invalid", "The glTF document is no JSON that can be read.") from None
    return document
