"""Writing PNG files fast: one filter, light compression, text chunks, padding on demand."""

import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from gpu_server.simulator.values import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}
_UP_FILTER = 2
_CHUNK_OVERHEAD = 12
"""Length, type and checksum of a chunk."""
_FILLER_BLOCK = 1 << 20
_BLOCK = 1 << 22
"""Bytes of pixels that are compressed at a time."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _text_chunk(key: str, text: str) -> bytes:
    try:
        return _chunk(b"tEXt", key.encode("latin-1") + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        # The international form: uncompressed, no language, no translated keyword.
        latin = key.encode("latin-1", "replace")
        return _chunk(b"iTXt", latin + b"\0\0\0\0\0" + text.encode())


def _chunks(picture: Image, texts: dict[str, str]) -> Iterator[bytes]:
    height, width, channels = picture.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    yield _SIGNATURE + _chunk(b"IHDR", header)
    for key, text in texts.items():
        yield _text_chunk(key, text)
    flat = picture.reshape(height, width * channels)
    packer = zlib.compressobj(1)
    block = max(1, _BLOCK // (width * channels))
    for top in range(0, height, block):
        packed = packer.compress(_filtered(flat, top, min(height, top + block)).data)
        if packed:
            yield _chunk(b"IDAT", packed)
    yield _chunk(b"IDAT", packer.flush())


def _filtered(flat: NDArray[np.uint8], top: int, bottom: int) -> NDArray[np.uint8]:
    """Store each row as its difference from the one above, with the filter's number before it."""
    rows = np.empty((bottom - top, 1 + flat.shape[1]), np.uint8)
    rows[:, 0] = _UP_FILTER
    rows[0, 1:] = flat[top] - flat[top - 1] if top else flat[top]
    np.subtract(flat[top + 1 : bottom], flat[top : bottom - 1], out=rows[1:, 1:])
    return rows


_END = _chunk(b"IEND", b"")


def encode(picture: Image, texts: dict[str, str]) -> bytes:
    """Encode rows, columns, 3 or 4 channels."""
    return b"".join(_chunks(picture, texts)) + _END


def write(path: Path, picture: Image, texts: dict[str, str], at_least: int = 0) -> None:
    """Write a PNG, padded to so many bytes with chunks that readers skip."""
    missing = at_least - len(_END)
    with path.open("wb") as file:
        for part in _chunks(picture, texts):
            file.write(part)
            missing -= len(part)
        while missing > 0:
            filler = _filler(min(_FILLER_BLOCK, max(0, missing - _CHUNK_OVERHEAD)))
            file.write(filler)
            missing -= len(filler)
        file.write(_END)


@lru_cache(maxsize=2)
def _filler(length: int) -> bytes:
    """Make a private chunk of random bytes, which no proxy can compress."""
    return _chunk(b"siMd", Random(0).randbytes(length))  # noqa: S311 - filler
