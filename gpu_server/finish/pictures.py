"""Pictures that are looked at, turned into another format, or copied without metadata.

The only module of `finish` that speaks to Pillow; everything in it blocks.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from gpu_server.finish.facts import Facts, NotConvertible, Unreadable
from gpu_server.finish.segments import copy_jpeg, copy_webp
from gpu_server.protocol import FileOptions, PictureFormat

TYPES = frozenset({"image/png", "image/webp", "image/jpeg", "image/gif"})
"""Media types that are looked into here."""
_MEGA = 1_000_000
_MOST: dict[PictureFormat, int] = {"png": 80, "webp": 40, "jpeg": 80}
"""Most megapixels converted: all of them are decoded; WebP takes a gigabyte and minutes beyond."""
_SIDES: dict[PictureFormat, int] = {"png": 100_000, "webp": 16_383, "jpeg": 65_500}
"""Longest side a format has room for."""
_QUALITY = 90
_MAKE, _MODEL, _SOFTWARE = 0x010F, 0x0110, 0x0131
_MARK = "simulator"
"""`Software` of a file that no model made; the text `engine` of a PNG."""
_PREFIX = len(b"Exif\0\0")
"""What stands before EXIF in a JPEG and in Pillow, not in a WebP."""
_LONGEST_JPEG_EXIF = 65_000


def looked_at(source: Path) -> Facts:
    """Read size and frames. Raises Unreadable."""
    with _opened(source) as picture:
        return _facts(picture)


def stripped(source: Path, target: Path, media_type: str) -> Facts:
    """Copy a picture without metadata, byte by byte where its pixels are. Raises Unreadable."""
    with _opened(source) as picture:
        facts = _facts(picture)
        exif = _mark() if picture.getexif().get(_SOFTWARE) == _MARK else None
    with source.open("rb") as read, target.open("wb") as written:
        if media_type == "image/webp":
            return replace(facts, duration_s=copy_webp(read, written, exif and exif[_PREFIX:]))
        copy_jpeg(read, written, exif)
    # one is left of an MPO's
    return replace(facts, frames=None)


def check_size(width: int, height: int, wanted: PictureFormat) -> None:
    """Refuse what would take too much memory, or the format has no room for.

    Raises NotConvertible.
    """
    if width * height > _MOST[wanted] * _MEGA or max(width, height) > _SIDES[wanted]:
        raise NotConvertible(
            f"The picture, {width} x {height}, is too large for {wanted}: that takes at most "
            f"{_MOST[wanted]} megapixels and {_SIDES[wanted]} pixels on a side."
        )


def converted(source: Path, target: Path, kind: PictureFormat, wanted: FileOptions) -> Facts:
    """Write a picture in another format; where it has no transparency, on white.

    Metadata goes where ComfyUI itself has it in WebP: EXIF, `Model` the prompt.
    Raises Unreadable, NotConvertible, OSError.
    """
    with _opened(source) as picture:
        check_size(picture.width, picture.height, kind)
        if getattr(picture, "n_frames", 1) > 1:
            raise NotConvertible("The picture moves: it can't be converted.")
        picture.load()
        exif = _exif(picture, keep=wanted.keep_metadata)
        colours = picture.info.get("icc_profile")
        made = _plain(picture, kind)
    if kind == "jpeg" and len(exif) > _LONGEST_JPEG_EXIF:
        raise NotConvertible("Its metadata does not fit into a JPEG: ask for webp or png.")
    # what a text of the source is called must not make it metadata of the result
    made.info = {}
    more = {} if kind == "png" else {"quality": wanted.quality or _QUALITY}
    if colours:
        more["icc_profile"] = colours
    try:
        made.save(target, kind, exif=exif, **more)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            # the disk's, not the encoder's
            raise
        # large and noisy: more than one part of a WebP holds
        raise NotConvertible(f"The picture can't be encoded as {kind}.") from None
    return Facts(width=made.width, height=made.height)


@contextmanager
def _opened(source: Path) -> Generator[Image.Image]:
    try:
        with Image.open(source) as picture:
            yield picture
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        raise Unreadable("a picture that can't be read") from None


def _facts(picture: Image.Image) -> Facts:
    frames = getattr(picture, "n_frames", 1)
    return Facts(width=picture.width, height=picture.height, frames=frames if frames > 1 else None)


def _plain(picture: Image.Image, wanted: PictureFormat) -> Image.Image:
    """Make the pixels fit the format: 8 bits a channel, transparent only where that can be."""
    if picture.mode.startswith("I"):
        # 16 bits of grey, which converting would cut off instead of scaling
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if not picture.has_transparency_data:
        return _in_mode(picture, "L" if picture.mode in {"1", "L"} else "RGB")
    clear = _in_mode(picture, "RGBA")
    if wanted != "jpeg":
        return clear
    white = Image.new("RGB", clear.size, "white")
    white.paste(clear, mask=clear.getchannel("A"))
    return white


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    # Pillow would copy it even if it has that mode
    return picture if picture.mode == mode else picture.convert(mode)


def _exif(picture: Image.Image, *, keep: bool) -> bytes:
    """The metadata of the result: all there is, or that no model made it, or nothing."""
    texts = dict(picture.text) if isinstance(picture, PngImageFile) else {}
    known = picture.getexif()
    if not keep:
        simulated = texts.get("engine") == _MARK or known.get(_SOFTWARE) == _MARK
        return _mark() if simulated else b""
    if texts.pop("engine", None) == _MARK:
        known[_SOFTWARE] = _MARK
    if "prompt" in texts:
        known[_MODEL] = _tagged("prompt", texts.pop("prompt"))
    for tag, (key, text) in enumerate(texts.items()):
        known[_MAKE - tag] = _tagged(key, text)
    return known.tobytes()


def _tagged(key: str, text: str) -> bytes:
    return f"{key}:{text}".encode()


def _mark() -> bytes:
    exif = Image.Exif()
    exif[_SOFTWARE] = _MARK
    return exif.tobytes()
