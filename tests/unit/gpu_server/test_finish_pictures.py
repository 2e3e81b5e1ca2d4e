"""Pictures in another format, and WebP and JPEG without what was written into them."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from gpu_server.finish import pictures, segments
from gpu_server.finish.facts import Facts, NotConvertible, Unreadable
from gpu_server.protocol import FileOptions, PictureFormat

PIXELS = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
PROMPT = json.dumps({"3": {"inputs": {"text": "a prompt nobody else may read"}}})
SECRET = b"nobody else may read"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MODEL, MAKE, SOFTWARE = 0x0110, 0x010F, 0x0131


def png(path: Path, picture: Image.Image = PIXELS, **more: Any) -> Path:
    texts = PngImagePlugin.PngInfo()
    for key, text in {"prompt": PROMPT, "workflow": PROMPT, "comment": "x", **more}.items():
        texts.add_text(key, text)
    picture.save(path, "PNG", pnginfo=texts, icc_profile=PROFILE, dpi=(300, 300))
    return path


def converted(source: Path, wanted: PictureFormat, **more: Any) -> tuple[Image.Image, Facts]:
    target = source.with_name(f"made.{wanted}")
    facts = pictures.converted(source, target, wanted, FileOptions(format=wanted, **more))
    made = Image.open(io.BytesIO(target.read_bytes()))
    made.load()
    return made, facts


def as_comfyui_has_it(**tags: str) -> Image.Exif:
    """Prompt and workflow where ComfyUI's nodes write them into WebP files."""
    exif = Image.Exif()
    exif[MODEL], exif[MAKE] = f"prompt:{PROMPT}", f"workflow:{PROMPT}"
    if tags:
        exif[SOFTWARE] = tags["software"]
    return exif


@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
def test_a_converted_picture_looks_the_same_and_says_nothing(
    tmp_path: Path, wanted: PictureFormat
) -> None:
    made, facts = converted(png(tmp_path / "a.png"), wanted, quality=95)
    assert facts == Facts(width=96, height=64)
    assert (made.format, made.size, made.mode) == (wanted.upper(), (96, 64), "RGB")
    worst = max(abs(a - b) for a, b in zip(made.tobytes(), PIXELS.tobytes(), strict=True))
    assert worst < 16
    assert dict(made.getexif()) == {}
    assert made.info["icc_profile"] == PROFILE
    content = (tmp_path / f"made.{wanted}").read_bytes()
    assert SECRET not in content
    assert not {"comment", "xmp", "exif"} & made.info.keys()


@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
def test_kept_metadata_goes_where_comfyui_looks_for_it(
    tmp_path: Path, wanted: PictureFormat
) -> None:
    made, _ = converted(png(tmp_path / "a.png"), wanted, keep_metadata=True)
    exif = made.getexif()
    assert exif[MODEL] == f"prompt:{PROMPT}"
    assert exif[MAKE] == f"workflow:{PROMPT}"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
def test_the_simulators_mark_survives_a_conversion(
    tmp_path: Path, wanted: PictureFormat, *, keep: bool
) -> None:
    source = png(tmp_path / "a.png", engine="simulator")
    made, _ = converted(source, wanted, keep_metadata=keep)
    assert made.getexif()[SOFTWARE] == "simulator"


def test_more_quality_is_a_larger_file(tmp_path: Path) -> None:
    noisy = png(tmp_path / "a.png", Image.effect_noise((96, 64), 80).convert("RGB"))
    for wanted in ("webp", "jpeg"):
        sizes: list[int] = []
        for quality in (10, 90, 100):
            converted(noisy, wanted, quality=quality)
            sizes.append((tmp_path / f"made.{wanted}").stat().st_size)
        assert sizes == sorted(set(sizes))


def test_transparency_stays_in_webp_and_is_white_in_jpeg(tmp_path: Path) -> None:
    clear = PIXELS.convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 48, 64))
    source = png(tmp_path / "a.png", clear)
    assert converted(source, "webp")[0].getchannel("A").tobytes() == clear.getchannel("A").tobytes()
    made, _ = converted(source, "jpeg")
    assert made.mode == "RGB"
    assert min(made.crop((0, 0, 40, 64)).getextrema())[0] > 245


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("wanted", ["webp", "jpeg", "png"])
def test_every_kind_of_png_can_be_converted(
    tmp_path: Path, mode: str, wanted: PictureFormat
) -> None:
    grey = PIXELS.convert("L")
    deep = Image.frombytes(
        "I;16", grey.size, struct.pack("<6144H", *(v * 257 for v in grey.tobytes()))
    )
    source = png(tmp_path / "a.png", deep if mode == "I;16" else PIXELS.convert(mode))
    made, _ = converted(source, wanted)
    assert made.size == PIXELS.size
    if mode == "I;16":
        shown = made.convert("L").tobytes()
        assert max(abs(a - b) for a, b in zip(shown, grey.tobytes(), strict=True)) < 12


@pytest.mark.parametrize(("size", "wanted"), [((9000, 9000), "jpeg"), ((16_400, 8), "webp")])
def test_a_picture_too_large_to_convert_is_refused(
    tmp_path: Path, size: tuple[int, int], wanted: PictureFormat
) -> None:
    Image.new("1", size).save(tmp_path / "a.png")
    with pytest.raises(NotConvertible, match=f"{size[0]} x {size[1]}"):
        converted(tmp_path / "a.png", wanted)


def test_metadata_no_jpeg_has_room_for_is_said(tmp_path: Path) -> None:
    source = png(tmp_path / "a.png", huge="x" * 70_000)
    with pytest.raises(NotConvertible, match="does not fit into a JPEG"):
        converted(source, "jpeg", keep_metadata=True)
    assert len(converted(source, "webp", keep_metadata=True)[0].getexif().tobytes()) > 70_000


def test_a_moving_picture_is_not_made_a_still_one(tmp_path: Path) -> None:
    PIXELS.save(tmp_path / "a.webp", save_all=True, append_images=[PIXELS.rotate(180)])
    with pytest.raises(NotConvertible, match="moves"):
        converted(tmp_path / "a.webp", "jpeg")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_what_is_no_picture_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Unreadable):
        converted(tmp_path / "a.png", "webp")


def test_a_truncated_picture_is_said_to_be_unreadable(tmp_path: Path) -> None:
    source = png(tmp_path / "a.png", Image.effect_noise((300, 300), 80))
    source.write_bytes(source.read_bytes()[:20_000])
    with pytest.raises(Unreadable):
        converted(source, "webp")


@pytest.mark.parametrize("software", ["", "simulator", "a camera"])
@pytest.mark.parametrize(("kind", "lossless"), [("webp", True), ("webp", False), ("jpeg", False)])
def test_exif_goes_and_the_pixels_stay_byte_by_byte(
    tmp_path: Path, kind: str, software: str, *, lossless: bool
) -> None:
    exif = as_comfyui_has_it(**({"software": software} if software else {}))
    more: dict[str, Any] = {"lossless": lossless, "xmp": SECRET} if kind == "webp" else {}
    more |= {"comment": SECRET} if kind == "jpeg" else {}
    source, target = tmp_path / "a", tmp_path / "b"
    PIXELS.save(source, kind, exif=exif, icc_profile=PROFILE, **more)
    assert SECRET in source.read_bytes()
    facts = pictures.stripped(source, target, f"image/{kind}")
    assert facts == Facts(width=96, height=64)
    assert SECRET not in target.read_bytes()
    with Image.open(source) as before, Image.open(target) as after:
        assert after.tobytes() == before.tobytes()
        assert after.info["icc_profile"] == PROFILE
        assert dict(after.getexif()) == ({SOFTWARE: software} if software == "simulator" else {})


def test_a_moving_webp_keeps_its_frames_and_tells_them(tmp_path: Path) -> None:
    frames = [PIXELS, PIXELS.rotate(90), PIXELS.rotate(180)]
    source, target = tmp_path / "a", tmp_path / "b"
    frames[0].save(
        source,
        "webp",
        save_all=True,
        append_images=frames[1:],
        duration=120,
        lossless=True,
        exif=as_comfyui_has_it(),
    )
    facts = pictures.stripped(source, target, "image/webp")
    assert facts == Facts(width=96, height=64, frames=3, duration_s=0.36)
    assert SECRET not in target.read_bytes()
    with Image.open(target) as made:
        for number, frame in enumerate(frames):
            made.seek(number)
            assert made.convert("RGB").tobytes() == frame.tobytes()


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_a_file_that_breaks_off_is_said_to_be_unreadable(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "a"
    PIXELS.save(source, kind, exif=as_comfyui_has_it())
    for length in (0, 11, 60):
        source.write_bytes(source.read_bytes()[:length])
        with pytest.raises(Unreadable):
            pictures.stripped(source, tmp_path / "b", f"image/{kind}")


@pytest.mark.parametrize(
    "error", [ValueError("encoding error 6"), OSError("encoder error -2 when writing image file")]
)
def test_an_encoder_that_gives_up_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # what WebP's says of large noise, and JPEG's
    source = png(tmp_path / "a.png")

    def gives_up(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", gives_up)
    with pytest.raises(NotConvertible, match="webp"):
        pictures.converted(source, tmp_path / "b", "webp", FileOptions(format="webp"))


def jpeg(picture: Image.Image = PIXELS, **more: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=as_comfyui_has_it(), **more)
    return file.getvalue()


def stripped(folder: Path, content: bytes) -> bytes:
    source, target = folder / "a", folder / "b"
    source.write_bytes(content)
    assert pictures.stripped(source, target, "image/jpeg") == Facts(width=96, height=64)
    made = target.read_bytes()
    with Image.open(source) as before, Image.open(target) as after:
        assert after.tobytes() == before.tobytes()
        assert after.format == "JPEG"
    return made


@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_what_follows_a_jpegs_end_goes(tmp_path: Path, more: dict[str, Any]) -> None:
    whole = stripped(tmp_path, jpeg(**more))
    assert whole.endswith(b"\xff\xd9")
    assert stripped(tmp_path, jpeg(**more) + SECRET) == whole
    assert stripped(tmp_path, jpeg(**more) + jpeg()) == whole


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_a_jpegs_pixels_are_the_same_wherever_reading_cuts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    content = jpeg(Image.effect_noise((96, 64), 80), restart_marker_blocks=1, quality=98)
    whole = stripped(tmp_path, content + SECRET)
    monkeypatch.setattr(segments, "_SCAN_PIECE", size)
    assert stripped(tmp_path, content + SECRET) == whole


def test_the_second_picture_of_an_mpo_goes(tmp_path: Path) -> None:
    file = io.BytesIO()
    other = PIXELS.rotate(180)
    other.encoderinfo = {"exif": as_comfyui_has_it()}
    PIXELS.save(file, "MPO", save_all=True, append_images=[other], exif=as_comfyui_has_it())
    assert file.getvalue().count(SECRET) > 2
    assert SECRET not in stripped(tmp_path, file.getvalue())


def test_metadata_between_a_jpegs_scans_goes(tmp_path: Path) -> None:
    content = jpeg(progressive=True)
    at = content.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + struct.pack(">H", len(SECRET) + 2) + SECRET
    made = stripped(tmp_path, content[:at] + comment + content[at:])
    assert made == stripped(tmp_path, content)


def test_fill_bytes_before_a_jpegs_marker_are_skipped(tmp_path: Path) -> None:
    content = jpeg()
    at = content.index(b"\xff\xdb")
    assert stripped(tmp_path, content[:at] + b"\xff" * 3 + content[at:]) == stripped(
        tmp_path, content
    )


@pytest.mark.parametrize("length", [0, 1])
def test_a_segment_shorter_than_its_own_length_is_unreadable(tmp_path: Path, length: int) -> None:
    content = jpeg()
    at = content.index(b"\xff\xda")
    bad = b"\xff\xfe" + struct.pack(">H", length)
    (tmp_path / "a").write_bytes(content[:at] + bad + content[at:])
    with pytest.raises(Unreadable):
        pictures.stripped(tmp_path / "a", tmp_path / "b", "image/jpeg")


def test_a_jpeg_without_a_picture_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        segments.copy_jpeg(io.BytesIO(b"\xff\xd8\xff\xd9"), io.BytesIO(), None)


def test_a_jpeg_whose_pixels_break_off_passes_as_far_as_it_goes() -> None:
    content, target = jpeg(), io.BytesIO()
    segments.copy_jpeg(io.BytesIO(content[:-20]), target, None)
    assert content[:-20].endswith(target.getvalue()[-100:])


@pytest.mark.parametrize("wanted", ["webp", "jpeg", "png"])
def test_a_full_disk_is_not_a_pictures_fault(tmp_path: Path, wanted: PictureFormat) -> None:
    noisy = png(tmp_path / "a", Image.effect_noise((400, 300), 80).convert("RGB"))
    with pytest.raises(OSError, match="No space left"):
        pictures.converted(noisy, Path("/dev/full"), wanted, FileOptions(format=wanted))
