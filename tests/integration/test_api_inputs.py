"""Calls that name files, through the app, over real jobs, database and storage."""

import asyncio
import base64
import functools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from gateway import runtime
from gateway.job import Job
from gateway.media import ImageUrl
from gateway.tools import TOOLS
from tests.support.databases import rows
from tests.support.gateway import PNG, SMALL, Gateway, ScriptedBackend, gateway
from tests.support.reading import INVERT, InvertParams, data_uri, picture, workflows

MEBIBYTE = 1024 * 1024
PATIENCE_S = 120


@pytest.fixture
def with_invert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The catalogue has a tool that reads files; the folder of all workflows."""
    monkeypatch.setattr(runtime, "TOOLS", (*TOOLS, INVERT))
    return workflows(tmp_path / "workflows")


@pytest.fixture
async def served(tmp_path: Path, with_invert: Path, database_url: str) -> AsyncIterator[Gateway]:
    env: dict[str, Any] = {"database_url": database_url, "workflows_path": with_invert}
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


def at_rest(
    tmp_path: Path, with_invert: Path, **env: object
) -> AbstractAsyncContextManager[Gateway]:
    """A gateway none of whose runs is begun."""
    backend = ScriptedBackend(capacity=0)
    env = {"workflows_path": with_invert, **env}
    return gateway(tmp_path / "workspace", backend, **env)


async def post(served: Gateway, **params: Any) -> httpx.Response:
    return await served.http.post("/api/invert", json=params)


async def done(served: Gateway, **params: Any) -> dict[str, Any]:
    answer = await post(served, **params)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def wrong(served: Gateway, **params: Any) -> list[tuple[str, str]]:
    answer = await post(served, **params)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return [(error["field"], error["code"]) for error in answer.json()["errors"]]


async def job_of(served: Gateway, result: dict[str, Any]) -> Job:
    job = await served.context.jobs.get(result["job_id"])
    assert job is not None
    return job


async def kept(served: Gateway) -> set[str]:
    """Keys of the files that came inside calls."""
    pages = served.context.storage.pages()
    return {f.key async for page in pages for f in page if f.key.startswith("inputs/")}


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def test_a_picture_inside_the_call_travels_on_as_an_address(
    served: Gateway, database_url: str
) -> None:
    data = picture()
    made = await done(served, image_url=data_uri(data), scale=2)
    job = await job_of(served, made)
    assert job.params == {"scale": 2.0}
    assert job.call.params == {"scale": 2.0}
    (source,) = job.call.inputs["image_url"]
    assert await kept(served) == {source.key}
    for row in rows(database_url, "SELECT params, call FROM jobs"):
        assert "base64" not in str(row)
    (order,) = served.backend.orders
    (file,) = order.inputs["image_url"]
    assert (file.media_type, file.sha256) == ("image/png", source.sha256)
    assert file.url.startswith("http://127.0.0.1:8000/api/slots/inputs/")
    answer = await served.stranger.get(path_of(file.url))
    assert (answer.status_code, answer.content) == (200, data)
    assert "image_url" not in made["invert_params"]

    assert (await served.http.delete(f"/api/jobs/{made['job_id']}")).status_code == 204
    assert await kept(served) == set()


@pytest.mark.parametrize("field", ["image_url", "link", "r2_path"])
async def test_every_output_can_be_the_next_tools_input(served: Gateway, field: str) -> None:
    first = (await served.http.post("/api/generate", json=SMALL)).json()
    made = await done(served, image_url=first.get(field) or first["files"][0][field])
    (source,) = (await job_of(served, made)).call.inputs["image_url"]
    assert (source.sha256, source.stored) == (first["files"][0]["sha256"], False)
    (file,) = served.backend.orders[-1].inputs["image_url"]
    assert (await served.stranger.get(path_of(file.url))).content == PNG
    # the next one after that, and the job that only read it leaves it alone
    await done(served, image_url=made["image_url"])
    assert (await served.http.delete(f"/api/jobs/{made['job_id']}")).status_code == 204
    assert (await served.http.get(first["image_url"])).status_code == 200


async def test_what_is_wrong_with_an_address_is_said_with_its_field(served: Gateway) -> None:
    first = (await served.http.post("/api/generate", json=SMALL)).json()
    assert await wrong(served, image_url="/api/images/none.png") == [("image_url", "unknown_file")]
    assert await wrong(served, image_url="http://10.1.2.3/a.png") == [("image_url", "url_refused")]
    assert await wrong(served, image_url="gs://bucket/a.png") == [("image_url", "no_such_store")]
    assert await wrong(served, image_url="a.png") == [("image_url", "not_a_file_address")]
    assert await wrong(served) == [("image_url", "missing")]
    assert await wrong(served, image_url=data_uri(b"<html>")) == [("image_url", "wrong_kind")]
    both = {"image_url": first["image_url"], "mask_url": first["image_url"]}
    assert await wrong(served, **both) == [("mask_url", "not_taken")]
    assert await kept(served) == set()
    assert (await served.http.delete(f"/api/jobs/{first['job_id']}")).status_code == 204
    gone = await wrong(served, image_url=first["image_url"])
    assert gone == [("image_url", "unknown_file")]


class LooseParams(InvertParams):
    """Its picture may be left out, as far as the tool is concerned."""

    image_url: ImageUrl | None = None


async def test_a_file_the_variant_needs_is_asked_for(
    tmp_path: Path, with_invert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = replace(INVERT, params=LooseParams)
    monkeypatch.setattr(runtime, "TOOLS", (*TOOLS, loose))
    async with at_rest(tmp_path, with_invert) as served:
        assert await wrong(served) == [("image_url", "missing")]
        assert await wrong(served, image_url=None) == [("image_url", "missing")]


async def test_the_same_call_again_by_its_key_stores_nothing_more(served: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"image_url": data_uri(picture())}
    first = await served.http.post("/api/invert", json=body, headers=headers)
    again = await served.http.post("/api/invert", json=body, headers=headers)
    assert first.json()["job_id"] == again.json()["job_id"]
    assert len(await kept(served)) == 1
    other = {"image_url": data_uri(picture("blue"))}
    refused = await served.http.post("/api/invert", json=other, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await kept(served)) == 1


async def test_of_batches_with_one_key_only_the_one_that_is_taken_keeps_files(
    served: Gateway,
) -> None:
    body = {"tool": "invert", "items": [{"image_url": data_uri(picture())}] * 2}
    call = functools.partial(
        served.http.post, "/api/batches", json=body, headers={"Idempotency-Key": "b"}
    )
    answers = await asyncio.gather(*(call() for _ in range(4)))
    assert len({answer.json()["batch_id"] for answer in answers}) == 1
    assert len(await kept(served)) == 2


async def test_a_batch_names_the_item_and_reads_files_too(served: Gateway) -> None:
    sent = data_uri(picture())
    bad = {"tool": "invert", "items": [{"image_url": sent}, {"image_url": "/api/images/x"}]}
    refused = await served.http.post("/api/batches", json=bad)
    assert [e["field"] for e in refused.json()["errors"]] == ["items.1.image_url"]
    assert await kept(served) == set()
    good = {"tool": "invert", "items": [{"image_url": sent}] * 2}
    taken = (await served.http.post("/api/batches", json=good)).json()
    batch = await served.http.get(taken["status_url"], params={"wait": PATIENCE_S})
    assert [item["status"] for item in batch.json()["items"]] == ["completed"] * 2
    assert all(order.inputs["image_url"] for order in served.backend.orders)


async def test_the_catalogue_and_the_documentation_show_such_a_tool(served: Gateway) -> None:
    tools = (await served.http.get("/api/tools")).json()["items"]
    assert "invert" in {tool["name"] for tool in tools}
    document = (await served.http.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["InvertParams"]["properties"]["image_url"]
    assert schema["format"] == "uri-reference"
    assert schema["examples"]


async def test_a_call_may_be_as_long_as_its_files_allow(tmp_path: Path, with_invert: Path) -> None:
    async with at_rest(tmp_path, with_invert, max_image_size_mb=2) as served:
        largest = picture() + bytes(2 * MEBIBYTE - len(picture()))
        for path in ("/api/invert", "/api/invert/async"):
            body = {"image_url": data_uri(largest)}
            headers = {"Prefer": "wait=0"}
            taken = await served.http.post(path, json=body, headers=headers)
            assert taken.status_code == 202, taken.text
        assert await wrong(served, image_url=data_uri(largest + b"x")) == [
            ("image_url", "too_large")
        ]
        long = {"image_url": data_uri(bytes(20 * MEBIBYTE))}
        assert (await served.http.post("/api/invert", json=long)).status_code == 413
        other = {"prompt": "x" * 1_000_001}
        assert (await served.http.post("/api/generate", json=other)).status_code == 413


async def test_a_call_that_is_not_taken_leaves_no_file(tmp_path: Path, with_invert: Path) -> None:
    async with at_rest(tmp_path, with_invert, max_queued_jobs_per_caller=1) as served:
        body = {"image_url": data_uri(picture())}
        taken = await served.http.post("/api/invert/async", json=body)
        assert taken.status_code == 202
        before = await kept(served)
        assert len(before) == 1
        refused = await served.http.post("/api/invert/async", json=body)
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full"), refused.text
        assert await kept(served) == before
        batch = {"tool": "invert", "items": [body]}
        refused = await served.http.post("/api/batches", json=batch)
        assert (refused.status_code, refused.json()["code"]) == (429, "queue_full"), refused.text
        assert await kept(served) == before


async def test_pictures_whose_size_is_known_and_does_not_fit_are_refused_at_once(
    tmp_path: Path,
) -> None:
    async with gateway(tmp_path / "workspace") as served:

        async def errors(path: str, **params: Any) -> list[tuple[str, str]]:
            answer = await served.http.post(path, json=params)
            assert answer.status_code == 422, answer.text
            return [(error["field"], error["code"]) for error in answer.json()["errors"]]

        made = (await served.http.post("/api/generate", json=SMALL)).json()
        small, mug = data_uri(picture(size=(32, 16))), data_uri(picture())
        wrong = [("mask_url", "wrong_size")]
        for scene, mask in ((made["image_url"], small), (small, made["image_url"])):
            params = {"scene_url": scene, "mask_url": mask, "reference_url": mug}
            assert await errors("/api/inpaint", **params) == wrong
        long = data_uri(picture(size=(90, 10)))
        assert await errors("/api/control", image_url=long, prompt="x") == [
            ("image_url", "wrong_size")
        ]
        large = data_uri(picture(size=(2600, 2000)))
        assert await errors("/api/upscale", image_url=large, scale=4) == [
            ("image_url", "too_large")
        ]
        assert await kept(served) == set()
        fitting = {"scene_url": small, "mask_url": small, "reference_url": mug}
        assert (await served.http.post("/api/inpaint", json=fitting)).status_code == 200


async def test_pictures_by_mode_may_have_their_lines_broken(tmp_path: Path) -> None:
    async with gateway(tmp_path / "workspace", max_image_size_mb=1) as served:
        data = picture() + bytes(MEBIBYTE - len(picture()))
        text = base64.encodebytes(data).decode()
        faces = {"mode": "portrait", "prompt": "x", "face_images": [text]}
        answer = await served.http.post("/generate", json=faces)
        assert answer.status_code == 200, answer.text
        faces["face_images"] = [base64.encodebytes(data + b"x").decode()]
        answer = await served.http.post("/generate", json=faces)
        assert [(e["field"], e["code"]) for e in answer.json()["errors"]] == [
            ("face_images.0", "too_large")
        ]


async def test_many_calls_with_files_at_once_each_keep_their_own(served: Gateway) -> None:
    colours = ["red", "green", "blue", "white", "black"]
    answers = await asyncio.gather(
        *(done(served, image_url=data_uri(picture(colour))) for colour in colours)
    )
    hashes = set[str | None]()
    for answer in answers:
        (source,) = (await job_of(served, answer)).call.inputs["image_url"]
        hashes.add(source.sha256)
    assert len(hashes) == len(await kept(served)) == len(colours)
