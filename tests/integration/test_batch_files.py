"""`/api/batches/{id}/files.zip`: every file of a batch in one stream."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.asgi import serving
from tests.support.gateway import KEY, PNG, SMALL, Gateway, ScriptedBackend, gateway

PATIENCE_S = 120


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


async def batch_of(served: Gateway, count: int, **wait: Any) -> dict[str, Any]:
    body = {"tool": "generate", "items": [SMALL | {"num_images": 2}] * count}
    taken = (await served.http.post("/api/batches", json=body)).json()
    return dict((await served.http.get(taken["status_url"], params=wait)).json())


def opened(answer: httpx.Response) -> zipfile.ZipFile:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    made = zipfile.ZipFile(io.BytesIO(answer.content))
    assert made.testzip() is None
    return made


def names(batch: dict[str, Any]) -> list[str]:
    return [
        f"{item['n']}/{link.partition('?')[0].rpartition('/')[2]}"
        for item in batch["items"]
        for link in item["links"]
    ]


async def test_the_archive_holds_every_file_under_the_number_of_its_item(served: Gateway) -> None:
    batch = await batch_of(served, 60, wait=PATIENCE_S)
    answer = await served.http.get(f"/api/batches/{batch['batch_id']}/files.zip")
    made = opened(answer)
    assert made.namelist() == names(batch)
    assert len(made.namelist()) == 120
    assert {made.read(name) for name in made.namelist()} == {PNG}
    disposition = answer.headers["content-disposition"]
    assert disposition == f'attachment; filename="batch-{batch["batch_id"]}.zip"'


async def test_the_signed_address_opens_it_without_the_key(served: Gateway) -> None:
    batch = await batch_of(served, 1, wait=PATIENCE_S)
    assert opened(await served.stranger.get(batch["files_url"])).namelist() == names(batch)
    bare = batch["files_url"].partition("?")[0]
    assert (await served.stranger.get(bare)).status_code == 401


async def test_an_unfinished_batch_gives_the_files_there_are(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        batch = await batch_of(held, 2)
        assert opened(await held.http.get(batch["files_url"])).namelist() == []
        held.backend.gate.set()
        done = (await held.http.get(batch["status_url"], params={"wait": PATIENCE_S})).json()
        assert opened(await held.http.get(batch["files_url"])).namelist() == names(done)


async def test_a_file_removed_meanwhile_is_left_out(served: Gateway) -> None:
    batch = await batch_of(served, 2, wait=PATIENCE_S)
    job = await served.context.jobs.get(batch["items"][0]["job_id"])
    assert job is not None
    await served.context.storage.delete(job.artifacts[0].key)
    made = opened(await served.http.get(batch["files_url"]))
    assert made.namelist() == names(batch)[1:]


async def test_a_client_that_leaves_stops_the_reading(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = await batch_of(served, 1, wait=PATIENCE_S)
    stopped = asyncio.Event()

    async def endless(key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        assert (bool(key), start, end) == (True, 0, None)
        try:
            while True:
                yield PNG * 200
                await asyncio.sleep(0)
        finally:
            stopped.set()

    monkeypatch.setattr(served.context.storage, "read", endless)
    async with (
        serving(served.app) as url,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as http,
    ):
        async with http.stream("GET", batch["files_url"]) as answer:
            assert answer.status_code == 200
            await anext(answer.aiter_bytes())
        async with asyncio.timeout(PATIENCE_S):
            await stopped.wait()
