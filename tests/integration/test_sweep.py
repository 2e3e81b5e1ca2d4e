"""What is old goes, what is not stays, and a crash between leaves nothing for ever."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.db import Database
from gateway.db.sweeps import SweepRows
from gateway.jobs.sweep import Retention
from gpu_server.protocol import Failure
from tests.support.gateway import PNG, SMALL, ScriptedBackend, gateway
from tests.support.library import bytes_of, form
from tests.support.receiver import PATIENCE_S, receiver
from tests.support.sweeping import DAY, FOREVER, HOUR, MONTH, Broken, Place


@pytest.fixture
async def place(tmp_path: Path, database_url: str) -> AsyncIterator[Place]:
    env: dict[str, Any] = {"database_url": database_url, "webhook_allow_private": True}
    async with gateway(tmp_path / "workspace", **env) as served:
        yield Place(served)


async def test_jobs_older_than_their_retention_go_with_their_files(place: Place) -> None:
    jobs = [await place.made() for _ in range(5)]
    await place.sweep(MONTH, 29 * DAY)
    assert [await place.status(job["image_url"]) for job in jobs] == [200] * 5
    await place.sweep(MONTH, 31 * DAY)
    for job in jobs:
        assert await place.status(f"/api/jobs/{job['job_id']}") == 404
        assert await place.status(job["image_url"]) == 404
    assert await place.keys() == set()


async def test_files_may_go_before_their_jobs(place: Place) -> None:
    made = await place.made()
    await place.sweep(Retention(jobs=None, files=7 * DAY), 8 * DAY)
    job = (await place.http.get(f"/api/jobs/{made['job_id']}")).json()
    assert job["status"] == "completed"
    assert job["result"]["generation_params"] == made["generation_params"]
    assert job["result"]["files"] == []
    assert await place.status(job["result"]["image_url"]) == 404
    events = (await place.http.get(f"/api/jobs/{made['job_id']}/events")).text
    assert "event: files_removed" in events
    assert await place.keys() == set()
    # once is enough
    await place.sweep(Retention(jobs=None, files=7 * DAY), 9 * DAY)
    assert (await place.http.get(f"/api/jobs/{made['job_id']}/events")).text == events


async def test_nothing_goes_where_nothing_is_to_go(place: Place) -> None:
    made = await place.made()
    await place.sweep(FOREVER, 4000 * DAY)
    assert await place.status(made["image_url"]) == 200


async def test_a_job_under_way_stays_however_old(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        place = Place(held)
        taken = (await held.http.post("/api/generate/async", json=SMALL)).json()
        await held.backend.begun.wait()
        await place.sweep(MONTH, 400 * DAY)
        assert await place.status(f"/api/jobs/{taken['job_id']}") == 200


async def test_a_job_whose_receiver_has_not_heard_of_it_stays(place: Place) -> None:
    async with receiver(held=True) as there:
        made = await place.made(webhook_url=there.url)
        await place.sweep(MONTH, 31 * DAY)
        assert await place.status(f"/api/jobs/{made['job_id']}") == 200
        there.gate.set()


async def test_a_batch_goes_once_its_jobs_are_gone(place: Place) -> None:
    body = {"tool": "generate", "items": [SMALL] * 3}
    taken = (await place.http.post("/api/batches", json=body)).json()
    await place.http.get(taken["status_url"], params={"wait": PATIENCE_S})
    await place.sweep(MONTH, 29 * DAY)
    assert await place.status(taken["status_url"]) == 200
    await place.sweep(MONTH, 31 * DAY)
    assert await place.status(taken["status_url"]) == 404


async def test_idempotency_keys_are_kept_for_a_day(place: Place) -> None:
    async def send(key: str) -> str:
        headers = {"Idempotency-Key": key}
        single = await place.http.post("/api/generate", json=SMALL, headers=headers)
        body = {"tool": "generate", "items": [SMALL]}
        batch = await place.http.post("/api/batches", json=body, headers=headers)
        return f"{single.json()['job_id']} {batch.json()['batch_id']}"

    first = await send("k")
    await place.sweep(FOREVER, 23 * HOUR)
    assert await send("k") == first
    await place.sweep(FOREVER, 25 * HOUR)
    later = await send("k")
    assert set(later.split()).isdisjoint(first.split())


async def test_webhook_events_that_are_over_are_kept_for_a_month(place: Place) -> None:
    async with receiver() as there:
        await place.made(webhook_url=there.url)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if (await events(place))[0]["status"] == "delivered":
                    break
                await asyncio.sleep(0.02)
    await place.sweep(FOREVER, 29 * DAY)
    assert len(await events(place)) == 1
    await place.sweep(FOREVER, 31 * DAY)
    assert await events(place) == []


async def events(place: Place) -> list[dict[str, Any]]:
    return list((await place.http.get("/api/webhooks")).json()["items"])


async def test_files_that_are_no_result_of_an_ended_job_go(place: Place) -> None:
    made = await place.made()
    (key,) = await place.keys()
    left = await place.leave(key.rpartition("/")[0] + "/leftofafailedattempt.png")
    await place.sweep(FOREVER, timedelta(minutes=30))
    assert await place.keys() == {key, left}
    await place.sweep(FOREVER, 2 * HOUR)
    assert await place.keys() == {key}
    assert await place.status(made["image_url"]) == 200


async def test_files_of_a_failed_job_go(place: Place) -> None:
    place.served.backend.fails = Failure(kind="fatal", code="node_failed", message="No.")
    taken = (await place.http.post("/api/generate/async", json=SMALL)).json()
    await place.http.get(f"/api/jobs/{taken['job_id']}", params={"wait": PATIENCE_S})
    await place.leave(f"generated/2026/03/09/{taken['job_id']}/half.png")
    await place.sweep(FOREVER, 2 * HOUR)
    assert await place.keys() == set()


async def test_files_of_a_job_under_way_stay(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        place = Place(held)
        taken = (await held.http.post("/api/generate/async", json=SMALL)).json()
        key = await place.leave(f"generated/2026/03/09/{taken['job_id']}/first.png")
        await place.sweep(MONTH, 2 * DAY)
        assert await place.keys() == {key}


async def test_files_of_jobs_nobody_knows_go_only_with_the_age_of_all_files(place: Place) -> None:
    key = await place.leave("generated/2026/03/09/01890000-0000-7000-8000-000000000000/a.png")
    await place.sweep(FOREVER, 4000 * DAY)
    await place.sweep(MONTH, 29 * DAY)
    assert await place.keys() == {key}
    await place.sweep(MONTH, 31 * DAY)
    assert await place.keys() == set()


async def test_what_came_with_a_call_that_became_no_job_goes_soon(place: Place) -> None:
    key = await place.leave("inputs/2026/03/09/01890000-0000-7000-8000-000000000000/a.png")
    await place.sweep(FOREVER, timedelta(minutes=30))
    assert await place.keys() == {key}
    await place.sweep(FOREVER, 2 * HOUR)
    assert await place.keys() == set()


async def test_pictures_stay_as_long_as_a_template_or_a_style_has_them(place: Place) -> None:
    texts = {"name": "Mug", "prompt": "TRIGGER_WORD"}
    await form(place.served, "POST", "/api/templates", texts, bytes_of("red"))
    await form(place.served, "PUT", "/api/styles/clay", {}, bytes_of("blue"))
    kept = await place.keys()
    for prefix in ("templates", "styles"):
        await place.leave(f"{prefix}/2026/03/09/01890000-0000-7000-8000-000000000000/a.png")
    await place.sweep(MONTH, timedelta(minutes=30))
    assert len(await place.keys()) == 4
    await place.sweep(MONTH, 400 * DAY)
    assert await place.keys() == kept
    assert len(kept) == 2


async def test_what_came_with_a_call_stays_until_its_job_has_ended(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        place = Place(held)
        taken = (await held.http.post("/api/generate/async", json=SMALL)).json()
        await held.backend.begun.wait()
        key = await place.leave(f"inputs/2026/03/09/{taken['job_id']}/a.png")
        await place.sweep(MONTH, 400 * DAY)
        assert await place.keys() == {key}
        held.backend.gate.set()
        await held.http.get(f"/api/jobs/{taken['job_id']}", params={"wait": PATIENCE_S})
        await place.sweep(FOREVER, 2 * HOUR)
        assert key not in await place.keys()
        assert len(await place.keys()) == 1


async def test_a_sweep_that_breaks_off_between_row_and_file_is_made_good(place: Place) -> None:
    made = await place.made()
    root = place.storage._root
    broken = Broken(root, place.served.context.signer, "http://gateway")
    retention = Retention(jobs=None, files=7 * DAY)
    await place.sweep(retention, 8 * DAY, files=broken, storage=broken)
    # the row has said so, the file lies there still
    job = (await place.http.get(f"/api/jobs/{made['job_id']}")).json()
    assert job["result"]["files"] == []
    assert len(await place.keys()) == 1
    await place.sweep(retention, 9 * DAY)
    assert await place.keys() == set()


async def test_a_job_whose_files_cannot_be_deleted_stays_and_is_tried_again(place: Place) -> None:
    made = await place.made()
    broken = Broken(place.storage._root, place.served.context.signer, "http://gateway")
    await place.sweep(MONTH, 31 * DAY, files=broken, storage=broken)
    assert await place.status(f"/api/jobs/{made['job_id']}") == 200
    await place.sweep(MONTH, 31 * DAY)
    assert await place.status(f"/api/jobs/{made['job_id']}") == 404
    assert await place.keys() == set()


async def test_uploads_that_broke_off_are_removed(place: Place) -> None:
    half = place.storage._root / ".incoming" / "halfafile"
    half.write_bytes(PNG)
    await place.sweep(FOREVER, timedelta(minutes=30))
    assert half.exists()
    await place.sweep(FOREVER, 2 * HOUR)
    assert not half.exists()


async def test_one_gateway_sweeps_at_a_time(postgres_url: str, tmp_path: Path) -> None:
    async with gateway(tmp_path / "workspace", database_url=postgres_url) as served:
        place = Place(served)
        made = await place.made()
        other = Database(postgres_url)
        async with SweepRows(other).alone() as first:
            assert first
            await place.sweep(MONTH, 31 * DAY)
            assert await place.status(f"/api/jobs/{made['job_id']}") == 200
        await place.sweep(MONTH, 31 * DAY)
        assert await place.status(f"/api/jobs/{made['job_id']}") == 404
        await other.close()


async def test_a_slot_takes_nothing_once_its_job_has_ended(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        taken = (await held.http.post("/api/generate/async", json=SMALL)).json()
        await held.backend.begun.wait()
        slot = urlsplit(held.backend.orders[0].slots[0].url)
        path = f"{slot.path}?{slot.query}"
        assert (await held.stranger.put(path, content=PNG)).status_code == 201
        await held.http.post(f"/api/jobs/{taken['job_id']}/cancel")
        refused = await held.stranger.put(path, content=PNG)
        assert refused.status_code == 409
        assert refused.json()["code"] == "conflict"


async def test_a_file_that_is_on_its_way_when_its_job_ends_does_not_stay(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        taken = (await held.http.post("/api/generate/async", json=SMALL)).json()
        await held.backend.begun.wait()
        slot = urlsplit(held.backend.orders[0].slots[0].url)

        async def body() -> AsyncIterator[bytes]:
            yield PNG
            await held.http.post(f"/api/jobs/{taken['job_id']}/cancel")
            yield PNG

        answer = await held.stranger.put(f"{slot.path}?{slot.query}", content=body())
        assert answer.status_code == 409
        assert await Place(held).keys() == set()
