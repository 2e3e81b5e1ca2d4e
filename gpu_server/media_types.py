"""What a file is, by its first bytes and its name."""

import mimetypes
import struct

HEAD = 64
"""Bytes that `sniff` and `picture_size` look at."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 24
_SIGNATURES = (
    (0, _PNG, "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (4, b"ftypqt  ", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
    (0, b"glTF", "model/gltf-binary"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav"}
_IMAGE_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"hevc": "image/heic",
    b"mif1": "image/heif",
    b"msf1": "image/heif",
}
"""Pictures that begin as an MP4 does."""
_GLB = struct.Struct("<4sII")
_GLB_VERSION = 2
_BY_NAME = {".safetensors": "application/octet-stream", ".mkv": "video/x-matroska"}


def sniff(head: bytes, filename: str) -> str:
    """Name a file's media type, from its bytes where they tell."""
    if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS:
        return _IMAGE_BRANDS[head[8:12]]
    if head.startswith(b"RIFF") and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    for at, signature, media_type in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            # one family, told apart by a name within the first bytes
            return "video/x-matroska" if b"matroska" in head else media_type
    ending = filename[filename.rfind(".") :].lower()
    return _BY_NAME.get(ending) or mimetypes.guess_type(filename)[0] or "application/octet-stream"


def picture_size(head: bytes) -> tuple[int, int] | None:
    """Read width and height off a PNG's header."""
    if len(head) < _PNG_HEADER or not head.startswith(_PNG):
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def mesh_damage(head: bytes, size: int) -> str | None:
    """Compare what a GLB's header says with the file's size; what is wrong, to follow its name."""
    if len(head) < _GLB.size:
        return "is cut off"
    _, version, length = _GLB.unpack_from(head)
    if version != _GLB_VERSION:
        return f"is a GLB of version {version}: only version 2 is read"
    if length != size:
        return "is damaged or cut off: its header states another length"
    return None
