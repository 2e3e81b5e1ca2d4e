"""What a picture file is put together of, counted before a decoder sees it.

Decoders take each part in turn, some of them in Python: a small file of a million empty parts, or
of a thousand passes over the same pixels, holds one up for minutes.
"""

import re
import struct
from collections.abc import Callable, Mapping
from typing import IO

MOST_PARTS = 2_000
"""Chunks or segments beside the pixels themselves; cameras write some dozens."""
MOST_PIECES = 400_000
"""Pieces that pixels come in, those of every frame: 255 bytes each in a GIF."""
MOST_SCANS = 60
"""Passes over the pixels of a progressive JPEG; encoders make about ten."""

_PIECE = 1024 * 1024
_PNG_SIGNATURE = 8
_CHUNK = struct.Struct(">I4s")
_CRC = 4
_PIXELS = frozenset({b"IDAT", b"fcTL", b"fdAT"})
_SCAN = b"\xff\xda"
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_END_OF_HEADER = frozenset({0xDA, 0xD9})
_MARKER = re.compile(rb"[^\xff]*(\xff+)([^\xff])", re.DOTALL)
_GIF_HEADER = struct.Struct("<6sHHBBB")
_GIF_IMAGE = struct.Struct("<HHHHB")
_TABLE = 0x80


class TooManyParts(Exception):
    """More than any encoder makes."""


class _Count:
    def __init__(self, most: int) -> None:
        self._left = most

    def one(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyParts


def count_parts(file: IO[bytes], media_type: str) -> None:
    """Walk a file of that type from its beginning; raises TooManyParts.

    One that is damaged is left to its decoder.
    """
    file.seek(0)
    walk = _WALKS.get(media_type)
    if walk is not None:
        walk(file)
    file.seek(0)


def _png(file: IO[bytes]) -> None:
    parts, pieces = _Count(MOST_PARTS), _Count(MOST_PIECES)
    file.seek(_PNG_SIGNATURE)
    while len(head := file.read(_CHUNK.size)) == _CHUNK.size:
        length, kind = _CHUNK.unpack(head)
        (pieces if kind in _PIXELS else parts).one()
        if kind == b"IEND":
            return
        file.seek(length + _CRC, 1)


def _jpeg(file: IO[bytes]) -> None:
    _jpeg_header(file)
    file.seek(0)
    scans, last = _Count(MOST_SCANS), b""
    while piece := file.read(_PIECE):
        for _ in range((last + piece).count(_SCAN)):
            scans.one()
        last = piece[-1:]


def _jpeg_header(file: IO[bytes]) -> None:
    """Walk the segments up to the first pixels."""
    parts = _Count(MOST_PARTS)
    file.seek(2)
    while len(window := file.read(MOST_PARTS)) > 1:
        parts.one()
        found = _MARKER.match(window)
        if found is None and len(window) < MOST_PARTS:
            return
        if found is None:
            # nothing but fill bytes, or what is no marker at all
            raise TooManyParts
        marker = found[2][0]
        if marker in _END_OF_HEADER:
            return
        at = file.tell() - len(window) + found.end()
        file.seek(at)
        if marker in _BARE_MARKERS:
            continue
        length = int.from_bytes(file.read(2))
        file.seek(at + max(2, length))


def _gif(file: IO[bytes]) -> None:
    pieces = _Count(MOST_PIECES)
    head = file.read(_GIF_HEADER.size)
    if len(head) == _GIF_HEADER.size:
        file.seek(_table(head[10]), 1)
    while kind := file.read(1):
        pieces.one()
        if kind == b"!":
            file.seek(1, 1)
        elif kind == b",":
            image = file.read(_GIF_IMAGE.size)
            if len(image) < _GIF_IMAGE.size:
                return
            file.seek(_table(image[8]) + 1, 1)
        else:
            # its end; readers skip what else there is byte by byte
            if kind == b";":
                return
            continue
        while size := file.read(1):
            pieces.one()
            if size == b"\0":
                break
            file.seek(size[0], 1)


def _table(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 * (2 << (flags & 7)) if flags & _TABLE else 0


_WALKS: Mapping[str, Callable[[IO[bytes]], None]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
}
