"""Pictures decoded and made small: every orientation, mode and animation there is."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from gateway.thumbnails import still
from gateway.thumbnails.kinds import HEAD, media_type_of
from gateway.thumbnails.order import Looked, MediaLimits
from gateway.thumbnails.unfit import UnfitMedia
from tests.support import media

UPRIGHT = ("red", "green", "blue", "grey")


def read(data: bytes, side: int | None = 100, **options: Any) -> tuple[Looked, Image.Image]:
    limits = options.pop("limits", MediaLimits())
    moving = options.pop("moving", True)
    kind = media_type_of(data[:HEAD])
    looked, small = still.read(io.BytesIO(data), kind, side=side, moving=moving, limits=limits)
    return looked, small or Image.new("1", (0, 0))


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(UnfitMedia) as caught:
        read(data, **options)
    return caught.value.code


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_seen_as_its_camera_was_held(orientation: int, form: str) -> None:
    looked, small = read(media.turned(orientation, form))
    assert (looked.width, looked.height) == (400, 200)
    assert small.size == (100, 50)
    assert media.corners(small) == UPRIGHT


@pytest.mark.parametrize("odd", [0, 9, 77])
def test_an_orientation_that_is_none_turns_nothing(odd: int) -> None:
    assert media.corners(read(media.turned(odd))[1]) == UPRIGHT


@pytest.mark.parametrize(
    ("form", "kind"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_a_picture_is_what_its_bytes_say(form: str, kind: str) -> None:
    looked, _ = read(media.encoded(media.quarters(), form))
    assert looked == Looked(media_type=kind, width=400, height=200)


def test_a_small_picture_is_not_enlarged() -> None:
    _, small = read(media.encoded(media.quarters(40, 20), "PNG"), side=1024)
    assert small.size == (40, 20)


def test_the_thinnest_picture_still_has_a_side() -> None:
    _, small = read(media.encoded(Image.new("RGB", (16_000, 1)), "PNG"), side=64)
    assert small.size == (64, 1)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_kept_and_what_is_clear_colours_nothing(form: str) -> None:
    picture = Image.new("RGBA", (400, 400), (0, 255, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 200, 400))
    _, small = read(media.encoded(picture, form, lossless=True))
    assert small.mode == "RGBA"
    shown = np.asarray(small)
    assert tuple(shown[50, 10]) == (255, 0, 0, 255)
    assert shown[50, 90, 3] == 0
    edge = shown[50, 45:55]
    # green, which nobody can see, has not leaked into what can be seen
    assert edge[edge[:, 3] > 0][:, 1].max() <= 2


def test_a_palette_with_a_clear_entry_is_transparent() -> None:
    picture = Image.new("P", (200, 200), 0)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.paste(1, (0, 0, 100, 200))
    for form in ("PNG", "GIF"):
        _, small = read(media.encoded(picture, form, transparency=0))
        assert small.mode == "RGBA"
        assert [small.getpixel(at) for at in ((10, 10), (90, 10))] == [
            (255, 0, 0, 255),
            (0, 0, 0, 0),
        ]


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_pictures_come_out_grey(mode: str) -> None:
    _, small = read(media.encoded(Image.new("L", (200, 200), 255).convert(mode), "PNG"))
    assert small.convert("RGB").getpixel((50, 50)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    deep = Image.fromarray(np.full((200, 200), 40_000, dtype=np.uint16))
    _, small = read(media.encoded(deep, "PNG"))
    assert small.getpixel((50, 50)) == (156, 156, 156)


def test_colours_of_print_become_colours_of_screens() -> None:
    _, small = read(media.encoded(media.quarters(mode="CMYK"), "JPEG"))
    assert small.mode == "RGB"
    assert media.corners(small) == UPRIGHT


def test_a_colour_profile_goes_along_and_other_metadata_does_not() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    _, small = read(media.encoded(media.quarters(), "JPEG", icc_profile=profile, exif=exif))
    assert small.info == {"icc_profile": profile}
    # of a picture whose colours have been converted it would be wrong
    _, grey = read(media.encoded(media.quarters(mode="L"), "PNG", icc_profile=profile))
    assert grey.info == {}


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_seen_and_all_are_counted(form: str) -> None:
    looked, small = read(media.animated(form))
    assert looked.frames == 3
    assert media.corners(small) == UPRIGHT
    assert refusal(media.animated(form), moving=False) == "animated_image"
    assert read(media.encoded(media.quarters(), form), moving=False)[0].frames is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("side", [None, 100])
def test_a_picture_that_was_cut_off_is_refused(form: str, part: float, side: int | None) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = media.encoded(Image.fromarray(noise), form)
    assert refusal(data[: int(len(data) * part)], side=side) == "unreadable_image"


@pytest.mark.parametrize(
    ("width", "height"), [(65_535, 65_535), (9_000, 9_000), (16_385, 2), (1, 20_000)]
)
def test_a_header_that_says_too_much_is_refused_before_anything_is_unpacked(
    width: int, height: int
) -> None:
    assert refusal(media.png_header(width, height)) == "too_large"


def test_a_frame_larger_than_its_picture_is_a_bomb() -> None:
    data = bytearray(media.encoded(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b",\x00\x00\x00\x00\x04\x00\x04\x00")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert refusal(bytes(data)) == "too_large"


def test_a_picture_at_the_limit_is_taken_and_one_above_it_is_not() -> None:
    data = media.encoded(Image.new("L", (100, 100)), "PNG")
    assert read(data, limits=MediaLimits(pixels=10_000))[0].width == 100
    assert refusal(data, limits=MediaLimits(pixels=9_999)) == "too_large"
    assert refusal(data, limits=MediaLimits(side=99)) == "too_large"


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<svg onload=alert(1)>",
        b"PK\x03\x04" + bytes(60),
        b"BM" + bytes(60),
        b"\x00\x00\x00\x18ftypheic" + bytes(48),
        b"\x00\x00\x00\x18ftypavif" + bytes(48),
        b"RIFF\x00\x00\x00\x00WAVE" + bytes(48),
        b"#EXTM3U\nhttp://127.0.0.1/",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"<?xml version='1.0'?><MPD/>",
        b"glTF" + bytes(60),
    ],
)
def test_what_is_neither_picture_nor_video_is_not_opened_at_all(head: bytes) -> None:
    with pytest.raises(UnfitMedia) as caught:
        media_type_of(head)
    assert caught.value.code == "wrong_kind"
