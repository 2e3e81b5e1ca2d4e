"""Pictures on their way into a workflow: whether they can be read, and whether their size fits.

`look_at` is for both sides of the wire: the gateway asks it about what comes inside a call, the GPU
service about what it fetched. `misfits` compares sizes with what a manifest says of them.
"""

import asyncio
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, NamedTuple

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import JsonValue

from gpu_server.media_types import HEAD, sniff
from gpu_server.picture_parts import TooManyParts, count_parts
from gpu_server.workflow.manifest import Manifest, PictureRule, Within

MAX_PIXELS = 80_000_000
"""Most pixels of a picture; above 89 million Pillow itself begins to complain."""
_MAX_SIDE = 16_384
"""ComfyUI's own limit."""
_MAX_RATIO = 100
"""Scaled to a megapixel, as most graphs do, a longer picture would have a side of nothing."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_MEDIA_TYPES = frozenset(f"image/{name.lower()}" for name in _FORMATS)
_FIRST_FRAME = frozenset({"MPO"})
"""Photos with a small copy in them: ComfyUI reads the first frame alone."""
_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
# A picture unfolds to hundreds of megabytes: two at a time, whatever other threads do.
_threads = ThreadPoolExecutor(2, thread_name_prefix="pictures")


class Size(NamedTuple):
    """Pixels, as ComfyUI sees them: turned as the picture's EXIF says."""

    width: int
    height: int

    def __str__(self) -> str:
        """Write it as people do."""
        return f"{self.width}x{self.height}"


class UnfitPicture(Exception):
    """A file that is no picture a workflow takes; the message goes behind a parameter's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture that was decoded to its last pixel."""

    media_type: str
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """A picture whose size does not fit, by parameter and place in its list."""

    param: str
    number: int
    code: str
    message: str


Sizes = Mapping[str, Sequence[Size | None]]
"""Of a call's pictures, by parameter; None where it is not known yet."""


async def look_at(file: IO[bytes]) -> Picture:
    """Decode a picture in a thread; raises UnfitPicture."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _looked_at, file)


def _looked_at(file: IO[bytes]) -> Picture:
    file.seek(0)
    head = file.read(HEAD)
    file.seek(0)
    media_type = sniff(head, "")
    if media_type not in _MEDIA_TYPES:
        raise UnfitPicture("wrong_kind", "must be a picture: PNG, JPEG, WebP or GIF")
    try:
        count_parts(file, media_type)
        with Image.open(file, formats=_FORMATS) as opened:
            _check_header(opened)
            width, height = opened.size
            # a JPEG is read to its end at an eighth of its size, too
            opened.draft(None, (1, 1))
            opened.load()
            if opened.getexif().get(_ORIENTATION) in _ON_ITS_SIDE:
                width, height = height, width
            return Picture(media_type=media_type, size=Size(width, height))
    except UnfitPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels() from None
    except TooManyParts:
        message = "is put together of far too many parts: save it anew and send it again"
        raise UnfitPicture("unreadable_image", message) from None
    except UnidentifiedImageError:
        raise UnfitPicture(
            "unreadable_image", "is no whole picture: its header is damaged"
        ) from None
    except Exception:  # noqa: BLE001 - what damaged files make a decoder raise is anything
        message = "is damaged or cut off: save it anew and send it again"
        raise UnfitPicture("unreadable_image", message) from None


async def on_white(file: IO[bytes]) -> IO[bytes] | None:
    """Lay a picture that `look_at` took on white, as a PNG; None for one without transparency."""
    return await asyncio.get_running_loop().run_in_executor(_threads, _on_white, file)


def _on_white(file: IO[bytes]) -> IO[bytes] | None:
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as opened:
        if not opened.has_transparency_data:
            return None
        # a PNG's own EXIF would turn it once more
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    # a disk file at once: it is written by this thread and read by another
    made = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who asked for it
    try:
        white.convert("RGB").save(made, "PNG", compress_level=1)
    except BaseException:
        made.close()
        raise
    made.seek(0)
    return made


def _check_header(opened: Image.Image) -> None:
    size = Size(*opened.size)
    if size.width * size.height > MAX_PIXELS:
        raise _too_many_pixels(size)
    if max(size) > _MAX_SIDE:
        message = f"is {size} pixels: at most {_MAX_SIDE} on each side"
        raise UnfitPicture("too_large", message)
    if max(size) > _MAX_RATIO * min(size):
        message = f"is {size} pixels: more than {_MAX_RATIO} times as long as wide"
        raise UnfitPicture("wrong_size", message)
    if getattr(opened, "is_animated", False) and opened.format not in _FIRST_FRAME:
        message = "has several frames: send one of them as a picture of its own"
        raise UnfitPicture("animated_image", message)


def _too_many_pixels(size: Size | None = None) -> UnfitPicture:
    found = f"has {size} pixels" if size else "has far too many pixels"
    message = f"{found}: at most {MAX_PIXELS // 1_000_000} megapixels"
    return UnfitPicture("too_large", message)


def misfits(manifest: Manifest, values: Mapping[str, JsonValue], sizes: Sizes) -> Iterator[Misfit]:
    """Find the pictures whose size is known and does not fit; `values` with their defaults."""
    for name, param in manifest.params.items():
        for number, size in enumerate(sizes.get(name, ())):
            if param.picture is None or size is None:
                continue
            for code, message in _broken(param.picture, size, values, sizes):
                said = f"is {size} pixels: {message}"
                yield Misfit(param=name, number=number, code=code, message=said)


def _broken(
    rule: PictureRule, size: Size, values: Mapping[str, JsonValue], sizes: Sizes
) -> Iterator[tuple[str, str]]:
    below = next(iter(sizes.get(rule.same_size_as or "", ())), None)
    if below is not None and below != size:
        yield "wrong_size", f"{rule.same_size_as} is {below}, and both must have one size"
    ratio, unless = rule.max_ratio, rule.unless
    lifted = unless and all(values.get(name) is not None for name in unless)
    if ratio is not None and not lifted and max(size) > ratio * min(size):
        otherwise = f", or give {' and '.join(unless)}" if unless else ""
        yield "wrong_size", f"one side may be {ratio:g} times as long as the other{otherwise}"
    times = values.get(rule.enlarged or "")
    times = times if isinstance(times, int | float) else 1
    if rule.max_pixels is not None and size.width * size.height * times**2 > rule.max_pixels:
        most = rule.max_pixels // times**2
        so_large = f" with {rule.enlarged} {times:g}" if rule.enlarged else ""
        yield "too_large", f"at most {most:,.0f} pixels{so_large}"


def lowered(within: Within, value: JsonValue, sizes: Sizes) -> JsonValue:
    """Lower a number to what its picture allows."""
    size = next(iter(sizes.get(within.picture, ())), None)
    if size is None or isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return min(value, max(0, math.floor(within.scale * min(size) + within.offset)))
