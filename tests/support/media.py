"""Pictures and videos made on the spot, with every quirk that cameras and attackers give them."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

RED, GREEN, BLUE, GREY = (220, 20, 20), (20, 200, 20), (20, 20, 220), (128, 128, 128)
CORNERS = (RED, GREEN, BLUE, GREY)
"""Top left, top right, bottom left, bottom right of what `quarters` draws."""
ORIENTATION = 0x0112


def quarters(width: int = 400, height: int = 200, mode: str = "RGB") -> Image.Image:
    """Four colours, so that it shows how a picture was turned."""
    picture = Image.new("RGB", (width, height))
    for n, colour in enumerate(CORNERS):
        box = (n % 2 * width // 2, n // 2 * height // 2)
        picture.paste(colour, (*box, box[0] + width // 2, box[1] + height // 2))
    return picture.convert(mode)


def corners(picture: Image.Image) -> tuple[str, ...]:
    """Which colours the corners have, as `corners(quarters())` names them."""
    w, h = picture.size
    places = ((w // 8, h // 8), (w - w // 8 - 1, h // 8))
    places += ((w // 8, h - h // 8 - 1), (w - w // 8 - 1, h - h // 8 - 1))
    shown = picture.convert("RGB")
    return tuple(_nearest(shown.getpixel(place)) for place in places)


def _nearest(pixel: Any) -> str:
    names = ("red", "green", "blue", "grey")
    away = [sum((a - b) ** 2 for a, b in zip(pixel, colour, strict=True)) for colour in CORNERS]
    return names[away.index(min(away))]


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    made = io.BytesIO()
    picture.save(made, form, **options)
    return made.getvalue()


def turned(orientation: int, form: str = "JPEG") -> bytes:
    """`quarters`, stored so that it is seen upright only by who heeds EXIF."""
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    way = ways.get(orientation)
    stored = quarters() if way is None else quarters().transpose(way)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(stored, form, exif=exif)


def animated(form: str, frames: int = 3) -> bytes:
    """The first frame is `quarters`, the others are plain."""
    rest = [Image.new("RGB", (400, 200), (n * 40, 0, 0)) for n in range(1, frames)]
    return encoded(quarters(), form, save_all=True, append_images=rest, duration=100)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is that large, and has next to nothing in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, data)
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(999))), (b"IEND", b""))
    )


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def video(
    path: Path,
    codec: str = "libx264",
    *,
    width: int = 400,
    height: int = 200,
    frames: int = 12,
    rate: int = 24,
    pixels: str = "yuv420p",
    squeezed: Fraction | None = None,
    options: dict[str, str] | None = None,
    form: str | None = None,
) -> Path:
    """`quarters` that grow brighter frame by frame from black."""
    still = np.asarray(quarters(width, height), dtype=np.float32)
    with av.open(path, "w", format=form, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if squeezed is not None:
            stream.codec_context.sample_aspect_ratio = squeezed
        for n in range(frames):
            shown: NDArray[Any] = (still * n / max(1, frames - 1)).astype(np.uint8)
            for packet in stream.encode(VideoFrame.from_ndarray(shown, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def sound(path: Path) -> Path:
    """An MP4 that is sound alone."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("aac", rate=44_100)
        for _ in range(4):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.rate = 44_100
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def with_matrix(movie: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """An MP4 whose track is shown through that display matrix."""
    at = movie.index(b"tkhd") + 4 + 4 + 36
    fixed = [n * 65_536 for n in (a, b, 0, c, d, 0, 0, 0)]
    return movie[:at] + struct.pack(">8i", *fixed) + movie[at + 32 :]
