"""`?w=` over HTTP, from a disk and from a bucket: made once, served as any file, gone with it."""

import asyncio
import hashlib
import io
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway.db import Database
from gateway.thumbnails.pool import MediaPool
from gateway.thumbnails.store import Thumbnails, thumbnails_of
from tests.support import media
from tests.support.gateway import SMALL, Gateway, gateway
from tests.support.library import bytes_of, form, problem
from tests.support.s3 import S3Server, rclone
from tests.support.uploads import mesh, uploaded

_numbers = itertools.count()
IMMUTABLE = "private, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture(params=["disk", "bucket"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    env: dict[str, Any] = {}
    if request.param == "bucket":
        bucket: S3Server = request.getfixturevalue("server")
        env = {name.lower(): value for name, value in bucket.env().items()}
        # one bucket for all: each gateway sees its own part alone
        env["project_name"] = f"test-{next(_numbers)}"
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size each thumbnail was made at, one entry a process."""
    sizes: list[int] = []
    made = MediaPool.look_and_thumbnail

    async def counted(self: MediaPool, path: Path, target: Path, side: int, **more: Any) -> Any:
        sizes.append(side)
        return await made(self, path, target, side, **more)

    monkeypatch.setattr(MediaPool, "look_and_thumbnail", counted)
    return sizes


async def kept(served: Gateway, data: bytes, name: str = "a picture") -> str:
    """The path of an uploaded file."""
    answer = await uploaded(served.http, "/api/files", data, name)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"])


async def stored(served: Gateway) -> set[str]:
    """The first folder of every file in storage."""
    pages = served.context.storage.pages()
    return {file.key.partition("/")[0] async for page in pages for file in page}


def shown(answer: httpx.Response) -> Image.Image:
    assert answer.headers["content-type"] == "image/webp"
    return Image.open(io.BytesIO(answer.content))


async def test_a_thumbnail_is_a_file_as_any_other(served: Gateway) -> None:
    path = await kept(served, media.turned(6))
    answer = await served.http.get(path, params={"w": 100})
    assert answer.status_code == 200, answer.text
    assert shown(answer).size == (128, 64)
    assert media.corners(shown(answer)) == ("red", "green", "blue", "grey")
    etag = f'"{hashlib.sha256(answer.content).hexdigest()}"'
    assert answer.headers["etag"] == etag != (await served.http.head(path)).headers["etag"]
    assert answer.headers["content-length"] == str(len(answer.content))
    assert answer.headers["cache-control"] == IMMUTABLE
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == 'inline; filename="a picture.webp"'
    head = await served.http.head(path, params={"w": 128})
    assert (head.status_code, head.content) == (200, b"")
    assert {**head.headers, "x-request-id": ""} == {**answer.headers, "x-request-id": ""}
    part = await served.http.get(path, params={"w": 128}, headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, answer.content[4:10])
    same = await served.http.get(path, params={"w": 128}, headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")


async def test_a_video_is_its_picture_and_can_be_saved_as_one(
    served: Gateway, tmp_path: Path
) -> None:
    path = await kept(served, media.video(tmp_path / "a.mp4", frames=3).read_bytes(), "a film.mp4")
    answer = await served.http.get(path, params={"w": 64, "download": "1"})
    assert shown(answer).size == (64, 32)
    assert answer.headers["content-disposition"] == 'attachment; filename="a film.webp"'


async def test_a_link_opens_its_thumbnail_without_a_key(served: Gateway) -> None:
    link = (await uploaded(served.http, "/api/files", bytes_of("red"))).json()["link"]
    assert (await served.stranger.get(f"{link}&w=64")).status_code == 200
    assert (await served.stranger.get(link.partition("?")[0], params={"w": 64})).status_code == 401


async def test_whoever_asks_at_once_waits_for_one_process(
    served: Gateway, processes: list[int]
) -> None:
    path = await kept(served, bytes_of("red", side=300))
    processes.clear()
    answers = await asyncio.gather(
        *(served.http.get(path, params={"w": 40 + n}) for n in range(20))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert processes == [64]
    await served.http.get(path, params={"w": 64})
    assert processes == [64]


async def test_who_goes_away_leaves_the_thumbnail_to_the_others(
    local: Gateway, processes: list[int]
) -> None:
    path = await kept(local, bytes_of("red", side=300))
    processes.clear()
    impatient = asyncio.create_task(local.http.get(path, params={"w": 64}))
    patient = asyncio.create_task(local.http.get(path, params={"w": 64}))
    while not processes:  # noqa: ASYNC110  # nothing says when it has begun
        await asyncio.sleep(0.001)
    impatient.cancel()
    assert (await patient).status_code == 200
    assert processes == [64]


async def test_thumbnails_go_with_their_file(served: Gateway) -> None:
    answer = await uploaded(served.http, "/api/files", bytes_of("red", side=300))
    path, card = answer.json()["url"], answer.json()["id"]
    for width in (64, 1024):
        assert (await served.http.get(path, params={"w": width})).status_code == 200
    assert await stored(served) == {"uploads", "thumbs"}
    assert (await served.http.delete(f"/api/files/{card}")).status_code == 204
    assert await stored(served) == set()
    assert (await served.http.get(path, params={"w": 64})).status_code == 404


@pytest.mark.parametrize("w", ["15", "1025", "0", "-64", "64.5", "a", "", "99999999999999999999"])
async def test_a_width_out_of_bounds_names_the_field(local: Gateway, w: str) -> None:
    path = await kept(local, bytes_of("red"))
    status, errors = problem(await local.http.get(path, params={"w": w}))
    assert (status, [field for field, _ in errors]) == (422, ["w"])


async def test_the_bounds_are_taken_and_a_small_picture_stays_small(local: Gateway) -> None:
    path = await kept(local, bytes_of("red", side=40))
    for width in (16, 1024):
        assert shown(await local.http.get(path, params={"w": width})).size == (40, 40)


async def test_a_mesh_has_no_thumbnail(local: Gateway) -> None:
    path = await kept(local, mesh())
    answer = await local.http.get(path, params={"w": 64})
    assert problem(answer) == (422, [("w", "no_thumbnail")])
    assert "only pictures and videos" in answer.json()["detail"]


async def test_a_result_that_cannot_be_read_is_refused_and_not_tried_again(
    local: Gateway, processes: list[int]
) -> None:
    job = (await local.http.post("/api/generate", json=SMALL)).json()
    for _ in range(2):
        answer = await local.http.get(job["files"][0]["url"], params={"w": 64})
        assert problem(answer) == (422, [("w", "unreadable_image")])
    assert processes == [64]


async def test_a_picture_of_a_style_has_one_and_its_next_picture_another(local: Gateway) -> None:
    style = {"id": "own-clay", "name": "Own clay", "prompt": "{prompt} of clay"}
    answer = await form(local, "POST", "/api/styles", style, bytes_of("red", side=300))
    assert answer.status_code == 201, answer.text
    path = f"/api/styles/{answer.json()['id']}"
    first = await local.http.get(f"{path}/image", params={"w": 64})
    assert shown(first).size == (64, 64)
    assert first.headers["cache-control"] == "private, no-cache"
    del style["id"]
    changed = await form(local, "PUT", path, style, bytes_of("blue", side=300))
    assert changed.status_code == 200, changed.text
    tag = {"If-None-Match": first.headers["etag"]}
    second = await local.http.get(f"{path}/image", params={"w": 64}, headers=tag)
    assert shown(second).convert("RGB").getpixel((9, 9)) != shown(first).getpixel((9, 9))
    await local.http.delete(path)
    assert await stored(local) == set()


async def test_a_thumbnail_that_was_lost_is_made_anew(local: Gateway) -> None:
    path = await kept(local, bytes_of("red", side=300))
    first = await local.http.get(path, params={"w": 64})
    thumbs = [
        file.key
        async for page in local.context.storage.pages()
        for file in page
        if file.key.startswith("thumbs/")
    ]
    for key in thumbs:
        await local.context.storage.delete(key)
    again = await local.http.get(path, params={"w": 64})
    assert (again.status_code, again.content) == (200, first.content)


async def test_a_file_that_is_gone_is_404(served: Gateway) -> None:
    path = await kept(served, bytes_of("red", side=300))
    upload = await served.context.intake.rows.file(path.rpartition("/")[2])
    assert upload is not None
    await served.context.storage.delete(upload.key)
    answer = await served.http.get(path, params={"w": 64})
    assert problem(answer) == (404, [])


async def test_when_too_many_are_waited_for_the_next_is_told_to_come_again(
    local: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = asyncio.Event()

    async def waiting(*_: Any, **__: Any) -> Any:
        await held.wait()
        raise OSError("held")

    paths = [await kept(local, bytes_of("red", side=300 + n)) for n in range(3)]
    monkeypatch.setattr(MediaPool, "look_and_thumbnail", waiting)
    monkeypatch.setattr(local.context.thumbnails, "_most_waiting", 2)
    asked = [asyncio.create_task(local.http.get(path, params={"w": 64})) for path in paths[:2]]
    while len(local.context.thumbnails._making) < 2:  # noqa: ASYNC110  # nothing says it
        await asyncio.sleep(0.001)
    answer = await local.http.get(paths[2], params={"w": 64})
    assert problem(answer) == (503, [])
    assert answer.headers["retry-after"] == "5"
    held.set()
    assert [answer.status_code for answer in await asyncio.gather(*asked)] == [503, 503]


async def test_what_a_killed_gateway_left_is_removed_and_the_work_of_others_is_not(
    tmp_path: Path,
) -> None:
    left = tmp_path / "workspace" / "data" / "thumbnails" / "left"
    async with gateway(tmp_path / "workspace") as running:
        others = [path for path in left.parent.iterdir() if path.is_dir()]
        left.mkdir()
        (left / "half.webp").write_bytes(b"half")
        async with _another(running).running():
            assert not left.exists()
            assert all(path.exists() for path in others)
    assert list(left.parent.iterdir()) == []


def _another(running: Gateway) -> Thumbnails:
    settings = running.context.settings
    return thumbnails_of(
        settings,
        db=Database(settings.database),
        storage=running.context.storage,
        signer=running.context.signer,
    )
