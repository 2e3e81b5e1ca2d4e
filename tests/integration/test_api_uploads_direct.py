"""Direct uploads, announced and sent to an address of their own; and uploads in a bucket."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.db.uploads import uuid_of
from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, files_in, problem
from tests.support.s3 import S3Server, rclone
from tests.support.uploads import CONTENT_TYPE, archive, streamed, uploaded, video

DIRECT = "/api/media/uploads"
Json = dict[str, Any]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3Server]:
    with rclone(tmp_path / "s3") as server:
        yield server


@pytest.fixture
async def remote(tmp_path: Path, bucket: S3Server) -> AsyncIterator[Gateway]:
    env = {name.lower(): value for name, value in bucket.env().items()}
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


async def announced(served: Gateway, size: int, **more: str) -> Json:
    answer = await served.http.post(DIRECT, json={"bytes": size, **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def put(served: Gateway, made: Json, data: bytes) -> httpx.Response:
    """Send the bytes as a client without the key does."""
    upload = made["upload"]
    if upload["url"].startswith("/"):
        http = served.stranger
        return await http.request(
            upload["method"], upload["url"], content=data, headers=upload["headers"]
        )
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.request(
            upload["method"], upload["url"], content=data, headers=upload["headers"]
        )


async def complete(served: Gateway, made: Json) -> httpx.Response:
    return await served.http.post(f"{DIRECT}/{made['card_id']}/complete")


async def test_announced_sent_and_completed_it_is_an_upload_like_any_other(
    served: Gateway,
) -> None:
    film = video()
    made = await announced(served, len(film), content_type="video/mp4", name="../my film.mp4")
    waiting = (await served.http.get(f"/api/media/{made['card_id']}")).json()
    assert (waiting["status"], waiting["media_url"], waiting["thumb_url"]) == (
        "pending", None, None,
    )  # fmt: skip
    assert (await served.http.get("/api/media")).json()["items"] == []
    early = await complete(served, made)
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    assert (await put(served, made, film)).status_code == 201
    done = await complete(served, made)
    card = done.json()
    assert (done.status_code, card["status"], card["name"]) == (200, "completed", "my film.mp4")
    assert (card["media_type"], card["content_type"]) == ("video", "video/mp4")
    assert card["sha256"] == hashlib.sha256(film).hexdigest()
    assert (await served.stranger.get(card["media_url"])).content == film
    thumb = await served.stranger.get(card["thumb_url"])
    assert thumb.headers["content-type"] == "image/webp"
    assert (await served.http.get("/api/media")).json()["items"] == [card]
    # what arrived is not kept twice
    assert len([name for name in files_in(served) if name.startswith("uploads/")]) == 1
    assert (await complete(served, made)).json() == card


async def test_once_it_is_complete_its_slot_takes_nothing_more(served: Gateway) -> None:
    red = bytes_of("red")
    made = await announced(served, len(red))
    await put(served, made, red)
    card = (await complete(served, made)).json()
    late = await put(served, made, bytes_of("blue")[: len(red)])
    assert late.status_code == 409
    assert (await served.stranger.get(card["media_url"])).content == red
    forged = {**made, "upload": {**made["upload"], "url": made["upload"]["url"] + "x"}}
    assert (await put(served, forged, red)).status_code == 403


async def test_completed_by_several_at_once_it_is_there_once(served: Gateway) -> None:
    red = bytes_of("red")
    made = await announced(served, len(red))
    await put(served, made, red)
    answers = await asyncio.gather(*(complete(served, made) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len([name for name in files_in(served) if name.startswith("uploads/")]) == 1


async def test_more_bytes_than_were_announced_are_not_taken(served: Gateway) -> None:
    red = bytes_of("red")
    made = await announced(served, len(red) - 1)
    assert (await put(served, made, red)).status_code == 413

    async def pieces() -> AsyncIterator[bytes]:
        yield red[:-1]
        yield red[-1:]

    url = made["upload"]["url"]
    assert (await served.stranger.put(url, content=pieces())).status_code == 413
    assert files_in(served) == set()
    assert (await complete(served, made)).status_code == 409


@pytest.mark.parametrize(
    ("data", "more", "field", "code"),
    [
        (bytes_of("red")[:-9], {}, "bytes", "other_length"),
        (archive(), {}, "file", "wrong_kind"),
        (bytes_of("red")[:40] + bytes(200), {}, "file", "unreadable_image"),
        (bytes_of("red"), {"content_type": "image/jpeg"}, "content_type", "mislabelled"),
    ],
)
async def test_what_is_refused_is_deleted_and_may_be_sent_anew(
    served: Gateway, data: bytes, more: dict[str, str], field: str, code: str
) -> None:
    right = bytes_of("red", more.get("content_type", "image/png").partition("/")[2].upper())
    wanted = data if field != "bytes" else bytes_of("red")
    made = await announced(served, len(wanted), **more)
    await put(served, made, data)
    assert problem(await complete(served, made)) == (422, [(field, code)])
    assert files_in(served) == set()
    assert (await complete(served, made)).status_code == 409
    if len(right) == len(wanted):
        await put(served, made, right)
        assert (await complete(served, made)).status_code == 200


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "bytes", "missing"),
        ({"bytes": 0}, "bytes", "greater_than_equal"),
        ({"bytes": "many"}, "bytes", "int_type"),
        ({"bytes": 9, "content_type": "text/html"}, "content_type", "literal_error"),
        ({"bytes": 9, "content_type": "model/gltf-binary"}, "content_type", "literal_error"),
        ({"bytes": 9, "name": "x" * 1001}, "name", "string_too_long"),
        ({"bytes": 9, "key": "uploads/x"}, "key", "extra_forbidden"),
    ],
)
async def test_what_cannot_be_announced_is_named(
    served: Gateway, body: Json, field: str, code: str
) -> None:
    assert problem(await served.http.post(DIRECT, json=body)) == (422, [(field, code)])


async def test_no_more_is_announced_than_may_come(tmp_path: Path) -> None:
    async with gateway(tmp_path, upload_max_mb=2, max_stored_mb_per_caller=3) as served:
        too_much = await served.http.post(DIRECT, json={"bytes": 2 * 1024 * 1024 + 1})
        assert (too_much.status_code, too_much.json()["code"]) == (413, "payload_too_large")
        await announced(served, 2 * 1024 * 1024)
        # what is announced has its room already
        full = await served.http.post(DIRECT, json={"bytes": 2 * 1024 * 1024})
        assert (full.status_code, full.json()["code"]) == (403, "quota_exceeded")


async def test_deleted_before_it_came_it_is_gone(served: Gateway) -> None:
    red = bytes_of("red")
    made = await announced(served, len(red))
    await put(served, made, red)
    assert (await served.http.delete(f"/api/media/{made['card_id']}")).status_code == 204
    assert files_in(served) == set()
    assert (await complete(served, made)).status_code == 404
    assert (await put(served, made, red)).status_code == 409


def folder(server: S3Server, card: Json) -> list[str]:
    """What lies in the bucket of an upload."""
    return [key for key in server.keys() if uuid_of(card["card_id"]) in key]  # noqa: SIM118


async def test_in_a_bucket_it_is_kept_served_and_deleted(
    remote: Gateway, bucket: S3Server, tmp_path: Path
) -> None:
    film = video(frames=200)
    card = (await uploaded(remote.http, "/api/media/upload", film)).json()
    assert card["address"].startswith(f"s3://{bucket.bucket}/uploads/")
    assert card["sha256"] == hashlib.sha256(film).hexdigest()
    assert (await remote.stranger.get(card["media_url"])).content == film
    part = await remote.stranger.get(card["media_url"], headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, film[5:10])
    assert (await remote.stranger.get(card["thumb_url"])).status_code == 200
    assert len(folder(bucket, card)) == 1
    assert (await remote.http.delete(f"/api/media/{card['card_id']}")).status_code == 204
    assert (bucket.keys(), bucket.unfinished()) == ([], [])
    copies = (tmp_path / "workspace" / "data" / "uploads").rglob("*")
    assert [path for path in copies if path.is_file()] == []


async def test_what_is_refused_leaves_nothing_in_a_bucket(
    remote: Gateway, bucket: S3Server, tmp_path: Path
) -> None:
    for data in (bytes_of("red", side=300)[:-40], b"hello", archive()):
        answer = await uploaded(remote.http, "/api/media/upload", data)
        assert answer.status_code == 422
    cut_off = streamed(b"\x89PNG\r\n\x1a\n", 20 * 1024 * 1024)
    body = b"".join([piece async for piece in cut_off])[:-40]
    answer = await remote.http.post("/api/media/upload", content=body, headers=CONTENT_TYPE)
    assert problem(answer) == (422, [("body", "form_invalid")])
    assert (bucket.keys(), bucket.unfinished()) == ([], [])
    copies = (tmp_path / "workspace" / "data" / "uploads").rglob("*")
    assert [path for path in copies if path.is_file()] == []


async def test_a_direct_upload_goes_straight_into_the_bucket(
    remote: Gateway, bucket: S3Server
) -> None:
    red = bytes_of("red")
    made = await announced(remote, len(red), content_type="image/png")
    assert made["upload"]["url"].startswith(bucket.endpoint)
    assert bucket.secret_access_key not in str(made)
    assert (await complete(remote, made)).status_code == 409
    assert (await put(remote, made, red)).status_code == 200
    card = (await complete(remote, made)).json()
    assert (card["status"], card["sha256"]) == ("completed", hashlib.sha256(red).hexdigest())
    # its address is good for a day: what is put there later is not what is served
    assert (await put(remote, made, red[::-1])).status_code == 200
    assert (await remote.stranger.get(card["media_url"])).content == red
    assert (await complete(remote, made)).json() == card
    assert (await remote.http.delete(f"/api/media/{made['card_id']}")).status_code == 204
    assert folder(bucket, made) == []
    wrong = await announced(remote, 5)
    await put(remote, wrong, b"hello")
    assert problem(await complete(remote, wrong)) == (422, [("file", "wrong_kind")])
    assert folder(bucket, wrong) == []


async def test_a_bucket_takes_exactly_as_many_bytes_as_were_announced(
    remote: Gateway, bucket: S3Server
) -> None:
    red = bytes_of("red")
    made = await announced(remote, len(red))
    for other in (red + b"x", red[:-1], red * 1000):
        assert (await put(remote, made, other)).status_code == 403
    assert bucket.keys() == []
    assert (await put(remote, made, red)).status_code == 200
    assert (await complete(remote, made)).status_code == 200
