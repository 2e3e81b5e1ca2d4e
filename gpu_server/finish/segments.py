"""WebP and JPEG files without their metadata, copied segment by segment: nothing is decoded.

ComfyUI writes prompt and workflow as EXIF.
"""

import shutil
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

_START, _SCAN, _MARKER = b"\xff\xd8", 0xDA, 0xFF
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
    """Copy a JPEG with this EXIF alone. Raises Unreadable."""
    if source.read(2) != _START:
        raise Unreadable("a JPEG file that is none")
    target.write(_START)
    while True:
        head = source.read(4)
        if len(head) < 4 or head[0] != _MARKER:  # noqa: PLR2004 - marker and length
            raise Unreadable("a JPEG file that breaks off")
        marker, length = head[1], int.from_bytes(head[2:], "big")
        content = source.read(length - 2)
        if exif and marker != _APP0:
            # JFIF wants its own segment to be the first
            target.write(struct.pack(">BBH", _MARKER, _APP1, len(exif) + 2) + exif)
            exif = None
        if _shows(marker, content):
            target.write(head + content)
        if marker == _SCAN:
            shutil.copyfileobj(source, target, _COPY)
            return


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
