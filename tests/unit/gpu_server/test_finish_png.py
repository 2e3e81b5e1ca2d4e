"""PNG files lose their texts on the way and nothing else, however they are cut into pieces."""

import io
import random
import struct
import zlib
from itertools import pairwise

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from gpu_server.finish.facts import Facts
from gpu_server.finish.png import PngFilter

PIXELS = Image.effect_noise((96, 64), 90).convert("RGB")
SECRET = "a prompt nobody else may read"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each chunk, their checksums checked."""
    found: list[tuple[bytes, bytes]] = []
    at = 8
    while not found or found[-1][0] != b"IEND":
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        data = png[at + 8 : at + 8 + length]
        assert png[at : at + 12 + length] == chunk(kind, data)
        found.append((kind, data))
        at += 12 + length
    return found


def written(*, mark: bool = False, behind: bool = False, **more: object) -> bytes:
    """As ComfyUI writes it: texts before the pixels, `comf` chunks behind them."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", SECRET * 50)
    texts.add_text("workflow", SECRET, zip=True)
    texts.add_itxt("ünicode", SECRET)
    if mark:
        texts.add_text("engine", "simulator")
    if behind:
        texts.add(b"comf", b"prompt\0" + SECRET.encode() * 20, after_idat=True)
    file = io.BytesIO()
    PIXELS.save(file, "PNG", pnginfo=texts, **more)
    return file.getvalue()


def passed(png: bytes, cuts: list[int], total: int | None = -1) -> bytes:
    through = PngFilter(Facts(), len(png) if total == -1 else total)
    out = [through.feed(png[a:b]) for a, b in pairwise([0, *cuts, len(png)])]
    result = b"".join(out) + through.end()
    assert len(result) == len(png) - through.removed
    return result


def opened(png: bytes) -> PngImagePlugin.PngImageFile:
    picture = Image.open(io.BytesIO(png))
    assert isinstance(picture, PngImagePlugin.PngImageFile)
    picture.load()
    return picture


def test_texts_go_and_every_other_chunk_stays_byte_by_byte() -> None:
    before = written(exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0", dpi=(300, 300))
    after = passed(before, [])
    gone = {b"tEXt", b"zTXt", b"iTXt", b"eXIf"}
    assert {kind for kind, _ in chunks(before)} > gone
    assert chunks(after) == [c for c in chunks(before) if c[0] not in gone]
    assert opened(after).tobytes() == PIXELS.tobytes()


def test_how_colours_are_shown_stays() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = PIXELS.convert("P")
    file = io.BytesIO()
    clear.save(file, "PNG", icc_profile=profile, transparency=3, dpi=(72, 72))
    assert passed(file.getvalue(), []) == file.getvalue()


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("mark", [False, True])
def test_it_makes_no_difference_where_the_pieces_are_cut(*, mark: bool, behind: bool) -> None:
    png = written(mark=mark, behind=behind) + b"whatever follows the end"
    whole = passed(png, [])
    dice = random.Random(5)
    for _ in range(50):
        cuts = sorted(dice.sample(range(1, len(png)), dice.randint(1, 30)))
        assert passed(png, cuts) == whole
    assert passed(png, list(range(1, len(png)))) == whole
    assert SECRET.encode() not in whole


def test_pieces_shorter_than_what_is_held_make_no_difference() -> None:
    # a dropped chunk and the beginning of the next: as many bytes held after a piece as before it
    dice = random.Random(7)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13))
    tail = chunk(b"IDAT", bytes(30)) + chunk(b"comf", b"x" * 9) + chunk(b"IEND", b"")
    for _ in range(60):
        texts = [chunk(b"tEXt", dice.randbytes(dice.randint(0, 20))) for _ in range(5)]
        marked = chunk(b"tEXt", b"engine\0simulator")
        shown = [chunk(b"tIME", bytes(7)), chunk(b"gAMA", bytes(4)), marked]
        png = head + b"".join(dice.sample(texts + shown, 8)) + tail
        whole = passed(png, [])
        for _ in range(40):
            cuts = [dice.randint(1, 40)]
            while cuts[-1] < len(png):
                cuts.append(cuts[-1] + dice.randint(1, 40))
            assert passed(png, cuts[:-1]) == whole


def test_what_comes_behind_the_pixels_is_blanked_at_its_own_length() -> None:
    before, after = written(behind=True), passed(written(behind=True), [])
    (secret,) = [data for kind, data in chunks(before) if kind == b"comf"]
    assert [data for kind, data in chunks(after) if kind == b"paDd"] == [bytes(len(secret))]
    assert opened(after).tobytes() == PIXELS.tobytes()


def test_what_follows_the_end_is_blanked() -> None:
    assert passed(written() + SECRET.encode(), []).endswith(bytes(len(SECRET)))


def test_the_length_is_settled_as_soon_as_the_pixels_come() -> None:
    png = written(behind=True)
    through = PngFilter(Facts(), len(png))
    sent = through.feed(png[: png.index(b"IDAT") + 4])
    assert through.settled
    removed = through.removed
    rest = through.feed(png[png.index(b"IDAT") + 4 :])
    assert through.removed == removed == len(png) - len(sent) - len(rest)


def test_the_mark_of_the_simulator_stays_and_nothing_that_resembles_it() -> None:
    assert opened(passed(written(mark=True), [])).text == {"engine": "simulator"}
    texts = PngImagePlugin.PngInfo()
    texts.add_text("engine", "simulatoR")
    file = io.BytesIO()
    PIXELS.save(file, "PNG", pnginfo=texts)
    assert opened(passed(file.getvalue(), [])).text == {}


def test_an_animation_keeps_its_frames() -> None:
    file = io.BytesIO()
    texts = PngImagePlugin.PngInfo()
    texts.add(b"comf", b"prompt\0" + SECRET.encode(), after_idat=True)
    frames = [PIXELS, PIXELS.rotate(90), PIXELS.rotate(180)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:], pnginfo=texts, duration=80)
    after = passed(file.getvalue(), [100, 5000])
    assert SECRET.encode() not in after
    picture = opened(after)
    assert getattr(picture, "n_frames", 0) == 3
    for number, frame in enumerate(frames):
        picture.seek(number)
        assert picture.convert("RGB").tobytes() == frame.tobytes()


@pytest.mark.parametrize(
    "png",
    [
        b"\x89PNG\r\n\x1a\n",
        written()[:20],
        written()[:4000],
        b"\x89PNG\r\n\x1a\n" + bytes(5000),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + b"\xff\xff\xff\xfftEXt" + b"x" * 999,
    ],
    ids=["signature", "in the header", "in the pixels", "zeros", "a chunk without end"],
)
def test_a_broken_file_passes_from_where_it_is_broken(png: bytes) -> None:
    end = passed(png, [10] if len(png) > 10 else [])[-40:]
    assert png.endswith(end)
    assert passed(png, [], total=None)[:8] == png[:8]


def test_memory_stays_flat_before_pixels_that_never_come() -> None:
    through = PngFilter(Facts(), None)
    through.feed(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)))
    block = chunk(b"iCCP", bytes(300_000))
    for _ in range(3):
        assert not through.settled
        through.feed(block)
    through.feed(block)
    through.feed(block)
    assert through.settled
