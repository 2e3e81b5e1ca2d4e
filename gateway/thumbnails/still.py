"""Pictures: decoded to the last pixel, and made small."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO

# The plugins are imported here, for later on nothing can be opened any more; TIFF reads EXIF.
from PIL import (
    Image,
    ImageFile,
    MpoImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from gateway.thumbnails.order import Looked, MediaLimits
from gateway.thumbnails.unfit import UnfitMedia, damaged, too_long_a_side, too_many_pixels
from gpu_server.picture_parts import TooManyParts, count_parts

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "MPO")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_FINE = 3.0
"""How much larger than wanted a picture is made by averaging before it is resampled."""
_LARGEST_PROFILE = 64 * 1024
Image.preinit()
_ = MpoImagePlugin, TiffImagePlugin, WebPImagePlugin


def read(
    file: IO[bytes], media_type: str, *, side: int | None, moving: bool, limits: MediaLimits
) -> tuple[Looked, Image.Image | None]:
    """Decode a picture; with `side`, also make it that small. Raises UnfitMedia, MemoryError."""
    try:
        count_parts(file, media_type)
        with _at_most(limits.pixels), Image.open(file, formats=_FORMATS) as opened:
            return _read(opened, media_type, side=side, moving=moving, limits=limits)
    except (UnfitMedia, MemoryError):
        raise
    except TooManyParts:
        message = "is put together of far too many parts: save it anew and send it again"
        raise UnfitMedia("unreadable_image", message) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        megapixels = limits.pixels // 1_000_000
        message = f"has far too many pixels: at most {megapixels} megapixels"
        raise UnfitMedia("too_large", message) from None
    except Exception as error:  # what damaged files make a decoder raise is anything
        raise damaged(media_type) from error


@contextmanager
def _at_most(pixels: int) -> Generator[None]:
    """Have Pillow refuse larger frames too: they may be larger than the header says."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _read(
    opened: ImageFile.ImageFile,
    media_type: str,
    *,
    side: int | None,
    moving: bool,
    limits: MediaLimits,
) -> tuple[Looked, Image.Image | None]:
    width, height = opened.size
    if width * height > limits.pixels:
        raise too_many_pixels(width, height, limits.pixels)
    if max(width, height) > limits.side:
        raise too_long_a_side(width, height, limits.side)
    # an MPO is a photo with other views behind it
    frames = 1 if opened.format == "MPO" else int(getattr(opened, "n_frames", 1))
    if frames > 1 and not moving:
        message = "has several frames: send one of them as a picture of its own"
        raise UnfitMedia("animated_image", message)
    if opened.format in {"JPEG", "MPO"}:
        # read to its end as well, at a fraction of its size
        opened.draft(None, (1, 1) if side is None else (side * 2, side * 2))
    opened.load()
    turned = opened.getexif().get(_ORIENTATION)
    if turned in _ON_ITS_SIDE:
        width, height = height, width
    looked = Looked(
        media_type=media_type, width=width, height=height, frames=frames if frames > 1 else None
    )
    if side is None:
        return looked, None
    small = made_small(opened, side)
    turn = _TURNS.get(turned) if isinstance(turned, int) else None
    return looked, small if turn is None else small.transpose(turn)


def made_small(picture: Image.Image, side: int) -> Image.Image:
    """A picture as RGB or RGBA that fits `side` by `side`, never enlarged."""
    profile = picture.info.get("icc_profile")
    plain = _plain(picture)
    longest = max(plain.size)
    if longest > side:
        width, height = (max(1, round(n * side / longest)) for n in plain.size)
        plain = plain.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_FINE)
    shown = plain if plain.mode in {"RGB", "RGBA"} else plain.convert("RGB")
    # no other metadata goes along, and a profile only if it is about these colours
    kept = shown is plain and isinstance(profile, bytes) and len(profile) <= _LARGEST_PROFILE
    about_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "
    shown.info = {"icc_profile": profile} if kept and about_rgb else {}
    return shown


def _plain(picture: Image.Image) -> Image.Image:
    """The picture in a mode that can be averaged, transparency as a channel."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        # the upper 8 of its 16 bits; a plain conversion would make all that is bright white
        return picture.point(lambda value: value * (1 / 256)).convert("L")
    if picture.has_transparency_data:
        return picture if picture.mode == "RGBA" else picture.convert("RGBA")
    return picture if picture.mode in {"L", "RGB", "CMYK", "YCbCr"} else picture.convert("RGB")
