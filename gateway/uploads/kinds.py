"""What may be uploaded, told by its bytes alone: what its sender calls it proves nothing."""

import struct
from collections.abc import Collection, Mapping
from typing import Literal

from gateway.db.uploads import UploadKind
from gateway.errors import FieldError, InvalidParameters
from gateway.inputs import EXTENSIONS as INPUT_EXTENSIONS
from gateway.sniffing import media_type_of
from gpu_server.media_types import sniff

HEAD = 64
"""Bytes of a file that are looked at before it is taken."""
TAIL = 66_000
"""Bytes of its end that must hold a ZIP's list of what is in it."""

Family = Literal["image", "video", "model", "audio", "archive"]
EXTENSIONS: Mapping[str, str] = {
    **INPUT_EXTENSIONS,
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/flac": "flac",
    "application/zip": "zip",
}
"""Every media type that is taken, and how its files' keys end."""
UNKNOWN = "application/octet-stream"
UNKNOWN_EXTENSION = "bin"
OF_KIND: Mapping[UploadKind, tuple[Family, ...]] = {
    "media": ("image", "video"),
    "file": ("image", "video", "model", "audio", "archive"),
}
_NAMED: Mapping[Family, str] = {
    "image": "a picture (PNG, JPEG, WebP or GIF)",
    "video": "a video (MP4, MOV or WebM)",
    "model": "a mesh (GLB)",
    "audio": "audio (WAV, MP3 or FLAC)",
    "archive": "a ZIP archive",
}
_MP3 = (b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xfa")
_ZIP = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"
_GLB_HEADER = struct.Struct("<4sII")
_GLB_VERSION = 2


def family_of(media_type: str) -> Family:
    """Name the family of a media type that is taken."""
    if media_type == "application/zip":
        return "archive"
    for family in ("image", "video", "model", "audio"):
        if media_type.startswith(f"{family}/"):
            return family
    raise ValueError(media_type)


def accepted(head: bytes, families: Collection[Family]) -> str:
    """Name the media type of a file that begins so. Raises InvalidParameters."""
    media_type = _media_type(head)
    if media_type is None or family_of(media_type) not in families:
        raise refused("wrong_kind", f"must be {_any_of(families)}; its content is something else")
    return media_type


def announced(media_type: str | None, families: Collection[Family]) -> str:
    """Take a media type as it was announced. Raises InvalidParameters."""
    if media_type is None:
        return UNKNOWN
    if media_type not in EXTENSIONS or family_of(media_type) not in families:
        taken = [name for name in EXTENSIONS if family_of(name) in families]
        raise refused("literal_error", f"must be one of {', '.join(taken)}", "content_type")
    return media_type


def check_mesh(head: bytes, size: int) -> None:
    """Compare what a GLB says of its length with the truth. Raises InvalidParameters."""
    if len(head) < _GLB_HEADER.size:
        raise _cut_off()
    _, version, length = _GLB_HEADER.unpack_from(head)
    if version != _GLB_VERSION:
        raise refused("wrong_kind", f"is a GLB of version {version}: only version 2 is read")
    if length != size:
        raise _cut_off()


def check_archive(tail: bytes) -> None:
    """Find the end of a ZIP in its last `TAIL` bytes. Raises InvalidParameters."""
    if _ZIP_END not in tail:
        raise _cut_off()


def refused(code: str, message: str, field: str = "file") -> InvalidParameters:
    """Make the refusal of an upload."""
    return InvalidParameters([FieldError(field=field, code=code, message=message)])


def _media_type(head: bytes) -> str | None:
    if head.startswith(_ZIP):
        return "application/zip"
    if head.startswith(_MP3):
        return "audio/mpeg"
    found = sniff(head, "")
    if found.startswith(("video/", "model/")) and media_type_of(head) is None:
        return None  # HEIC and AVIF begin as an MP4 does
    if head[8:12] in {b"WEBP", b"WAVE"} and not head.startswith(b"RIFF"):
        return None
    return found if found in EXTENSIONS else None


def _any_of(families: Collection[Family]) -> str:
    names = [_NAMED[family] for family in OF_KIND["file"] if family in families]
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def _cut_off() -> InvalidParameters:
    return refused("damaged_file", "is cut off or damaged: save it anew and send it again")
