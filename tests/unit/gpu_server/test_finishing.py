"""One file on its way out: made ready once, sent as often as it takes, cleared away after."""

import asyncio
import errno
import io
import shutil
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image, PngImagePlugin

from gpu_server.comfy import ComfyClient, ComfyFile, ComfyUnavailable, RunFailed
from gpu_server.finish import Finishing, NotPrepared, pictures, tidied
from gpu_server.protocol import FileOptions

PIXELS = Image.effect_noise((320, 200), 60).convert("RGB")
AS_IT_IS = FileOptions()
WEBP = FileOptions(format="webp")
KEPT = FileOptions(keep_metadata=True)

Make = Callable[..., Finishing]


class Comfy:
    """Hands over one file, piece by piece."""

    def __init__(
        self, content: bytes, *, breaks_at: int | None = None, length: bool = True
    ) -> None:
        self.content = content
        self.breaks_at = breaks_at
        self.headers = {"content-length": str(len(content))} if length else {}
        self.views = 0

    @asynccontextmanager
    async def view(self, _file: ComfyFile) -> AsyncGenerator[httpx.Response]:
        self.views += 1
        yield httpx.Response(200, content=self._pieces(), headers=self.headers)

    async def _pieces(self) -> AsyncGenerator[bytes]:
        for at in range(0, len(self.content), 1000):
            if at == self.breaks_at:
                raise httpx.ReadError("gone")
            yield self.content[at : at + 1000]


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    file = io.BytesIO()
    PIXELS.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def left(folder: Path) -> list[Path]:
    """What lies on the disk."""
    return list(folder.iterdir())


async def sent(file: Finishing) -> tuple[bytes, dict[str, Any], int | None]:
    async with file.opened() as body:
        content = b"".join([chunk async for chunk in body.chunks()])
        return content, body.told, body.length


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "finishing"
    folder.mkdir()
    return folder


@pytest.fixture
def finishing(folder: Path) -> Make:
    def make(comfy: Comfy, wanted: FileOptions, name: str = "a.png") -> Finishing:
        file = ComfyFile(
            node="9", key="images", index=0, filename=name, subfolder="", type="output"
        )
        return Finishing(cast("ComfyClient", comfy), file, wanted, folder)

    return make


async def test_a_png_is_streamed_and_leaves_nothing_on_the_disk(
    finishing: Make, folder: Path
) -> None:
    comfy = Comfy(png(prompt="secret" * 100))
    async with finishing(comfy, AS_IT_IS) as file:
        first, told, length = await sent(file)
        assert left(folder) == []
        again, _, _ = await sent(file)
    assert (comfy.views, again) == (2, first)
    assert len(first) == told["bytes"] == length
    assert (told["width"], told["height"]) == PIXELS.size
    assert b"secret" not in first


async def test_a_file_of_unknown_length_is_sent_as_such(finishing: Make) -> None:
    async with finishing(Comfy(png(prompt="secret"), length=False), AS_IT_IS) as file:
        content, told, length = await sent(file)
    assert (length, told["bytes"]) == (None, len(content))
    assert content == png()


async def test_a_conversion_is_made_once_however_often_it_is_sent(
    finishing: Make, folder: Path
) -> None:
    comfy = Comfy(png())
    async with finishing(comfy, WEBP) as file:
        first, told, length = await sent(file)
        again, _, _ = await sent(file)
        assert len(left(folder)) == 1
    assert (comfy.views, again) == (1, first)
    assert (told["media_type"], length) == ("image/webp", len(first))
    assert left(folder) == []


async def test_a_picture_that_has_the_format_already_is_not_made_anew(finishing: Make) -> None:
    file = io.BytesIO()
    PIXELS.save(file, "WEBP", lossless=True)
    async with finishing(Comfy(file.getvalue()), WEBP, "a.webp") as each:
        assert (await sent(each))[0] == file.getvalue()


@pytest.mark.parametrize("wanted", [AS_IT_IS, WEBP])
async def test_what_has_no_metadata_we_know_of_passes_as_it_is(
    finishing: Make, wanted: FileOptions
) -> None:
    async with finishing(Comfy(b"\0latent" * 500), wanted, "a.latent") as file:
        content, told, length = await sent(file)
    assert (content, length) == (b"\0latent" * 500, 3500)
    assert told["media_type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"\0\0\0\x20ftypisom" + bytes(3000), "a.mp4"),
        (b"glTF" + bytes(3000), "a.glb"),
        (b"\xff\xd8\xff\xe0" + bytes(3000), "a.jpg"),
        (b"RIFF\xb8\x0b\0\0WEBPVP8X" + bytes(2984), "a.webp"),
    ],
)
async def test_a_file_that_cannot_be_read_fails_clearly_unless_it_may_stay_as_it_is(
    finishing: Make, content: bytes, name: str, folder: Path
) -> None:
    with pytest.raises(RunFailed) as caught:
        async with finishing(Comfy(content), AS_IT_IS, name) as file:
            await sent(file)
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("fatal", "unreadable_output")
    assert str(folder) not in failure.message
    async with finishing(Comfy(content), KEPT, name) as file:
        assert (await sent(file))[0] == content
    assert left(folder) == []


async def test_a_picture_too_large_to_convert_is_refused_before_it_is_fetched(
    finishing: Make,
) -> None:
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (40_000).to_bytes(4) * 2
    comfy = Comfy(huge + bytes(600_000), breaks_at=500_000)
    with pytest.raises(RunFailed) as caught:
        async with finishing(comfy, WEBP) as file:
            await sent(file)
    assert (caught.value.failure.kind, caught.value.failure.code) == ("usage", "not_convertible")


@pytest.mark.parametrize("wanted", [WEBP, FileOptions(format="jpeg")])
async def test_comfyui_breaking_off_is_told_as_such(finishing: Make, wanted: FileOptions) -> None:
    with pytest.raises(ComfyUnavailable):
        async with finishing(Comfy(png(), breaks_at=1000), wanted) as file:
            await sent(file)


async def test_a_cancelled_run_leaves_a_conversion_behind_and_nothing_on_the_disk(
    finishing: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, over = threading.Event(), threading.Event(), threading.Event()
    convert = pictures.converted

    def slowly(came: Path, made: Path, **how: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return convert(came, made, **how)

    def cleanup(each: tempfile.TemporaryDirectory[str]) -> None:
        clean(each)
        over.set()

    clean = tempfile.TemporaryDirectory.cleanup
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", cleanup)
    monkeypatch.setattr(pictures, "converted", slowly)

    async def deliver() -> None:
        async with finishing(Comfy(png()), WEBP) as file:
            await sent(file)

    running = asyncio.create_task(deliver())
    await asyncio.to_thread(begun.wait, 60)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    go_on.set()
    assert await asyncio.to_thread(over.wait, 60)
    assert left(folder) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_full_disk_is_told_without_a_path_and_the_file_is_made_once_there_is_room(
    finishing: Make, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(number, "no room", str(folder))

    comfy = Comfy(png())
    async with finishing(comfy, WEBP) as file:
        with monkeypatch.context() as patched:
            patched.setattr(pictures, "converted", full)
            with pytest.raises(NotPrepared) as caught:
                await sent(file)
        assert left(folder) == [], "others may need the room"
        assert (await sent(file))[1]["media_type"] == "image/webp"
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("transient", "delivery_failed")
    assert str(folder) not in failure.message
    assert left(folder) == []


async def test_a_made_file_that_is_gone_is_made_anew(finishing: Make, folder: Path) -> None:
    async with finishing(Comfy(png()), WEBP) as file:
        first, _, _ = await sent(file)
        shutil.rmtree(folder)
        with pytest.raises(NotPrepared):
            await sent(file)
        assert (await sent(file))[0] == first


def test_what_a_killed_process_left_is_removed_and_nothing_else(folder: Path) -> None:
    (folder / "finish-abc").mkdir()
    (folder / "finish-abc" / "came").write_bytes(b"x")
    (folder / "kept").mkdir()
    tidied(folder)
    assert left(folder) == [folder / "kept"]
    tidied(folder / "never made")
