"""`/api/batches`: many jobs in one call, counted, paged, cancelled, deleted."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.db import AlreadyThere
from gateway.db.batches import BatchRows, NewBatch
from gateway.job import NewJob, new_job_id
from gateway.submission import Origin
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway
from tests.support.receiver import PATIENCE_S, receiver

Json = dict[str, Any]
TINY: Json = {"prompt": "a mug", "width": 256, "height": 256, "num_inference_steps": 1}


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    env: Json = {"database_url": database_url, "webhook_allow_private": True}
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    """Nothing ends before `backend.gate` is set."""
    backend = ScriptedBackend()
    async with gateway(tmp_path / "workspace", backend, database_url=database_url) as running:
        yield running


async def submit(served: Gateway, items: list[Json], **fields: Any) -> httpx.Response:
    key = fields.pop("key", None)
    headers = {"Idempotency-Key": key} if key else {}
    body = {"tool": "generate", "items": items, **fields}
    return await served.http.post("/api/batches", json=body, headers=headers)


async def taken(served: Gateway, count: int, **fields: Any) -> str:
    answer = await submit(served, [TINY] * count, **fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["batch_id"])


async def look(served: Gateway, batch_id: str, **query: Any) -> Json:
    answer = await served.http.get(f"/api/batches/{batch_id}", params=query)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def ended(served: Gateway, batch_id: str) -> Json:
    batch = await look(served, batch_id, wait=PATIENCE_S)
    assert batch["finished_at"] is not None
    return batch


async def job_ids(served: Gateway) -> list[str]:
    page = (await served.http.get("/api/jobs", params={"limit": 100})).json()
    return [job["job_id"] for job in page["items"]]


async def new_job(served: Gateway, **changes: Any) -> NewJob:
    tool = served.context.catalogue.tools[0]
    origin = Origin(caller="default", route="/api/batches", body={})
    made = await served.context.submission.prepare(tool, tool.params.model_validate(TINY), origin)
    return replace(made, **changes)


async def test_every_item_becomes_a_job_and_the_batch_ends_with_the_last(served: Gateway) -> None:
    items = [SMALL | {"prompt": f"mug {n}"} for n in range(5)]
    answer = await submit(served, items)
    assert answer.status_code == 202
    said = answer.json()
    assert said["total"] == 5
    assert answer.headers["location"] == said["status_url"] == f"/api/batches/{said['batch_id']}"

    batch = await ended(served, said["batch_id"])
    assert batch["counts"] == {
        "pending": 0,
        "processing": 0,
        "completed": 5,
        "failed": 0,
        "cancelled": 0,
        "deleted": 0,
    }
    assert (batch["total"], batch["progress"], batch["next_cursor"]) == (5, 1, None)
    assert [item["n"] for item in batch["items"]] == list(range(5))
    for item in batch["items"]:
        job = (await served.http.get(item["job_url"])).json()
        assert job["result"]["prompt"] == f"mug {item['n']}"
        assert (await served.stranger.get(item["links"][0])).status_code == 200


async def test_the_jobs_wait_below_interactive_ones_and_each_draws_its_own_seed(
    held: Gateway,
) -> None:
    batch = await look(held, await taken(held, 4))
    jobs = [await held.context.jobs.get(item["job_id"]) for item in batch["items"]]
    known = [job for job in jobs if job is not None]
    assert [job.priority for job in known] == [-10] * 4
    assert len({job.call.params["seed"] for job in known}) == 4
    assert all((job.deadline_at - job.created_at).total_seconds() >= 24 * 3600 for job in known)
    assert batch["counts"]["pending"] + batch["counts"]["processing"] == 4
    assert batch["finished_at"] is None


async def test_priority_and_deadline_can_be_said_for_all(held: Gateway) -> None:
    batch = await look(held, await taken(held, 2, priority=7, deadline_s=500))
    for item in batch["items"]:
        job = await held.context.jobs.get(item["job_id"])
        assert job is not None
        assert job.priority == 7
        assert (job.deadline_at - job.created_at).total_seconds() == 500


async def test_one_wrong_item_is_named_and_nothing_is_written(served: Gateway) -> None:
    items = [dict(TINY) for _ in range(6)]
    items[3]["width"] = 7
    items[5]["colour"] = "red"
    answer = await submit(served, items)
    assert answer.status_code == 422
    fields = [error["field"] for error in answer.json()["errors"]]
    assert fields == ["items.3.width", "items.5.colour"]
    assert await job_ids(served) == []
    assert (await served.http.get("/api/batches")).json()["items"] == []


async def test_what_only_the_installation_can_refuse_is_named_by_item_too(served: Gateway) -> None:
    bad = TINY | {"loras": [{"name": "nowhere.safetensors"}]}
    answer = await submit(served, [dict(TINY), bad])
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["items.1.loras.0.name"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tool": "generate", "items": []}, "items"),
        ({"tool": "generate"}, "items"),
        ({"tool": "juggle", "items": [TINY]}, "tool"),
        ({"tool": "generate", "items": [TINY, 5]}, "items.1"),
        ({"tool": "generate", "items": [1]}, "items.0"),
        ({"tool": "generate", "items": [TINY], "priority": 1000}, "priority"),
        ({"tool": "generate", "items": [TINY], "webhook_url": "ftp://x"}, "webhook_url"),
        ({"tool": "generate", "items": [TINY | {"priority": 1}]}, "items.0.priority"),
    ],
)
async def test_a_body_that_is_no_batch_names_its_field(
    served: Gateway, body: Json, field: str
) -> None:
    answer = await served.http.post("/api/batches", json=body)
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_the_number_of_items_is_bounded_by_a_setting(tmp_path: Path) -> None:
    async with gateway(tmp_path, batch_max_items=3) as served:
        assert (await submit(served, [TINY] * 3)).status_code == 202
        answer = await submit(served, [TINY] * 4)
    assert answer.status_code == 422
    assert "at most 3" in answer.json()["detail"]


async def test_more_items_than_jobs_may_wait_are_no_batch_to_send_again(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend(), max_queued_jobs_per_caller=3) as held:
        answer = await submit(held, [TINY] * 4)
        assert (await submit(held, [TINY] * 3)).status_code == 202
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == "items"
    assert "at most 3" in error["message"]


async def test_a_thousand_items_are_taken_in_one_call(tmp_path: Path) -> None:
    async with gateway(tmp_path, ScriptedBackend()) as held:
        batch = await look(held, await taken(held, 1000))
        assert batch["total"] == 1000
        assert batch["counts"]["pending"] + batch["counts"]["processing"] == 1000
        assert len(batch["items"]) == 100


async def test_a_body_may_be_larger_than_that_of_a_single_call_and_is_bounded(
    served: Gateway,
) -> None:
    long = [TINY | {"prompt": "m" * 4000}] * 300
    assert (await submit(served, long)).status_code == 202
    answer = await served.http.post(
        "/api/batches", content=b" " * 9_000_000, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


async def test_the_same_key_finds_the_same_batch_and_refuses_another(served: Gateway) -> None:
    first = await taken(served, 2, key="k1")
    assert await taken(served, 2, key="k1") == first
    answer = await submit(served, [TINY] * 3, key="k1")
    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency_key_reused"
    assert len(await job_ids(served)) == 2


async def test_calls_with_one_key_at_once_make_one_batch(served: Gateway) -> None:
    answers = await asyncio.gather(*(submit(served, [TINY] * 2, key="k2") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["batch_id"] for answer in answers}) == 1
    assert len(await job_ids(served)) == 2


async def test_a_batch_is_written_whole_or_not_at_all(held: Gateway) -> None:
    rows = BatchRows(held.context.jobs._db)
    batch_id = new_job_id()
    jobs = [await new_job(held, batch_id=batch_id, batch_n=n) for n in range(3)]
    # the last one's id is taken
    jobs[2] = replace(jobs[2], id=jobs[0].id)
    new = NewBatch(id=batch_id, caller="default", tool="generate", jobs=tuple(jobs))
    with pytest.raises(AlreadyThere):
        await rows.insert(new, owners=dict.fromkeys([j.id for j in jobs]), now=datetime.now(UTC))
    assert await rows.get(batch_id) is None
    assert await job_ids(held) == []


async def test_cancelling_a_batch_ends_every_job_that_has_not_ended(held: Gateway) -> None:
    batch_id = await taken(held, 12)
    await held.backend.begun.wait()
    cancelled = (await held.http.post(f"/api/batches/{batch_id}/cancel")).json()
    assert cancelled["counts"]["cancelled"] == 12
    assert cancelled["finished_at"] is not None
    assert cancelled["progress"] == 1
    again = (await held.http.post(f"/api/batches/{batch_id}/cancel")).json()
    assert again["counts"] == cancelled["counts"]


async def test_waiting_for_a_batch_ends_when_time_is_up(held: Gateway) -> None:
    batch_id = await taken(held, 2)
    assert (await look(held, batch_id, wait=0.1))["finished_at"] is None
    waiting = asyncio.create_task(look(held, batch_id, wait=PATIENCE_S))
    held.backend.gate.set()
    assert (await waiting)["counts"]["completed"] == 2


async def test_deleting_a_batch_takes_its_jobs_and_files(served: Gateway, tmp_path: Path) -> None:
    batch = await ended(served, await taken(served, 3))
    other = await served.http.post("/api/generate", json=SMALL)
    link = batch["items"][0]["links"][0]
    assert (await served.stranger.get(link)).status_code == 200

    gone = await served.http.delete(f"/api/batches/{batch['batch_id']}")
    assert gone.status_code == 204
    assert (await served.http.get(f"/api/batches/{batch['batch_id']}")).status_code == 404
    assert (await served.stranger.get(link)).status_code == 404
    assert await job_ids(served) == [other.json()["job_id"]]
    kept = [p for p in (tmp_path / "workspace/data/files").rglob("*.png") if p.is_file()]
    assert len(kept) == 1
    assert (await served.http.delete(f"/api/batches/{batch['batch_id']}")).status_code == 404


async def test_a_batch_under_way_is_not_deleted(held: Gateway) -> None:
    batch_id = await taken(held, 2)
    answer = await held.http.delete(f"/api/batches/{batch_id}")
    assert answer.status_code == 409
    assert len(await job_ids(held)) == 2


async def test_a_job_deleted_by_itself_is_counted_as_deleted(served: Gateway) -> None:
    batch = await ended(served, await taken(served, 3))
    await served.http.delete(batch["items"][1]["job_url"])
    after = await look(served, batch["batch_id"])
    assert after["total"] == 3
    assert (after["counts"]["completed"], after["counts"]["deleted"]) == (2, 1)
    assert [item["n"] for item in after["items"]] == [0, 2]
    assert (after["progress"], after["finished_at"]) == (1, batch["finished_at"])


async def test_items_and_batches_are_paged(served: Gateway) -> None:
    first = (await ended(served, await taken(served, 5)))["batch_id"]
    second = (await ended(served, await taken(served, 1)))["batch_id"]
    seen: list[int] = []
    cursor: Json = {}
    while True:
        page = await look(served, first, limit=2, **cursor)
        seen += [item["n"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [0, 1, 2, 3, 4]

    top = (await served.http.get("/api/batches", params={"limit": 1})).json()
    rest = await served.http.get("/api/batches", params={"limit": 1, "cursor": top["next_cursor"]})
    listed = [*top["items"], *rest.json()["items"]]
    assert [batch["batch_id"] for batch in listed] == [second, first]
    assert [batch["counts"]["completed"] for batch in listed] == [1, 5]
    assert rest.json()["next_cursor"] is None


@pytest.mark.parametrize("path", ["/api/batches", "/api/batches/{id}"])
async def test_a_foreign_cursor_is_refused(served: Gateway, path: str) -> None:
    batch_id = await taken(served, 1)
    answer = await served.http.get(path.format(id=batch_id), params={"cursor": "xyz"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "cursor"


@pytest.mark.parametrize("batch_id", [str(uuid.UUID(int=0)), "no-id"])
async def test_a_batch_that_is_not_there_is_not_found(served: Gateway, batch_id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("POST", "/cancel"),
        ("DELETE", ""),
        ("GET", "/files.zip"),
    ):
        answer = await served.http.request(method, f"/api/batches/{batch_id}{path}")
        assert answer.status_code == 404, (method, path)


async def test_the_receiver_is_told_of_a_batch_once_as_its_own_route_shows_it(
    served: Gateway,
) -> None:
    async with receiver() as there:
        batch_id = await taken(served, 3, webhook_url=there.url)
        batch = await ended(served, batch_id)
        await there.until(1)
        events = (await served.http.get("/api/webhooks")).json()["items"]
    assert [(event["type"], event["batch_id"]) for event in events] == [
        ("batch.completed", batch_id)
    ]
    assert batch["counts"]["completed"] == 3
