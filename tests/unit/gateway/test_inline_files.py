"""Files that come inside a call, as `data:` URIs."""

import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from gateway.errors import StorageFull
from gateway.inputs import Inline, Inputs, largest_files, sizes_of
from gateway.job import Source, new_job_id
from gateway.storage.base import NoRoom, StorageError
from gateway.storage.local import LocalStorage
from gateway.tool import ToolParams
from gpu_server.workflow import Size
from tests.support.caller_files import JOB, MEBIBYTE, Files, Params, only, refused
from tests.support.reading import data_uri, picture


@pytest.mark.parametrize(
    ("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
async def test_a_picture_inside_the_call_is_what_its_content_is(
    inputs: Inputs, kind: str, media_type: str
) -> None:
    data = picture(kind=kind)
    # what the sender calls it proves nothing
    found = await only(inputs, image_url=data_uri(data, "text/plain"))
    assert found == Inline(media_type=media_type, data=data, size=Size(32, 16))


@pytest.mark.parametrize("ending", ["\n", "\r\n", " ", "\t"])
async def test_base64_may_be_broken_into_lines(inputs: Inputs, ending: str) -> None:
    data = picture()
    head, _, text = data_uri(data).partition(",")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    found = await only(inputs, image_url=f"{head},{ending}{ending.join(lines)}{ending}")
    assert isinstance(found, Inline)
    assert found.data == data


async def test_the_sizes_of_pictures_are_known_where_they_can_be(
    inputs: Inputs, files: Files
) -> None:
    made = files.add("mug.png")
    files.owned["alice", "mug.png"] = replace(made, width=64, height=48)
    files.add("old.png")
    faces = ("/api/images/mug.png", "/api/images/old.png", "https://example.com/a.png")
    checked = await inputs.check(
        Params(face_images=faces, image_url=data_uri(picture(size=(7, 5)))), "alice"
    )
    assert sizes_of(checked) == {"face_images": [(64, 48), None, None], "image_url": [(7, 5)]}


async def test_percent_signs_in_a_data_uri_are_understood(inputs: Inputs) -> None:
    data = picture()
    sent = data_uri(data).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert await only(inputs, image_url=sent.replace("image%2F", "image/")) == Inline(
        media_type="image/png", data=data, size=Size(32, 16)
    )


def moving() -> bytes:
    file = io.BytesIO()
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(file, "GIF", save_all=True, append_images=[second])
    return file.getvalue()


def enormous() -> bytes:
    """A picture that says it has 100 megapixels."""
    whole = picture()
    header = b"IHDR" + struct.pack(">II", 10_000, 10_000) + whole[24:29]
    return whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:]


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "no base64": (lambda: "data:image/svg+xml,<svg/>", "not_base64"),
    "no comma": (lambda: "data:image/png;base64", "not_base64"),
    "no comma for long": (lambda: "data:" + "x" * 5000, "not_base64"),
    "not in the alphabet": (lambda: "data:image/png;base64,%%%", "not_base64"),
    "not ASCII": (lambda: "data:image/png;base64,ä", "not_base64"),
    "cut off": (lambda: data_uri(picture())[:-3], "not_base64"),
    "empty": (lambda: "data:image/png;base64,", "wrong_kind"),
    "a web page": (lambda: data_uri(b"<html>"), "wrong_kind"),
    "a video": (lambda: data_uri(b"\0\0\0\x18ftypisom"), "wrong_kind"),
    "a header alone": (lambda: data_uri(picture()[:10]), "unreadable_image"),
    "half a picture": (lambda: data_uri(picture()[:60]), "unreadable_image"),
    "one that moves": (lambda: data_uri(moving()), "animated_image"),
    "too many bytes": (lambda: data_uri(picture() + bytes(MEBIBYTE)), "too_large"),
    "too many pixels": (lambda: data_uri(enormous()), "too_large"),
}


@pytest.mark.parametrize(("make", "code"), BAD.values(), ids=BAD)
async def test_a_data_uri_that_holds_no_picture_is_refused(
    inputs: Inputs, make: Callable[[], str], code: str
) -> None:
    assert await refused(inputs, image_url=make()) == [("image_url", code)]


async def test_a_file_of_exactly_the_limit_is_taken(inputs: Inputs) -> None:
    data = picture()
    whole = data + bytes(MEBIBYTE - len(data))
    assert await only(inputs, image_url=data_uri(whole)) == Inline(
        media_type="image/png", data=whole, size=Size(32, 16)
    )


async def test_what_came_inside_a_call_is_stored_for_its_job(
    inputs: Inputs, storage: LocalStorage, files: Files
) -> None:
    files.add("mug.png")
    red, blue = picture("red"), picture("blue", kind="JPEG")
    job_id = new_job_id()
    faces = (data_uri(red), "/api/images/mug.png", data_uri(blue), data_uri(red))
    checked = await inputs.check(Params(face_images=faces), "alice")
    kept = (await inputs.keep(checked, job_id))["face_images"]
    assert [source.stored for source in kept] == [True, False, True, True]
    assert kept[1].key == files.owned["alice", "mug.png"].key
    assert len({source.key for source in kept}) == 4
    for source, data in zip((kept[0], kept[2]), (red, blue), strict=True):
        assert source.key is not None
        assert source.key.startswith("inputs/")
        assert f"/{job_id}/" in source.key
        assert b"".join([piece async for piece in storage.read(source.key)]) == data
        assert source.sha256 == hashlib.sha256(data).hexdigest()
        assert source.bytes == len(data)
    assert (kept[2].media_type, (kept[2].key or "")[-4:]) == ("image/jpeg", ".jpg")

    await inputs.discard({"face_images": kept})
    assert [await storage.stat(s.key or "") for s in kept if s.stored] == [None] * 3


async def test_a_large_file_inside_a_call_is_stored_whole(
    inputs: Inputs, storage: LocalStorage
) -> None:
    large = replace(inputs, max_inline_mb=3)
    data = picture() + bytes(range(256)) * 10_000
    checked = await large.check(Params(image_url=data_uri(data)), "alice")
    (source,) = (await large.keep(checked, JOB))["image_url"]
    assert b"".join([piece async for piece in storage.read(source.key or "")]) == data


async def test_a_full_disk_and_a_store_that_is_away_are_told_apart(
    inputs: Inputs, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = await inputs.check(Params(image_url=data_uri(picture())), "alice")
    fault: StorageError = NoRoom("full")

    async def failing(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(storage, "write", failing)
    with pytest.raises(StorageFull):
        await inputs.keep(checked, JOB)
    fault = StorageError("away")
    with pytest.raises(StorageError):
        await inputs.keep(checked, JOB)


async def test_what_cannot_be_discarded_is_left_to_the_sweep(
    inputs: Inputs,
    storage: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(_: str) -> None:
        raise StorageError("away")

    monkeypatch.setattr(storage, "delete", failing)
    await inputs.discard({"image_url": (Source(media_type="image/png", key="k", stored=True),)})
    assert "stay for the sweep" in caplog.text


def test_the_files_of_a_call_may_be_as_long_as_their_base64() -> None:
    longest = len(data_uri(bytes(MEBIBYTE)))
    broken = longest + 2 * (longest // 64)
    assert largest_files(Params, 1) >= 9 * broken
    assert largest_files(Params, 1) < 9 * (broken + 500)
    assert largest_files(ToolParams, 10) == 0
