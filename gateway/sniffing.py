"""What a file really is, read off its first bytes; what its sender calls it proves nothing."""

import struct
from collections.abc import Callable

_SIGNATURES = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (4, b"ftypqt  ", "video/quicktime"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"glTF", "model/gltf-binary"),
)
# Frame headers of JPEG; those left out between them hold tables.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARK = 0xFF
_JPEG_SEGMENTS = 2000
"""No picture has as many before its frame; a hostile one could have millions."""
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_IMAGE_BRANDS = frozenset({b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"})

Size = tuple[int, int]


def media_type_of(data: bytes) -> str | None:
    """Name the media type; None when it is none that a tool reads."""
    for at, signature, media_type in _SIGNATURES:
        if data[at : at + len(signature)] == signature:
            return media_type
    if data[4:8] == b"ftyp" and data[8:12] not in _IMAGE_BRANDS:
        return "video/mp4"
    return None


def picture_size(data: bytes, media_type: str) -> Size | None:
    """Read width and height off a picture's header; None when it has none, so is no picture."""
    read = _SIZES.get(media_type)
    try:
        size = read(data) if read else None
    except (struct.error, IndexError):
        return None
    return size if size and min(size) > 0 else None


def _png(data: bytes) -> Size | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> Size:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _jpeg(data: bytes) -> Size | None:
    at = 2
    for _ in range(_JPEG_SEGMENTS):
        begin, marker = data[at], data[at + 1]
        if begin != _JPEG_MARK:
            return None
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if marker == _JPEG_MARK:
            at += 1  # padding
        elif marker in _JPEG_ALONE:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _webp(data: bytes) -> Size | None:
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L" if data[20] == 0x2F:  # noqa: PLR2004 - the format's signature
            (bits,) = struct.unpack_from("<I", data, 21)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width, height = data[24:27], data[27:30]
            if len(height) < 3:  # noqa: PLR2004 - 24 bits each
                return None
            return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        case _:
            return None


_SIZES: dict[str, Callable[[bytes], Size | None]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
}
