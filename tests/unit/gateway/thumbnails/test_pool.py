"""The pool: real processes that read, run out of what they may use, crash and are cancelled."""

import asyncio
import hashlib
import os
from pathlib import Path

import psutil
import pytest
from PIL import Image

from gateway.thumbnails.order import Looked, MediaLimits
from gateway.thumbnails.pool import MediaPool
from gateway.thumbnails.unfit import UnfitMedia
from tests.support import media

WORKER = "gateway.thumbnails.worker"
HANGING = "tests.unit.gateway.thumbnails.hanging"
FAILING = "tests.unit.gateway.thumbnails.failing"


def picture(folder: Path, data: bytes | None = None) -> Path:
    path = folder / "in"
    path.write_bytes(data or media.encoded(media.quarters(), "PNG"))
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def workers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if {WORKER, HANGING} & set(child.cmdline())]


async def started(folder: Path) -> psutil.Process:
    said = folder / "pid"
    async with asyncio.timeout(60):
        while not said.exists() or not said.read_text():  # noqa: ASYNC110  # another process says it
            await asyncio.sleep(0.02)
    return psutil.Process(int(said.read_text()))


async def refused(pool: MediaPool, folder: Path, data: bytes | None = None) -> UnfitMedia:
    with pytest.raises(UnfitMedia) as caught:
        await pool.thumbnail(picture(folder, data), folder / "out", 64)
    assert not (folder / "out").exists()
    return caught.value


async def test_one_process_looks_and_makes(tmp_path: Path) -> None:
    async with MediaPool() as pool:
        looked, made = await pool.look_and_thumbnail(picture(tmp_path), tmp_path / "out", 64)
    assert looked == Looked(media_type="image/png", width=400, height=200)
    data = (tmp_path / "out").read_bytes()
    assert (made.bytes, made.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with Image.open(tmp_path / "out") as out:
        assert (out.format, out.size, dict(out.getexif())) == ("WEBP", (made.width, 32), {})
        assert media.corners(out) == ("red", "green", "blue", "grey")
    assert workers() == []


async def test_a_video_goes_through_a_process_that_can_open_nothing(tmp_path: Path) -> None:
    async with MediaPool() as pool:
        for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.mov", "mpeg4")):
            path = media.video(tmp_path / name, codec, frames=3)
            looked, made = await pool.look_and_thumbnail(path, tmp_path / "out", 512)
            assert (looked.width, made.width, made.height) == (400, 400, 200)


async def test_every_kind_of_picture_goes_through_such_a_process(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[media.ORIENTATION] = 6
    kinds = [
        *(media.turned(6, form) for form in ("PNG", "JPEG", "WEBP")),
        *(media.animated(form) for form in ("GIF", "WEBP", "PNG")),
        media.encoded(media.quarters(), "MPO", save_all=True, append_images=[media.quarters()]),
        media.encoded(media.quarters(mode="CMYK"), "JPEG", exif=exif),
    ]
    async with MediaPool() as pool:
        found = [await pool.look(picture(tmp_path, data)) for data in kinds]
    assert [looked.frames for looked in found] == [None, None, None, 3, 3, 3, None, None]


async def test_a_look_alone_writes_nothing(tmp_path: Path) -> None:
    async with MediaPool() as pool:
        looked = await pool.look(picture(tmp_path))
        assert (looked.width, looked.height) == (400, 200)
        with pytest.raises(UnfitMedia, match="several frames"):
            await pool.look(picture(tmp_path, media.animated("GIF")), moving=False)
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (media.png_header(65_535, 65_535), "too_large"),
        (media.encoded(media.quarters(), "JPEG")[:700], "unreadable_image"),
        (b"PK\x03\x04 a zip", "wrong_kind"),
        (b"\x00\x00\x00\x18ftypisom no more", "unreadable_video"),
    ],
)
async def test_a_fault_of_the_file_comes_back_with_its_code_and_is_no_fault_here(
    tmp_path: Path, data: bytes, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with MediaPool() as pool:
        unfit = await refused(pool, tmp_path, data)
    assert unfit.code == code
    assert str(tmp_path) not in unfit.message
    assert caplog.text == ""


async def test_a_file_that_takes_more_memory_than_there_is_is_too_large(tmp_path: Path) -> None:
    data = media.encoded(Image.new("RGBA", (8_000, 8_000)), "PNG", compress_level=1)
    async with MediaPool(MediaLimits(memory_bytes=400 * 2**20)) as pool:
        assert (await refused(pool, tmp_path, data)).code == "too_large"


async def test_a_file_that_takes_too_long_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with MediaPool(MediaLimits(seconds=3), module=HANGING) as pool:
        assert (await refused(pool, tmp_path)).code == "too_large"
        assert workers() == []
    monkeypatch.setenv("FAILING_WITH", "work")
    async with MediaPool(MediaLimits(cpu_seconds=1), module=FAILING) as pool:
        assert (await refused(pool, tmp_path)).code == "too_large"


async def test_a_file_that_crashes_its_decoder_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILING_WITH", "crash")
    async with MediaPool(module=FAILING) as pool:
        assert (await refused(pool, tmp_path)).code == "unreadable_image"
    async with MediaPool() as pool:
        assert (await pool.look(picture(tmp_path))).width == 400


@pytest.mark.parametrize("way", ["connection", "file"])
async def test_a_decoder_that_is_taken_over_can_open_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    monkeypatch.setenv("FAILING_WITH", way)
    async with MediaPool(module=FAILING) as pool:
        await refused(pool, tmp_path)
    assert "Too many open files" in caplog.text


async def test_a_disk_without_room_is_no_fault_of_the_file(tmp_path: Path) -> None:
    async with MediaPool(MediaLimits(made_bytes=10)) as pool:
        with pytest.raises(OSError, match="could not be written"):
            await pool.thumbnail(picture(tmp_path), tmp_path / "out", 64)
        with pytest.raises(FileNotFoundError):
            await pool.thumbnail(tmp_path / "none", tmp_path / "out", 64)
    assert not (tmp_path / "out").exists()


async def test_cancelling_kills_the_process_and_leaves_nothing(tmp_path: Path) -> None:
    async with MediaPool(module=HANGING) as pool:
        work = asyncio.create_task(pool.thumbnail(picture(tmp_path), tmp_path / "out", 64))
        process = await started(tmp_path)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert not process.is_running()
        assert not (tmp_path / "out").exists()


async def test_no_more_processes_run_at_once_than_may(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()
    async with MediaPool(workers=2, module=HANGING) as pool:
        work = [asyncio.create_task(pool.look(picture(folder))) for folder in folders]
        await asyncio.gather(*(started(folder) for folder in folders[:2]))
        assert len(workers()) == 2
        assert not (folders[2] / "pid").exists()
        os.kill(int((folders[0] / "pid").read_text()), 9)
        await started(folders[2])
        await pool.close()
        results = await asyncio.gather(*work, return_exceptions=True)
    assert [type(result) for result in results] == [UnfitMedia, RuntimeError, RuntimeError]
