"""Pictures on their way into a workflow: what is taken, what is refused, and how that is said."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gpu_server.workflow import Size, UnfitPicture, load_workflows, look_at, on_white
from gpu_server.workflow.pictures import MAX_PIXELS, Picture, lowered

SIZE = (123, 77)
BUNDLED = load_workflows(Path(__file__).parents[3] / "workflows")


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, size[::-1], np.uint8)
    noise = Image.fromarray(pixels).convert("I" if mode == "I;16" else mode)
    frames = options.pop("frames", 1)
    if frames > 1:
        others = [Image.new(mode, size, n) for n in range(1, frames)]
        options |= {"save_all": True, "append_images": others}
    noise.convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved("JPEG", exif=exif)


def huge_png(width: int, height: int) -> bytes:
    """A few kilobytes that unfold to a grey picture of that size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row * 256) for _ in range(-(-height // 256)))
    ihdr, idat = chunk(b"IHDR", header), chunk(b"IDAT", pixels + packer.flush())
    return b"\x89PNG\r\n\x1a\n" + ihdr + idat + chunk(b"IEND", b"")


async def seen(data: bytes) -> Picture:
    return await look_at(io.BytesIO(data))


async def refused(data: bytes) -> UnfitPicture:
    with pytest.raises(UnfitPicture) as caught:
        await seen(data)
    return caught.value


TAKEN = {
    "png": ("image/png", lambda: saved("PNG")),
    "png with a palette": ("image/png", lambda: saved("PNG", "P")),
    "png of 16 bits": ("image/png", lambda: saved("PNG", "I;16")),
    "png with alpha": ("image/png", lambda: saved("PNG", "LA")),
    "png of one bit": ("image/png", lambda: saved("PNG", "1")),
    "jpeg": ("image/jpeg", lambda: saved("JPEG")),
    "cmyk jpeg": ("image/jpeg", lambda: saved("JPEG", "CMYK")),
    "progressive jpeg": ("image/jpeg", lambda: saved("JPEG", progressive=True)),
    "jpeg with a long profile": ("image/jpeg", lambda: saved("JPEG", icc_profile=bytes(70_000))),
    "jpeg with a copy in it": ("image/jpeg", lambda: saved("MPO", frames=2)),
    "gif": ("image/gif", lambda: saved("GIF", "P")),
    "lossy webp": ("image/webp", lambda: saved("WEBP")),
    "lossless webp": ("image/webp", lambda: saved("WEBP", "RGBA", lossless=True)),
}


@pytest.mark.parametrize(("media_type", "make"), TAKEN.values(), ids=TAKEN)
async def test_a_picture_is_known_with_its_size(media_type: str, make: Callable[[], bytes]) -> None:
    assert await seen(make()) == Picture(media_type=media_type, size=Size(*SIZE))


@pytest.mark.parametrize("orientation", range(9))
async def test_sizes_are_those_of_the_picture_as_it_is_to_be_seen(orientation: int) -> None:
    size = SIZE[::-1] if orientation >= 5 else SIZE
    assert (await seen(turned(orientation))).size == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
async def test_a_picture_cut_off_anywhere_is_refused(kind: str) -> None:
    whole = saved(kind)
    for part in (0.02, 0.3, 0.6, 0.9):
        assert (await refused(whole[: int(len(whole) * part)])).code == "unreadable_image"


async def test_garbage_behind_a_right_header_is_refused() -> None:
    whole = saved("PNG")
    ihdr_ends = 33
    fake = b"IDAT" + bytes(500)
    chunk = struct.pack(">I", 500) + fake + struct.pack(">I", zlib.crc32(fake))
    assert (await refused(whole[:ihdr_ends] + chunk + whole[-12:])).code == "unreadable_image"
    data = bytearray(whole)
    data[60 : len(data) - 20] = b"\xa5" * (len(data) - 80)
    assert (await refused(bytes(data))).code == "unreadable_image"


@pytest.mark.parametrize(("kind", "mode"), [("GIF", "P"), ("PNG", "RGB"), ("WEBP", "RGB")])
async def test_a_picture_that_moves_is_refused_with_the_way_out(kind: str, mode: str) -> None:
    said = await refused(saved(kind, mode, frames=3))
    assert said.code == "animated_image"
    assert "send one" in said.message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\0\0\0\x18ftypheic" + bytes(100),
        b"\0\0\0\x18ftypisom" + bytes(100),
        b"glTF\x02\0\0\0",
        b"II*\0" + bytes(100),
        b"BM" + bytes(100),
    ],
    ids=["empty", "a zero", "svg", "pdf", "heic", "mp4", "glb", "tiff", "bmp"],
)
async def test_what_is_no_such_picture_is_refused_with_those_that_are(data: bytes) -> None:
    said = await refused(data)
    assert said.code == "wrong_kind"
    assert "PNG, JPEG, WebP or GIF" in said.message


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000, 9_000), (13_000, 13_000)])
async def test_a_small_file_that_would_unfold_to_a_huge_one_is_refused(
    size: tuple[int, int],
) -> None:
    bomb = huge_png(*size)
    assert len(bomb) < 100_000
    said = await refused(bomb)
    assert (said.code, said.message[-13:]) == ("too_large", "80 megapixels")


async def test_the_largest_picture_is_taken() -> None:
    assert (await seen(huge_png(MAX_PIXELS // 8000, 8000))).size == (10_000, 8000)
    assert (await refused(huge_png(MAX_PIXELS // 8000, 8001))).code == "too_large"


@pytest.mark.parametrize(
    ("size", "code"), [((16_385, 400), "too_large"), ((1010, 10), "wrong_size")]
)
async def test_a_picture_no_model_could_read_is_refused(size: tuple[int, int], code: str) -> None:
    assert (await refused(saved("PNG", "1", size))).code == code


async def test_the_smallest_picture_is_taken() -> None:
    assert (await seen(saved("PNG", size=(1, 1)))).size == (1, 1)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_damage_is_an_error_of_ours(data: st.DataObject) -> None:
    whole = bytearray(TAKEN[data.draw(st.sampled_from(list(TAKEN)))][1]())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with contextlib.suppress(UnfitPicture):
        assert (await seen(bytes(whole))).size


def of(name: str, sizes: dict[str, tuple[int, int]], **values: Any) -> list[tuple[str, str]]:
    known = {param: [Size(*size)] for param, size in sizes.items()}
    return [(m.param, m.code) for m in BUNDLED[name].misfits(values, known)]


@pytest.mark.parametrize("name", ["inpaint-flux2-klein-9b", "inpaint-flux2-klein-4b"])
def test_a_mask_has_the_size_of_its_scene(name: str) -> None:
    assert of(name, {"scene_url": (64, 32), "mask_url": (64, 32)}) == []
    assert of(name, {"scene_url": (64, 32)}) == []
    assert of(name, {"mask_url": (64, 32)}) == []
    assert of(name, {"scene_url": (64, 32), "mask_url": (32, 64)}) == [("mask_url", "wrong_size")]
    (misfit,) = BUNDLED[name].misfits({}, {"scene_url": [Size(64, 32)], "mask_url": [Size(10, 20)]})
    assert misfit.message == ("is 10x20 pixels: scene_url is 64x32, and both must have one size")


@pytest.mark.parametrize("name", [name for name in BUNDLED if name.startswith("control-")])
def test_a_guide_whose_own_size_would_be_too_long_needs_another_one(name: str) -> None:
    assert of(name, {"image_url": (4000, 1000)}) == []
    assert of(name, {"image_url": (1000, 4010)}) == [("image_url", "wrong_size")]
    assert of(name, {"image_url": (1000, 4010)}, width=512) == [("image_url", "wrong_size")]
    assert of(name, {"image_url": (1000, 4010)}, width=512, height=512) == []


@pytest.mark.parametrize(
    ("scale", "largest"), [(None, (5000, 4000)), (2, (5000, 4000)), (4, (2500, 2000))]
)
def test_what_is_enlarged_is_not_larger_than_an_input_may_be(
    scale: int | None, largest: tuple[int, int]
) -> None:
    values = {} if scale is None else {"scale": scale}
    assert of("upscale-realesrgan", {"image_url": largest}, **values) == []
    larger = (largest[0] + 1, largest[1])
    assert of("upscale-realesrgan", {"image_url": larger}, **values) == [("image_url", "too_large")]


def test_a_blur_is_lowered_to_what_its_picture_can_take() -> None:
    within = BUNDLED["mask-sam3"].manifest.params["mask_blur"].within
    assert within is not None

    def used(side: int, wanted: float) -> Any:
        return lowered(within, wanted, {"image_url": [Size(side, 4000)]})

    assert [used(side, 50) for side in (1000, 162, 100, 20, 8, 1)] == [50, 50, 30, 4, 0, 0]
    assert [used(1000, blur) for blur in (0, 0.5, 50)] == [0, 0.5, 50]
    assert lowered(within, 50, {}) == 50
    for side in range(1, 400):
        for wanted in (0.5, 1, 7.3, 50):
            blur = used(side, wanted)
            # the radius the graph gets, and the side of the shrunk mask
            assert blur == 0 or max(1, round(blur * 0.62)) < round(side * 0.2)


async def test_what_is_clear_in_a_picture_becomes_white() -> None:
    picture = Image.new("RGBA", (4, 2), (200, 10, 10, 255))
    picture.putpixel((1, 1), (10, 200, 10, 0))
    file = io.BytesIO()
    picture.save(file, "PNG")
    laid = await on_white(file)
    assert laid is not None
    with laid, Image.open(laid) as made:
        assert (made.format, made.mode, made.size) == ("PNG", "RGB", (4, 2))
        assert (made.getpixel((0, 0)), made.getpixel((1, 1))) == ((200, 10, 10), (255, 255, 255))


async def test_a_picture_without_transparency_is_sent_as_it_came() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4, 2)).save(file, "PNG")
    assert await on_white(file) is None
