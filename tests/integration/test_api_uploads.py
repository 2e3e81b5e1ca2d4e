"""Uploads over HTTP: what is taken and shown, what is refused, and that nothing of that is left."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.db import DatabaseUnavailable
from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, files_in, problem
from tests.support.uploads import (
    CONTENT_TYPE,
    archive,
    around,
    mesh,
    sound,
    streamed,
    uploaded,
    video,
)

MEDIA, FILES = "/api/media/upload", "/api/files"
LISTS = {MEDIA: "/api/media", FILES: FILES}
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as running:
        yield running


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", upload_max_mb=1) as running:
        yield running


async def listed(served: Gateway, path: str) -> list[dict[str, Any]]:
    return list((await served.http.get(LISTS[path])).json()["items"])


async def assert_nothing_left(served: Gateway) -> None:
    assert files_in(served) == set()
    assert [await listed(served, path) for path in LISTS] == [[], []]
    # in no folder for files under work, and no record of one that is gone
    data = served.context.settings.data
    assert [p for p in data.rglob("*") if p.is_file() and p.parent != data] == []


async def test_a_picture_is_answered_as_the_contract_says(served: Gateway) -> None:
    red = bytes_of("red")
    answer = await uploaded(served.http, MEDIA, red, "../../my\a mug.png")
    card = answer.json()
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/media/{card['card_id']}"
    assert len(card["card_id"]) == 26
    assert card["media_type"] == "image"
    assert {name: card[name] for name in ("content_type", "bytes", "sha256", "name")} == {
        "content_type": "image/png",
        "bytes": len(red),
        "sha256": hashlib.sha256(red).hexdigest(),
        "name": "my mug.png",
    }
    assert (card["width"], card["height"], card["status"]) == (32, 32, "completed")
    assert card["address"].startswith("local://files/uploads/")
    assert "mug" not in card["address"] + card["media_url"]
    assert (await served.http.get(answer.headers["location"])).json() == card
    assert (await listed(served, MEDIA), await listed(served, FILES)) == ([card], [])


async def test_its_links_open_without_a_key_and_altered_ones_do_not(served: Gateway) -> None:
    red = bytes_of("red")
    card = (await uploaded(served.http, MEDIA, red)).json()
    other = (await uploaded(served.http, MEDIA, bytes_of("blue"))).json()
    shown = await served.stranger.get(card["media_url"])
    assert (shown.content, shown.headers["content-type"]) == (red, "image/png")
    assert shown.headers["x-content-type-options"] == "nosniff"
    path, _, signature = card["media_url"].partition("?")
    assert (await served.stranger.get(path)).status_code == 401
    assert (await served.http.get(path)).content == red
    assert (await served.http.head(path)).headers["content-length"] == str(len(red))
    forged = f"{other['media_url'].partition('?')[0]}?{signature}"
    assert (await served.stranger.get(forged)).status_code == 403
    part = await served.stranger.get(card["media_url"], headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, red[1:4])


async def test_its_thumbnail_is_there_at_once(served: Gateway) -> None:
    large = bytes_of("red", side=1024)
    card = (await uploaded(served.http, MEDIA, large)).json()
    assert len([name for name in files_in(served) if name.startswith("thumbs/")]) == 1
    small = await served.stranger.get(card["thumb_url"])
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    assert len(files_in(served)) == 2


async def test_a_video_is_taken_with_its_length_and_size(small: Gateway) -> None:
    for kind, media_type in (
        ("mp4", "video/mp4"),
        ("mov", "video/quicktime"),
        ("webm", "video/webm"),
    ):
        card = (await uploaded(small.http, MEDIA, video(kind))).json()
        assert (card["media_type"], card["content_type"]) == ("video", media_type)
        assert (card["width"], card["height"]) == (64, 48)
        assert card["duration_s"] == pytest.approx(0.4, abs=0.1)
        thumb = await small.stranger.get(card["thumb_url"])
        assert thumb.headers["content-type"] == "image/webp"


async def test_a_file_is_what_its_content_shows(small: Gateway) -> None:
    every: list[dict[str, Any]] = []
    for data, media_type, ending in (
        (bytes_of("red", "JPEG"), "image/jpeg", "jpg"),
        (bytes_of("red", "GIF"), "image/gif", "gif"),
        (bytes_of("red", "WEBP"), "image/webp", "webp"),
        (video(), "video/mp4", "mp4"),
        (mesh(), "model/gltf-binary", "glb"),
        (sound(), "audio/wav", "wav"),
        (b"ID3\4" + bytes(200), "audio/mpeg", "mp3"),
        (b"fLaC" + bytes(200), "audio/flac", "flac"),
        (archive(), "application/zip", "zip"),
    ):
        answer = await uploaded(small.http, FILES, data, "x.exe", "text/html")
        file = answer.json()
        assert answer.status_code == 201, answer.text
        assert (file["media_type"], file["bytes"], file["name"]) == (media_type, len(data), "x.exe")
        assert file["url"] == f"/api/uploads/{file['address'].rpartition('/')[2]}"
        assert file["url"].endswith(f".{ending}")
        shown = await small.stranger.get(file["link"])
        assert (shown.content, shown.headers["content-type"]) == (data, media_type)
        assert (await small.http.get(f"{FILES}/{file['id']}")).json() == file
        assert (await small.http.get(f"/api/media/{file['id']}")).status_code == 404
        every.insert(0, file)
    assert (await listed(small, MEDIA), await listed(small, FILES)) == ([], every)


async def test_what_is_refused_is_named_and_leaves_nothing(small: Gateway) -> None:
    for path, data, code in (
        (MEDIA, b"", "empty_file"),
        (MEDIA, b"hello", "wrong_kind"),
        (MEDIA, SVG, "wrong_kind"),
        (MEDIA, b"<html><script>alert(1)</script>", "wrong_kind"),
        (MEDIA, archive(), "wrong_kind"),
        (MEDIA, mesh(), "wrong_kind"),
        (MEDIA, b"\x00\x00\x00\x1cftypheic" + bytes(99), "wrong_kind"),
        (MEDIA, bytes_of("red", side=300)[:-40], "unreadable_image"),
        (MEDIA, b"\x89PNG\r\n\x1a\n" + bytes(500), "unreadable_image"),
        (MEDIA, video()[:-300], "unreadable_video"),
        (FILES, b"MZ\x90\x00" + bytes(500), "wrong_kind"),
        (FILES, b"\x7fELF" + bytes(500), "wrong_kind"),
        (FILES, b"#!/bin/sh\n", "wrong_kind"),
        (FILES, SVG, "wrong_kind"),
        (FILES, b"%PDF-1.7", "wrong_kind"),
        (FILES, b"", "empty_file"),
        (FILES, b"glTF", "damaged_file"),
        (FILES, mesh()[:-1], "damaged_file"),
        (FILES, mesh()[:4] + b"\1" + mesh()[5:], "wrong_kind"),
        (FILES, archive()[:-30], "damaged_file"),
        (FILES, b"AAAAAAAAWEBPVP8 " + bytes(99), "wrong_kind"),
    ):
        answer = await uploaded(small.http, path, data, "mug.png", "image/png")
        assert problem(answer) == (422, [("file", code)]), (path, data[:40])
        await assert_nothing_left(small)


async def test_a_form_that_is_none_is_refused_and_leaves_nothing(small: Gateway) -> None:
    red, (head, end) = bytes_of("red"), around()
    for headers, body, status, fields in (
        ({"Content-Type": "application/json"}, b"{}", 415, []),
        ({"Content-Type": "multipart/form-data"}, b"x", 422, [("body", "form_invalid")]),
        (CONTENT_TYPE, b"", 422, [("body", "form_invalid")]),
        (CONTENT_TYPE, end.lstrip(), 422, [("file", "missing")]),
        (CONTENT_TYPE, head + red, 422, [("body", "form_invalid")]),
        (CONTENT_TYPE, around(field="image")[0] + red + end, 422, [("image", "extra_forbidden")]),
        (CONTENT_TYPE, head + red + b"\r\n" + head + red + end, 422, [("file", "sent_twice")]),
        (CONTENT_TYPE, head + red + end[:-4], 422, [("body", "form_invalid")]),
    ):
        answer = await small.http.post(MEDIA, content=body, headers=headers)
        assert problem(answer) == (status, fields), body[-60:]
        await assert_nothing_left(small)


async def test_a_stranger_uploads_nothing(small: Gateway) -> None:
    for path in LISTS:
        answer = await uploaded(small.stranger, path, bytes_of("red"))
        assert answer.status_code == 401
    await assert_nothing_left(small)


async def test_one_that_says_it_is_too_large_is_refused_before_it_is_read(small: Gateway) -> None:
    read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b""

    headers = CONTENT_TYPE | {"Content-Length": str(10 * 1024 * 1024)}
    answer = await small.http.post(MEDIA, content=body(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert "1048576 bytes" in answer.json()["detail"]
    assert answer.headers["connection"] == "close"
    await assert_nothing_left(small)


async def test_one_that_grows_too_large_is_refused_on_the_way(small: Gateway) -> None:
    for count, status in ((1024 * 1024, 422), (1024 * 1024 + 1, 413)):
        body = streamed(b"\x89PNG\r\n\x1a\n", count)
        answer = await small.http.post(MEDIA, content=body, headers=CONTENT_TYPE)
        assert answer.status_code == status, answer.text
    await assert_nothing_left(small)


@pytest.mark.parametrize(
    ("raised", "status"), [(DatabaseUnavailable("gone"), 503), (RuntimeError("a bug"), 500)]
)
async def test_one_whose_row_cannot_be_written_leaves_nothing(
    small: Gateway, raised: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def add(*_: object) -> None:
        raise raised

    with monkeypatch.context() as patched:
        patched.setattr(small.context.intake.rows, "add", add)
        answer = await uploaded(small.http, MEDIA, bytes_of("red"))
        assert answer.status_code == status
    await assert_nothing_left(small)


async def test_while_the_database_is_away_the_file_goes_all_the_same(
    small: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(small.context.intake.rows, "add", away)
    monkeypatch.setattr(small.context.thumbnails, "drop", away)
    answer = await uploaded(small.http, MEDIA, bytes_of("red"))
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    # its thumbnail is left to the sweep
    assert not [name for name in files_in(small) if name.startswith("uploads/")]


async def send(served: Gateway, path: str, *pieces: bytes) -> list[Any]:
    """Call the app as a server does whose client sends these and goes away; what it answers."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    messages.append({"type": "http.disconnect"})
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def answer(message: Any) -> None:
        answered.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "asgi": {"version": "3.0"}, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "headers": [
            (b"authorization", served.http.headers["authorization"].encode()),
            (b"content-type", CONTENT_TYPE["Content-Type"].encode()),
        ],
    }  # fmt: skip
    await served.app(scope, receive, answer)
    return answered


async def test_a_client_that_goes_away_in_the_middle_leaves_nothing(small: Gateway) -> None:
    head, _ = around()
    picture = bytes_of("red", side=600)
    for path in LISTS:
        for pieces in (
            (),
            (head[:30],),
            (head,),
            (head, picture[:40]),
            (head, picture[:200], *[bytes(100_000)] * 8),
        ):
            assert await send(small, path, *pieces) == []
            await assert_nothing_left(small)


async def test_the_lists_go_from_the_newest_to_the_oldest_page_by_page(served: Gateway) -> None:
    for path, key in ((MEDIA, "card_id"), (FILES, "id")):
        made = [
            (await uploaded(served.http, path, bytes_of("red"), f"{n}.png")).json()[key]
            for n in range(5)
        ]
        found: list[str] = []
        cursor: str | None = None
        for _ in range(3):
            query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
            page = (await served.http.get(LISTS[path], params=query)).json()
            found += [item[key] for item in page["items"]]
            cursor = page["next_cursor"]
        assert (found, cursor) == (made[::-1], None)
        for wrong in ("x", "MTIz", "name.x"):
            answer = await served.http.get(LISTS[path], params={"cursor": wrong})
            assert problem(answer) == (422, [("cursor", "invalid_cursor")])
        answer = await served.http.get(LISTS[path], params={"limit": "0"})
        assert problem(answer) == (422, [("limit", "greater_than_equal")])


@pytest.mark.parametrize("path", LISTS)
async def test_deleted_it_is_gone_with_its_file_and_thumbnails(served: Gateway, path: str) -> None:
    made = (await uploaded(served.http, path, bytes_of("red", side=900))).json()
    kept = (await uploaded(served.http, path, bytes_of("blue"))).json()
    link = made.get("media_url") or made["link"]
    own = f"{LISTS[path]}/{made.get('card_id') or made['id']}"
    for width in ("64", "1024"):
        assert (await served.stranger.get(f"{link}&w={width}")).status_code == 200
    assert (await served.http.delete(own)).status_code == 204
    assert {name.partition("/")[0] for name in files_in(served)} <= {"uploads", "thumbs"}
    assert len([name for name in files_in(served) if name.startswith("uploads/")]) == 1
    for method, address in (("GET", own), ("DELETE", own), ("GET", link), ("GET", f"{link}&w=64")):
        assert (await served.http.request(method, address)).status_code == 404, address
    assert await listed(served, path) == [kept]
    await served.http.delete(f"{LISTS[path]}/{kept.get('card_id') or kept['id']}")
    await assert_nothing_left(served)


async def test_an_id_that_is_none_is_not_found(small: Gateway) -> None:
    for wrong in ("0", "x" * 26, "..%2Fx", "8ZZZZZZZZZZZZZZZZZZZZZZZZZ", "%C3%A9", "%00"):
        for path in LISTS.values():
            for method in ("GET", "DELETE"):
                answer = await small.http.request(method, f"{path}/{wrong}")
                assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), wrong


async def test_who_keeps_as_much_as_he_may_uploads_no_more(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_stored_mb_per_caller=1) as served:
        first = await uploaded(served.http, FILES, b"fLaC" + bytes(900_000))
        assert first.status_code == 201
        for said in (True, False):
            body = b"".join([piece async for piece in streamed(b"fLaC", 300_000)])
            content = body if said else streamed(b"fLaC", 300_000)
            answer = await served.http.post(FILES, content=content, headers=CONTENT_TYPE)
            assert (answer.status_code, answer.json()["code"]) == (403, "quota_exceeded")
        assert len(files_in(served)) == 1
        await served.http.delete(f"{FILES}/{first.json()['id']}")
        # a sum that cost time is trusted for a moment
        for _ in range(1000):
            again = await uploaded(served.http, FILES, b"fLaC" + bytes(900_000))
            if again.status_code == 201:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("what was deleted made no room")


async def test_it_is_the_input_of_a_tool_by_each_of_its_addresses(served: Gateway) -> None:
    red = bytes_of("red")
    card = (await uploaded(served.http, MEDIA, red)).json()
    file = (await uploaded(served.http, FILES, red)).json()
    for address in (
        card["media_url"], card["address"], file["url"], file["link"], file["address"],
        f"http://127.0.0.1:8000{file['url']}",
    ):  # fmt: skip
        answer = await served.http.post("/api/upscale", json={"image_url": address})
        assert answer.status_code == 200, answer.text
        (source,) = served.backend.orders[-1].call.inputs["image_url"]
        assert (source.media_type, source.bytes) == ("image/png", len(red))
        # the job's end must not be the upload's
        await served.http.delete(f"/api/jobs/{answer.json()['job_id']}")
    assert (await served.http.get(file["url"])).content == red
    await served.http.delete(f"{FILES}/{file['id']}")
    gone = await served.http.post("/api/upscale", json={"image_url": file["url"]})
    assert problem(gone) == (422, [("image_url", "unknown_file")])


async def test_somebody_elses_upload_is_no_input_and_in_no_list(served: Gateway) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield bytes_of("red")

    other = await served.context.intake.keep(
        chunks(), caller="somebody else", kind="media", name=None
    )
    assert (await listed(served, MEDIA), await listed(served, FILES)) == ([], [])
    assert (await served.http.delete(f"/api/media/{other.id}")).status_code == 404
    for address in (f"/api/uploads/{other.filename}", f"local://files/{other.key}"):
        answer = await served.http.post("/api/upscale", json={"image_url": address})
        assert problem(answer) == (422, [("image_url", "unknown_file")])


async def test_the_form_a_client_library_makes_is_read(served: Gateway) -> None:
    files: Any = {"file": ("größe\"'.png", bytes_of("red"), "image/png")}
    answer: httpx.Response = await served.http.post(MEDIA, files=files)
    assert answer.status_code == 201, answer.text
    assert answer.json()["name"].startswith("größe")
