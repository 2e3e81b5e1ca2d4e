"""Pictures that are none, that unfold to too much, or that are something else besides."""

import functools
import io
import struct
import zipfile
import zlib
from typing import Any

from PIL import Image

MEBIBYTE = 1024 * 1024
SCRIPT = b"<script>alert(document.domain)</script>"
JPEG_END = b"\xff\xd9"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_sized(width: int, height: int, *, depth: int = 8, pixels: bytes = b"") -> bytes:
    """A PNG that states a size, with whatever pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(pixels, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in parts)


@functools.cache
def saved(kind: str, size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    """A harmless picture."""
    file = io.BytesIO()
    made = Image.new("RGB", size, "red")
    made.paste("blue", (0, 0, size[0] // 2, size[1]))
    made.save(file, kind, **options)
    return file.getvalue()


def several(kind: str, frames: int = 3, **options: Any) -> bytes:
    """One that moves."""
    file = io.BytesIO()
    made = [Image.new("RGB", (16, 16), (n * 40 % 256, n % 256, 0)) for n in range(frames)]
    made[0].save(file, kind, save_all=True, append_images=made[1:], **options)
    return file.getvalue()


def with_chunk(kind: bytes, data: bytes, times: int = 1) -> bytes:
    """A harmless PNG with chunks behind its header."""
    whole = saved("PNG")
    return whole[:33] + png_chunk(kind, data) * times + whole[33:]


def wrong_sum(at: int) -> bytes:
    whole = bytearray(saved("PNG"))
    whole[at] ^= 0xFF
    return bytes(whole)


def png_full() -> bytes:
    """All that is allowed: 80 megapixels of nothing, in a hundredth of it."""
    row = b"\0" + bytes(1250)
    return png_sized(10_000, 8_000, depth=1, pixels=row * 8_000)


def archive(name: str = "x.class") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(name, b"\xca\xfe\xba\xbe" + bytes(99))
    return file.getvalue()


def jpeg_sized(width: int, height: int) -> bytes:
    """A JPEG whose frame states a size its pixels do not have."""
    whole = bytearray(saved("JPEG"))
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def jpeg_with(segments: bytes) -> bytes:
    whole = saved("JPEG")
    return whole[:2] + segments + whole[2:]


def jpeg_scans(times: int) -> bytes:
    """A progressive JPEG whose last pass over the pixels comes again and again."""
    whole = saved("JPEG", (1000, 1000), progressive=True)
    last, end = whole.rindex(b"\xff\xda"), whole.rindex(JPEG_END)
    return whole[:end] + whole[last:end] * times + whole[end:]


def exif_of_many(tags: int, size: int) -> bytes:
    """EXIF whose every tag is the same long value."""
    at = 8 + 2 + tags * 12 + 4
    entries = (struct.pack("<HHII", 0x9000 + n, 7, size, at) for n in range(tags))
    table = struct.pack("<H", tags) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + table + bytes(size)


def gif_sized(width: int, height: int) -> bytes:
    whole = bytearray(saved("GIF"))
    whole[6:10] = struct.pack("<HH", width, height)
    return bytes(whole)


def gif_frame(width: int, height: int) -> bytes:
    """A GIF whose frame is larger than its canvas."""
    whole = bytearray(saved("GIF"))
    at = whole.index(b",", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    whole[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(whole)


def gif_with(blocks: bytes) -> bytes:
    """A GIF with extension blocks before its picture."""
    whole = saved("GIF")
    at = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    return whole[:at] + blocks + whole[at:]


def webp_sized(width: int, height: int, *, flags: int = 0, rest: bytes = b"") -> bytes:
    """A WebP that states a canvas."""
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<II", 10, flags) + sides + rest
    return b"RIFF" + struct.pack("<I", len(body)) + body


def svg(inner: bytes = SCRIPT) -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + inner + b"</svg>"


def laughs() -> bytes:
    """Entities that unfold to gigabytes."""
    lines = b"".join(
        b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10 if n else b"lol") for n in range(10)
    )
    return b'<?xml version="1.0"?><!DOCTYPE l [' + lines + b"]><l>&l9;</l>"


def pdf(behind: bytes = b"") -> bytes:
    return (
        b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>\n"
        + behind
    )


def boxed(brand: bytes) -> bytes:
    """The beginning of a file of the family of MP4."""
    return struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, brand) + bytes(200)
