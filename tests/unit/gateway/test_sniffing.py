import io
from typing import Any

import pytest
from PIL import Image

from gateway.sniffing import media_type_of, picture_size

SIZE = (123, 77)


def saved(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.new(mode, SIZE)
    if options.pop("animated", False):
        options |= {"save_all": True, "append_images": [picture]}
    picture.save(file, kind, **options)
    return file.getvalue()


PICTURES = {
    "png": ("image/png", saved("PNG")),
    "jpeg": ("image/jpeg", saved("JPEG")),
    "progressive jpeg": ("image/jpeg", saved("JPEG", progressive=True)),
    "jpeg with a profile": ("image/jpeg", saved("JPEG", icc_profile=bytes(70_000))),
    "gif": ("image/gif", saved("GIF", "P")),
    "lossy webp": ("image/webp", saved("WEBP")),
    "lossless webp": ("image/webp", saved("WEBP", lossless=True)),
    "transparent webp": ("image/webp", saved("WEBP", "RGBA")),
    "animated webp": ("image/webp", saved("WEBP", "RGBA", animated=True)),
}


@pytest.mark.parametrize(("media_type", "data"), PICTURES.values(), ids=PICTURES)
def test_a_picture_is_known_with_its_size(media_type: str, data: bytes) -> None:
    assert media_type_of(data) == media_type
    assert picture_size(data, media_type) == SIZE


@pytest.mark.parametrize(("media_type", "data"), PICTURES.values(), ids=PICTURES)
def test_a_picture_cut_off_anywhere_in_its_header_raises_nothing(
    media_type: str, data: bytes
) -> None:
    for length in range(64):
        assert picture_size(data[:length], media_type) in {None, SIZE}
    assert picture_size(data[:12], media_type) in {None, SIZE}


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"\0\0\0\x18ftypisom", "video/mp4"),
        (b"\0\0\0\x18ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x18ftypavif", None),
        (b"\x1aE\xdf\xa3\x01\0\0\0", "video/webm"),
        (b"glTF\x02\0\0\0", "model/gltf-binary"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        (b"<!doctype html>", None),
        (b"%PDF-1.7", None),
        (b"", None),
    ],
)
def test_other_files_are_told_apart(data: bytes, media_type: str | None) -> None:
    assert media_type_of(data) == media_type


@pytest.mark.parametrize(
    "data",
    [
        b"\x89PNG\r\n\x1a\n" + bytes(40),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(8),
        b"\xff\xd8\xff\xe0\0\0" * 4,
        b"\xff\xd8" + b"\xff" * 100,
        b"GIF89a" + bytes(4),
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(20),
        b"RIFF\0\0\0\0WEBPXXXX" + bytes(20),
    ],
)
def test_a_signature_alone_makes_no_picture(data: bytes) -> None:
    media_type = media_type_of(data) or "image/jpeg"
    assert picture_size(data, media_type) is None


class Watched(bytes):
    """Knows how far it was looked at."""

    furthest = 0

    def __getitem__(self, at: Any) -> Any:
        self.furthest = max(self.furthest, at if isinstance(at, int) else at.stop)
        return super().__getitem__(at)


def test_a_jpeg_of_nothing_but_padding_is_given_up_early() -> None:
    hostile = Watched(b"\xff\xd8" + b"\xff" * 1_000_000)
    assert picture_size(hostile, "image/jpeg") is None
    assert 0 < hostile.furthest < 10_000
