"""Pictures that unfold to too much, are damaged, or move."""

import zlib

from tests.support import hostile_pictures as made
from tests.support.hostile_file import DAMAGED, KIND, LARGE, MOVES, TAKEN, all_alike, got
from tests.support.hostile_pictures import MEBIBYTE

BOMBS = (
    all_alike(
        "PNG of 65535x65535", lambda: made.png_sized(65_535, 65_535), LARGE, "12 GB of pixels"
    ),
    all_alike(
        "PNG of 2147483647 on a side",
        lambda: made.png_sized(2**31 - 1, 2**31 - 1),
        LARGE,
        "no memory has so much",
    ),
    all_alike("PNG without width", lambda: made.png_sized(0, 10), DAMAGED, "a size of nothing"),
    all_alike(
        "PNG 20,000 wide", lambda: made.png_sized(20_000, 10), LARGE, "longer than ComfyUI takes"
    ),
    got(
        "PNG of 80 megapixels in 10 KB",
        made.png_full,
        "all that is allowed, and no more",
        TAKEN,
        TAKEN,
        TAKEN,
        TAKEN,
    ),
    all_alike(
        "PNG with more pixels than its size",
        lambda: made.png_sized(8, 8, pixels=bytes(100 * MEBIBYTE)),
        TAKEN,
        "8x8 are unfolded, the other 100 MB never are",
    ),
    all_alike(
        "PNG with a colour profile of 100 MB",
        lambda: made.with_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(100 * MEBIBYTE), 9)),
        DAMAGED,
        "a zip bomb beside the pixels",
    ),
    all_alike(
        "PNG with a text of 100 MB (zTXt)",
        lambda: made.with_chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(100 * MEBIBYTE), 9)),
        DAMAGED,
        "a zip bomb beside the pixels",
    ),
    all_alike(
        "PNG with a text of 100 MB (iTXt)",
        lambda: made.with_chunk(b"iTXt", b"t\0\1\0\0\0" + zlib.compress(bytes(100 * MEBIBYTE), 9)),
        DAMAGED,
        "a zip bomb beside the pixels",
    ),
    all_alike(
        "PNG of 100,000 empty parts",
        lambda: made.with_chunk(b"abCd", b"", 100_000),
        DAMAGED,
        "every part costs time",
    ),
    all_alike(
        "PNG with EXIF that unfolds",
        lambda: made.with_chunk(b"eXIf", made.exif_of_many(2000, MEBIBYTE)),
        TAKEN,
        "2,000 tags of the same megabyte; no tag is read twice",
    ),
    all_alike(
        "JPEG of 65535x65535", lambda: made.jpeg_sized(65_535, 65_535), LARGE, "12 GB of pixels"
    ),
    all_alike(
        "JPEG of 65535x1", lambda: made.jpeg_sized(65_535, 1), LARGE, "longer than ComfyUI takes"
    ),
    all_alike(
        "JPEG of 500 passes",
        lambda: made.jpeg_scans(500),
        DAMAGED,
        "each pass over the pixels costs time",
    ),
    all_alike(
        "JPEG of a million fill bytes",
        lambda: made.jpeg_with(b"\xff" * 1_000_000),
        DAMAGED,
        "every byte costs time",
    ),
    all_alike(
        "JPEG of 100,000 comments",
        lambda: made.jpeg_with(b"\xff\xfe\0\x02" * 100_000),
        DAMAGED,
        "every part costs time",
    ),
    all_alike(
        "GIF of 65535x65535", lambda: made.gif_sized(65_535, 65_535), LARGE, "4 GB of pixels"
    ),
    all_alike(
        "GIF with a frame beyond its canvas",
        lambda: made.gif_frame(65_535, 65_535),
        LARGE,
        "its canvas states less",
    ),
    all_alike(
        "GIF of a million little blocks",
        lambda: made.gif_with(b"!\xfe" + b"\x01x" * 1_000_000 + b"\0"),
        DAMAGED,
        "every block costs time",
    ),
    all_alike(
        "WebP of 16384x16384",
        lambda: made.webp_sized(16_384, 16_384, rest=b"VP8 \0\0\0\0"),
        LARGE,
        "1 GB of pixels it does not have",
    ),
    all_alike(
        "WebP of 16777216 on a side",
        lambda: made.webp_sized(2**24, 2**24),
        LARGE,
        "no memory has so much",
    ),
)

DAMAGED_FILES = (
    all_alike(
        "PNG with a wrong sum in its header",
        lambda: made.wrong_sum(29),
        DAMAGED,
        "not what was sent",
    ),
    all_alike(
        "PNG with a wrong sum of a part",
        lambda: made.wrong_sum(-16),
        TAKEN,
        "the pixels have a sum of their own, which is right",
    ),
    all_alike("PNG cut off in its header", lambda: made.saved("PNG")[:20], DAMAGED, "half a file"),
    all_alike("PNG cut off in its pixels", lambda: made.saved("PNG")[:60], DAMAGED, "half a file"),
    all_alike("signature of a PNG alone", lambda: made.saved("PNG")[:8], DAMAGED, "no file"),
    all_alike(
        "JPEG cut off in its header", lambda: made.saved("JPEG")[:100], DAMAGED, "half a file"
    ),
    all_alike(
        "JPEG cut off in its pixels",
        lambda: made.saved("JPEG", (320, 240))[:-200],
        DAMAGED,
        "half a file",
    ),
    all_alike("signature of a JPEG alone", lambda: made.saved("JPEG")[:3], DAMAGED, "no file"),
    all_alike("GIF cut off in its header", lambda: made.saved("GIF")[:10], DAMAGED, "half a file"),
    all_alike(
        "GIF cut off in its pixels",
        lambda: made.saved("GIF", (320, 240))[:-300],
        DAMAGED,
        "half a file",
    ),
    all_alike(
        "WebP cut off in its header", lambda: made.saved("WEBP")[:15], DAMAGED, "half a file"
    ),
    all_alike(
        "WebP cut off in its pixels",
        lambda: made.saved("WEBP", (320, 240))[:-60],
        DAMAGED,
        "half a file",
    ),
    all_alike("one byte", lambda: b"\x89", KIND, "no file"),
    got("nothing", lambda: b"", "no file", KIND, KIND, "empty_file", "empty_file"),
)

MOVING = (
    got(
        "APNG",
        lambda: made.several("PNG"),
        "which of its frames is meant? As media it may move",
        MOVES,
        MOVES,
        TAKEN,
        TAKEN,
    ),
    got(
        "animated WebP",
        lambda: made.several("WEBP"),
        "which of its frames is meant? As media it may move",
        MOVES,
        MOVES,
        TAKEN,
        TAKEN,
    ),
    got(
        "animated GIF",
        lambda: made.several("GIF"),
        "which of its frames is meant? As media it may move",
        MOVES,
        MOVES,
        TAKEN,
        TAKEN,
    ),
    got(
        "GIF of 2,000 frames",
        lambda: made.several("GIF", 2000),
        "every frame costs time",
        MOVES,
        MOVES,
        TAKEN,
        TAKEN,
    ),
    all_alike(
        "MPO",
        lambda: made.several("MPO", 2),
        TAKEN,
        "a photo with a second view: the first is used",
    ),
)
