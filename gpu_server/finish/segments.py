"""WebP and JPEG files without their metadata, copied segment by segment: nothing is decoded.

ComfyUI writes prompt and workflow as EXIF.
"""

import re
import struct
from typing import BinaryIO

from gpu_server.finish.facts import Unreadable

_COPY = 1 << 20

_WEBP_KEPT = {b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP"}
_RIFF_HEADER, _CHUNK_HEADER = 12, 8
_HAS_EXIF, _HAS_XMP = 0x08, 0x04
_FRONT = 16
_DURATION = slice(12, 15)
"""Where a frame of an animation says how many milliseconds it is shown."""

_START, _END, _SCAN, _MARKER = b"\xff\xd8", 0xD9, 0xDA, 0xFF
_BEHIND_SCAN = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""A marker with which the pixels end: no stuffed byte, no restart."""
_SCAN_PIECE = 1 << 16
_LENGTH = 2
"""Bytes that say how long a segment is, and count as part of it."""
_APP0, _APP1, _APP2, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE
_COLOURS = b"ICC_PROFILE\0"


def copy_webp(source: BinaryIO, target: BinaryIO, exif: bytes | None) -> float | None:
    """Copy a WebP with this EXIF alone; seconds it lasts if it moves. Raises Unreadable."""
    header = source.read(_RIFF_HEADER)
    if header[:4] != b"RIFF" or header[8:] != b"WEBP":
        raise Unreadable("a WebP file that is none")
    target.write(header)
    milliseconds, moves = 0, False
    while len(chunk := source.read(_CHUNK_HEADER)) == _CHUNK_HEADER:
        kind, size = struct.unpack("<4sI", chunk)
        padded = size + size % 2
        if kind not in _WEBP_KEPT:
            source.seek(padded, 1)
            continue
        wanted = min(padded, _FRONT)
        front = bytearray(source.read(wanted))
        if len(front) < wanted:
            raise Unreadable("a WebP file that breaks off")
        if kind == b"VP8X":
            front[0] = front[0] & ~(_HAS_EXIF | _HAS_XMP) | (_HAS_EXIF if exif else 0)
        elif kind == b"ANMF":
            moves = True
            milliseconds += int.from_bytes(front[_DURATION], "little")
        target.write(chunk + front)
        _copy(source, target, padded - len(front))
    if exif:
        target.write(struct.pack("<4sI", b"EXIF", len(exif)) + exif + b"\0" * (len(exif) % 2))
    length = target.tell()
    target.seek(4)
    target.write(struct.pack("<I", length - _CHUNK_HEADER))
    return milliseconds / 1000 if moves else None


def copy_jpeg(source: BinaryIO, target: BinaryIO, exif: bytes | None) -> None:
    """Copy a JPEG's first picture with this EXIF alone. Raises Unreadable.

    What follows its end, as the second picture of an MPO does, has metadata of its own.
    """
    if source.read(2) != _START:
        raise Unreadable("a JPEG file that is none")
    target.write(_START)
    seen = False
    while (marker := _next_marker(source)) != _END:
        head = source.read(_LENGTH)
        size = int.from_bytes(head, "big") - _LENGTH
        content = source.read(max(0, size))
        if len(content) != size:
            raise Unreadable("a JPEG file that breaks off")
        if exif and marker != _APP0:
            # JFIF wants its own segment to be the first
            target.write(struct.pack(">BBH", _MARKER, _APP1, len(exif) + 2) + exif)
            exif = None
        if _shows(marker, content):
            target.write(bytes([_MARKER, marker]) + head + content)
        if marker == _SCAN:
            seen = True
            if not _copy_scan(source, target):
                # readers show what there is
                return
    if not seen:
        raise Unreadable("a JPEG file without a picture")
    target.write(bytes([_MARKER, _END]))


def _next_marker(source: BinaryIO) -> int:
    byte = source.read(1)
    if byte == b"\xff":
        # as many as its writer liked
        while byte == b"\xff":
            byte = source.read(1)
        if byte:
            return byte[0]
    raise Unreadable("a JPEG file that breaks off")


def _copy_scan(source: BinaryIO, target: BinaryIO) -> bool:
    """Copy pixels up to the next marker; False: the file ended."""
    held = b""
    while piece := source.read(_SCAN_PIECE):
        data = held + piece
        if found := _BEHIND_SCAN.search(data):
            target.write(data[: found.start()])
            source.seek(found.start() - len(data), 1)
            return True
        # a marker may be cut in two
        held = data[-1:] if data[-1] == _MARKER else b""
        target.write(data[: len(data) - len(held)])
    target.write(held)
    return False


def _shows(marker: int, content: bytes) -> bool:
    """Whether a segment says how the pixels are shown."""
    if marker == _APP2:
        return content.startswith(_COLOURS)
    return marker in {_APP0, _APP14} or not (_APP0 <= marker <= _APP15 or marker == _COMMENT)


def _copy(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        piece = source.read(min(_COPY, count))
        if not piece:
            raise Unreadable("a WebP file that breaks off")
        target.write(piece)
        count -= len(piece)
