"""Files out of a bucket: sent on to the store's own address, or through with what may go wrong."""

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway.api.serving import FOR_EVER
from gateway.db.uploads import Upload
from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, form, problem
from tests.support.s3 import S3Server, moto, rclone
from tests.support.uploads import uploaded

RED = bytes_of("red", side=300)
_numbers = itertools.count()


@pytest.fixture(scope="module")
def checking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Checks signatures."""
    with rclone(tmp_path_factory.mktemp("s3") / "buckets") as running:
        yield running


@pytest.fixture(scope="module")
def exact() -> Iterator[S3Server]:
    """Answers with the headers an address asks for."""
    with moto() as running:
        yield running


def settings(server: S3Server, **more: Any) -> dict[str, Any]:
    env = {name.lower(): value for name, value in server.env().items()}
    return {**env, "project_name": f"test-{next(_numbers)}", **more}


@pytest.fixture(params=["checking", "exact"])
async def sending_on(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    server: S3Server = request.getfixturevalue(request.param)
    env = settings(server, serve_files="redirect")
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


async def kept(served: Gateway, data: bytes = RED, name: str = "a mug") -> dict[str, Any]:
    answer = await uploaded(served.http, "/api/files", data, name)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def fetched(address: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.get(address, headers=headers)


async def test_a_redirect_leads_to_the_bytes(sending_on: Gateway) -> None:
    file = await kept(sending_on)
    answer = await sending_on.http.get(file["url"])
    assert (answer.status_code, answer.content) == (307, b"")
    assert (await fetched(answer.headers["location"])).content == RED
    part = await fetched(answer.headers["location"], Range="bytes=1-3")
    assert part.content == RED[1:4]
    # an address that is kept is a good one still
    age = int(answer.headers["cache-control"].rpartition("max-age=")[2])
    (life,) = parse_qs(urlsplit(answer.headers["location"]).query)["X-Amz-Expires"]
    assert age < int(life)
    assert "immutable" not in answer.headers["cache-control"]


async def test_head_and_conditions_are_answered_here(sending_on: Gateway) -> None:
    file = await kept(sending_on)
    head = await sending_on.http.head(file["url"])
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(RED)))
    assert head.headers["cache-control"] == FOR_EVER
    etag = {"If-None-Match": head.headers["etag"]}
    assert (await sending_on.http.get(file["url"], headers=etag)).status_code == 304


async def test_thumbnails_are_sent_on_as_well(sending_on: Gateway) -> None:
    file = await kept(sending_on)
    answer = await sending_on.http.get(file["url"], params={"w": 64})
    assert answer.status_code == 307
    small = await fetched(answer.headers["location"])
    assert (small.headers["content-type"], small.content[8:12]) == ("image/webp", b"WEBP")


async def test_a_stranger_is_sent_nowhere(sending_on: Gateway) -> None:
    file = await kept(sending_on)
    assert (await sending_on.stranger.get(file["url"])).status_code == 401
    assert (await sending_on.stranger.get(file["link"])).status_code == 307


async def test_the_store_answers_with_the_name_that_was_asked_for(
    exact: S3Server, tmp_path: Path
) -> None:
    env = settings(exact, serve_files="redirect")
    async with gateway(tmp_path / "workspace", **env) as served:
        file = await kept(served, name="Кружка")
        for query, expected in (
            ("", "inline; filename=\"{}\"; filename*=UTF-8''%D0%9A%D1%80"),
            ("?download=1", "attachment; filename=\"{}\"; filename*=UTF-8''%D0%9A%D1%80"),
            ("?download=a%22b%0d%0aX:%20y", 'attachment; filename="a_bX_ y.png"'),
        ):
            answer = await served.http.get(file["url"] + query)
            got = await fetched(answer.headers["location"])
            named = file["url"].rpartition("/")[2]
            assert got.headers["content-disposition"].startswith(expected.format(named))
            assert got.headers["content-type"] == "image/png"


async def test_a_picture_that_is_replaced_is_not_kept_under_its_old_address(
    exact: S3Server, tmp_path: Path
) -> None:
    env = settings(exact, serve_files="redirect")
    style = {"id": "own-clay", "name": "Own clay", "prompt": "{prompt} of clay"}
    async with gateway(tmp_path / "workspace", **env) as served:
        await form(served, "POST", "/api/styles", style, RED)
        answer = await served.http.get("/api/styles/own-clay/image")
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-cache")


async def test_a_disk_is_never_somewhere_else(tmp_path: Path) -> None:
    async with gateway(tmp_path / "workspace", serve_files="redirect") as served:
        file = await kept(served)
        assert (await served.http.get(file["url"])).content == RED


async def test_a_store_that_is_down_is_503_and_comes_back(
    checking: S3Server, tmp_path: Path
) -> None:
    async with gateway(tmp_path / "workspace", **settings(checking)) as served:
        file = await kept(served)
        assert (await served.http.get(file["url"])).content == RED
        checking.stop()
        try:
            for method in ("GET", "HEAD"):
                answer = await served.http.request(method, file["url"])
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            answer = await served.http.get(file["url"], params={"w": 64})
            assert problem(answer) == (503, [])
            assert checking.endpoint not in answer.text
            etag = {"If-None-Match": f'"{file["sha256"]}"'}
            assert (await served.http.get(file["url"], headers=etag)).status_code == 304
        finally:
            checking.start()
        assert (await served.http.get(file["url"])).content == RED
        assert (await served.http.get(file["url"], params={"w": 64})).status_code == 200


async def test_a_file_gone_from_the_bucket_is_404(checking: S3Server, tmp_path: Path) -> None:
    async with gateway(tmp_path / "workspace", **settings(checking)) as served:
        file = await kept(served)
        found = await served.context.intake.rows.file(file["url"].rpartition("/")[2])
        assert isinstance(found, Upload)
        await served.context.storage.delete(found.key)
        for method in ("GET", "HEAD"):
            assert (await served.http.request(method, file["url"])).status_code == 404
