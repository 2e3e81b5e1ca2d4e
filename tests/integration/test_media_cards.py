"""Cards read, replaced and deleted: what is deleted is in no table and no folder any more."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import func, select

from gateway.db.engine import Database
from gateway.db.tables import artifacts, cards, job_events, jobs, runs, thumbnails, uploads
from gpu_server.protocol import Failure
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.library import bytes_of, files_in
from tests.support.receiver import PATIENCE_S

CARD = {"card_id": "a/b ?#ä", "prompt": "a mug", "media_type": "image"}
PATH = f"/api/media/{quote(CARD['card_id'], safe='')}"
NOW = {"Prefer": "respond-async"}
OF_A_CARD = (artifacts, cards, job_events, jobs, runs, thumbnails, uploads)


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose jobs end when the test opens the gate."""
    async with gateway(tmp_path / "workspace", ScriptedBackend()) as running:
        yield running


async def generate(
    served: Gateway, headers: dict[str, str] | None = None, **changes: Any
) -> httpx.Response:
    return await served.http.post("/api/media/generate", data=CARD | changes, headers=headers)


async def card(served: Gateway) -> dict[str, Any]:
    answer = await served.http.get(PATH)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def rows_left(served: Gateway) -> dict[str, int]:
    """How many rows each table has, of those that have any."""
    db: Database = served.context.jobs._db
    found: dict[str, int] = {}
    for table in OF_A_CARD:
        query = select(func.count().label("n")).select_from(table)
        row = await db.read(lambda reading, query=query: reading.row(query))
        assert row is not None
        found[table.name] = row["n"]
    return {name: n for name, n in found.items() if n}


async def test_a_card_is_read_under_its_id_while_it_is_made_and_after(held: Gateway) -> None:
    answer = await generate(held, NOW)
    assert answer.headers["location"] == PATH
    await held.backend.begun.wait()
    pending = await card(held)
    assert pending["status"] in {"pending", "processing"}
    assert (pending["media_url"], pending["error"]) == (None, None)
    held.backend.gate.set()
    await held.http.get(f"/api/jobs/{pending['job_id']}", params={"wait": PATIENCE_S})
    done = await card(held)
    assert (done["card_id"], done["status"]) == (CARD["card_id"], "completed")
    assert (await held.stranger.get(done["media_url"])).status_code == 200


async def test_a_card_shows_the_newer_media(served: Gateway) -> None:
    first = (await generate(served)).json()
    second = (await generate(served, prompt="a cup")).json()
    assert (await card(served))["job_id"] == second["job_id"]
    # the first call's answer was lost, and it is sent again
    assert (await served.http.get(f"/api/jobs/{first['job_id']}")).status_code == 200


async def test_a_repeated_call_takes_no_newer_media_back(served: Gateway) -> None:
    await generate(served, {"Idempotency-Key": "k"})
    second = (await generate(served, prompt="a cup")).json()
    await generate(served, {"Idempotency-Key": "k"})
    assert (await card(served))["job_id"] == second["job_id"]


async def test_a_failed_card_says_why(served: Gateway) -> None:
    served.backend.fails = Failure(kind="fatal", code="node_failed", message="No.")
    assert (await generate(served)).status_code == 502
    failed = await card(served)
    assert (failed["status"], failed["media_url"]) == ("failed", None)
    assert failed["error"]["code"] == "node_failed"


async def test_a_deleted_card_leaves_nothing(served: Gateway) -> None:
    made = (await generate(served)).json()
    assert files_in(served)
    assert (await served.http.delete(PATH)).status_code == 204
    assert await rows_left(served) == {}
    assert files_in(served) == set()
    assert (await served.http.get(PATH)).status_code == 404
    assert (await served.http.delete(PATH)).status_code == 404
    assert (await served.stranger.get(made["media_url"])).status_code == 404


async def test_a_card_under_way_is_cancelled_and_deleted(held: Gateway) -> None:
    made = (await generate(held, NOW)).json()
    await held.backend.begun.wait()
    assert (await held.http.delete(PATH)).status_code == 204
    assert held.backend.cancelled == [made["job_id"]]
    assert await rows_left(held) == {}
    assert files_in(held) == set()


async def test_a_card_goes_with_its_job(served: Gateway) -> None:
    made = (await generate(served)).json()
    assert (await served.http.delete(f"/api/jobs/{made['job_id']}")).status_code == 204
    assert await rows_left(served) == {}
    assert (await served.http.get(PATH)).status_code == 404


async def test_deleting_a_card_leaves_the_pictures_it_was_made_of(served: Gateway) -> None:
    files = {"file": ("mug.png", bytes_of("red", side=300))}
    upload = (await served.http.post("/api/media/upload", files=files)).json()
    before = files_in(served)
    made = await generate(served, input_files=f'["{upload["media_url"]}"]')
    assert made.status_code == 200, made.text
    assert (await served.http.delete(PATH)).status_code == 204
    assert files_in(served) == before
    assert (await served.stranger.get(upload["media_url"])).status_code == 200


async def test_a_deleted_upload_leaves_nothing(served: Gateway) -> None:
    files = {"file": ("mug.png", bytes_of("red", side=300))}
    for path, field in (("/api/media/upload", "card_id"), ("/api/files", "id")):
        made = (await served.http.post(path, files=files)).json()
        assert await rows_left(served) != {}
        routes = {"card_id": "/api/media", "id": "/api/files"}
        answer = await served.http.delete(f"{routes[field]}/{made[field]}")
        assert answer.status_code == 204
        assert await rows_left(served) == {}
        assert files_in(served) == set()


async def test_an_id_that_an_upload_has_shows_what_was_generated_under_it(
    served: Gateway,
) -> None:
    files = {"file": ("mug.png", bytes_of("red", side=300))}
    upload = (await served.http.post("/api/media/upload", files=files)).json()
    path = f"/api/media/{upload['card_id']}"
    made = (await generate(served, card_id=upload["card_id"])).json()
    assert (await served.http.get(path)).json()["job_id"] == made["job_id"]
    # what is shown goes: first what was generated, then the upload
    assert (await served.http.delete(path)).status_code == 204
    assert (await served.http.get(path)).json()["media_url"].startswith("/api/uploads/")
    assert (await served.stranger.get(upload["media_url"])).status_code == 200
    assert (await served.http.delete(path)).status_code == 204
    assert (await served.http.get(path)).status_code == 404
    assert await rows_left(served) == {}
    assert files_in(served) == set()


async def test_one_deletes_while_another_generates(served: Gateway) -> None:
    await generate(served)
    answers = await asyncio.gather(
        served.http.delete(PATH), generate(served), served.http.delete(PATH), generate(served)
    )
    assert {answer.status_code for answer in answers} <= {200, 204, 404, 409}
    # whatever came of it, nothing is half there
    found = await served.http.get(PATH)
    assert found.status_code in {200, 404}


async def test_nobody_reads_or_deletes_a_card_without_a_key(served: Gateway) -> None:
    await generate(served)
    assert (await served.stranger.get(PATH)).status_code == 401
    assert (await served.stranger.delete(PATH)).status_code == 401
    assert (await served.http.get(PATH)).status_code == 200
