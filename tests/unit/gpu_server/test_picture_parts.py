"""What pictures are put together of: honest ones pass, however large; endless ones do not."""

import io

import pytest

from gpu_server.picture_parts import MOST_PARTS, MOST_SCANS, TooManyParts, count_parts
from tests.support import hostile_pictures as made

PNG, JPEG, GIF, WEBP = (f"image/{name}" for name in ("png", "jpeg", "gif", "webp"))
HONEST = {
    "a png": (PNG, made.saved("PNG", (900, 700))),
    "a png that moves": (PNG, made.several("PNG", 1200)),
    "a photo": (JPEG, made.saved("JPEG", (900, 700))),
    "a progressive photo": (JPEG, made.saved("JPEG", (900, 700), progressive=True)),
    "a photo with two views": (JPEG, made.several("MPO", 2)),
    "a photo with padding": (JPEG, made.jpeg_with(b"\xff" * 100)),
    "a photo with a comment": (JPEG, made.jpeg_with(b"\xff\xfe\xff\xff" + b"\xff\xda" * 20)),
    "a gif": (GIF, made.saved("GIF", (900, 700))),
    "a long film as a gif": (GIF, made.several("GIF", 1200)),
    "a webp": (WEBP, made.saved("WEBP")),
    "nothing": (PNG, b""),
    "garbage": (JPEG, bytes(range(256))),
    "half a gif": (GIF, made.saved("GIF")[:30]),
    "a gif's signature": (GIF, b"GIF89a"),
}
ENDLESS = {
    "parts": (PNG, made.with_chunk(b"abCd", b"", MOST_PARTS)),
    "segments": (JPEG, made.jpeg_with(b"\xff\xfe\0\2" * MOST_PARTS)),
    "segments without a length": (JPEG, made.jpeg_with(b"\xff\xfe\0\0" * MOST_PARTS)),
    "bare markers": (JPEG, made.jpeg_with(b"\xff\x01" * MOST_PARTS)),
    "fill bytes": (JPEG, made.jpeg_with(b"\xff" * 5000)),
    "no markers": (JPEG, made.jpeg_with(bytes(5000))),
    "scans": (JPEG, made.jpeg_scans(MOST_SCANS)),
    "blocks": (GIF, made.gif_with(b"!\xfe" + b"\1x" * 400_000 + b"\0")),
    "empty blocks": (GIF, made.gif_with(b"!\xfe\0" * 200_000)),
    "junk": (GIF, made.saved("GIF")[:-1] + b"?" * 400_000),
}


@pytest.mark.parametrize(("media_type", "data"), HONEST.values(), ids=HONEST)
def test_honest_and_merely_damaged_files_pass(media_type: str, data: bytes) -> None:
    file = io.BytesIO(data)
    file.seek(0, io.SEEK_END)
    count_parts(file, media_type)
    assert file.tell() == 0


@pytest.mark.parametrize(("media_type", "data"), ENDLESS.values(), ids=ENDLESS)
def test_files_of_far_too_many_parts_do_not(media_type: str, data: bytes) -> None:
    with pytest.raises(TooManyParts):
        count_parts(io.BytesIO(data), media_type)
