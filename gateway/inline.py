"""A file inside a call, as a `data:` URI: decoded, looked at, and known by its content alone."""

import asyncio
import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from gateway.media import MediaKind
from gateway.sniffing import damage_of, media_type_of
from gpu_server.workflow import Size, look_at

BASE64_PER_BYTE = 4 / 3 * 66 / 64
"""With line breaks, two characters each, after every 64."""
LONGEST_HEAD = 200
"""Most characters of a `data:` URI before its content."""
FAMILY: Mapping[MediaKind, str] = {
    "image": "image/",
    "mask": "image/",
    "video": "video/",
    "model": "model/",
}
NEEDED: Mapping[MediaKind, str] = {
    "image": "a picture (PNG, JPEG, WebP or GIF)",
    "mask": "a picture (PNG, JPEG, WebP or GIF)",
    "video": "a video (MP4, MOV or WebM)",
    "model": "a mesh (GLB)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """A file that came inside a call, decoded; not stored yet."""

    media_type: str
    data: bytes
    size: Size | None = None
    """Of a picture."""


class AddressRefused(Exception):
    """An address, or a file inside a call, that is not taken."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def inline(address: str, kind: MediaKind, max_mb: int) -> Inline:
    """Decode and look at a `data:` URI, in threads, as it may be long.

    Raises AddressRefused, UnfitPicture.
    """
    data = await asyncio.to_thread(_decoded, address, max_mb)
    if FAMILY[kind] == "image/":
        picture = await look_at(io.BytesIO(data))
        return Inline(media_type=picture.media_type, data=data, size=picture.size)
    media_type = media_type_of(data)
    if media_type is None or not media_type.startswith(FAMILY[kind]):
        raise AddressRefused("wrong_kind", f"must be {NEEDED[kind]}; its content is something else")
    damage = damage_of(data, media_type)
    if damage is not None:
        raise AddressRefused("damaged_file", damage)
    return Inline(media_type=media_type, data=data)


def _decoded(address: str, max_mb: int) -> bytes:
    head, comma, text = address[:LONGEST_HEAD].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise AddressRefused("not_base64", "must be data:<media type>;base64,<content>")
    text += address[LONGEST_HEAD:]
    try:
        encoded = (unquote(text) if "%" in text else text).encode("ascii")
        # tools that write base64 break its lines
        data = base64.b64decode(b"".join(encoded.split()), validate=True)
    except ValueError:
        raise AddressRefused("not_base64", "what follows the comma is not valid base64") from None
    if len(data) > max_mb * 1024 * 1024:
        raise AddressRefused(
            "too_large", f"at most {max_mb} MB, decoded: send a larger file's address"
        )
    return data
