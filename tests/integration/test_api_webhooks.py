"""`webhook_url` on a call, and `/api/webhooks`, over HTTP."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.security.signing import load_secret, webhook_secret
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway
from tests.support.receiver import PATIENCE_S, receiver

ROOT = Path(__file__).parents[2]
SECRET = "whsec_" + "c2VjcmV0IG9mIHRoaXMgdGVzdCBhbmQgb2Ygbm8gb3RoZXI="
OLD_SECRET = "whsec_" + "b25lIHRoYXQgaXMgYWJvdXQgdG8gYmUgcmVwbGFjZWQ="


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    settings: dict[str, Any] = {
        "database_url": database_url,
        "webhook_allow_private": True,
        "webhook_secret": f"{SECRET} {OLD_SECRET}",
    }
    async with gateway(tmp_path / "workspace", **settings) as running:
        yield running


async def event_of(
    served: Gateway, job_id: str, *, of: str = "job_id", **wanted: Any
) -> dict[str, Any]:
    """The event of a job (or batch) once it is as it should be."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            page = (await served.http.get("/api/webhooks", params={of: job_id})).json()
            for event in page["items"]:
                if all(event[name] == value for name, value in wanted.items()):
                    return dict(event)
            await asyncio.sleep(0.02)


async def test_the_receiver_is_sent_the_job_as_its_own_route_shows_it(served: Gateway) -> None:
    async with receiver() as there:
        answer = await served.http.post("/api/generate", json=SMALL | {"webhook_url": there.url})
        assert answer.status_code == 200
        job_id = answer.json()["job_id"]
        await there.until(1)
        event = await event_of(served, job_id, status="delivered")
    said = there.received[0].verified(SECRET)
    assert said == there.received[0].verified(OLD_SECRET)
    assert said["type"] == event["type"] == "job.completed"
    assert said["data"].keys() == (await served.http.get(f"/api/jobs/{job_id}")).json().keys()
    assert said["data"]["job_id"] == event["job_id"] == job_id
    assert said["timestamp"] == said["data"]["finished_at"]
    picture = said["data"]["result"]["files"][0]["link"]
    assert (await served.stranger.get(picture)).status_code == 200
    assert there.received[0].id == event["id"]


async def test_a_receiver_that_does_not_answer_delays_no_job(served: Gateway) -> None:
    async with receiver(held=True) as there:
        for seed in range(3):
            body = SMALL | {"webhook_url": there.url, "seed": seed}
            answer = await served.http.post("/api/generate", json=body)
            assert answer.status_code == 200
        assert there.answered == 0


@pytest.mark.parametrize("ends_as", ["failed", "cancelled"])
async def test_other_endings_are_told_too(tmp_path: Path, ends_as: str) -> None:
    backend = ScriptedBackend()
    settings: dict[str, Any] = {"webhook_allow_private": True}
    async with (
        receiver() as there,
        gateway(tmp_path / "workspace", backend, **settings) as served,
    ):
        body = SMALL | {"webhook_url": there.url}
        if ends_as == "failed":
            body |= {"deadline_s": 0.01}
        job_id = (await served.http.post("/api/generate/async", json=body)).json()["job_id"]
        if ends_as == "cancelled":
            await served.http.post(f"/api/jobs/{job_id}/cancel")
        await there.until(1)
        own = webhook_secret(load_secret(served.context.settings.data / "secret"))
    said = there.received[0].verified(own)
    assert (said["type"], said["data"]["status"]) == (f"job.{ends_as}", ends_as)


async def test_a_batch_tells_once_when_its_last_job_has_ended(served: Gateway) -> None:
    async with receiver() as there:
        body = {"tool": "generate", "items": [SMALL, SMALL], "webhook_url": there.url}
        taken = await served.http.post("/api/batches", json=body)
        batch_id = taken.json()["batch_id"]
        await there.until(1)
        event = await event_of(served, batch_id, of="batch_id", status="delivered")
    said = there.received[0].verified(SECRET)
    assert (said["type"], event["type"]) == ("batch.completed", "batch.completed")
    assert said["data"]["batch_id"] == event["batch_id"] == batch_id
    assert said["data"]["counts"]["completed"] == said["data"]["total"] == 2
    assert said["data"]["finished_at"] == said["timestamp"]
    assert len(there.received) == 1


async def test_a_call_without_a_webhook_leaves_no_event(served: Gateway) -> None:
    assert (await served.http.post("/api/generate", json=SMALL)).status_code == 200
    assert (await served.http.get("/api/webhooks")).json() == {"items": [], "next_cursor": None}


async def test_an_event_shows_its_deliveries_and_is_delivered_again(served: Gateway) -> None:
    async with receiver(status=500) as there:
        body = SMALL | {"webhook_url": there.url}
        job_id = (await served.http.post("/api/generate", json=body)).json()["job_id"]
        event = await event_of(served, job_id, attempts=1)
        assert event["status"] == "pending"
        assert event["next_attempt_at"] > event["created_at"]
        there.status = 200
        again = await served.http.post(f"/api/webhooks/{event['id'].upper()}/redeliver")
        assert again.status_code == 202
        assert again.headers["location"] == f"/api/webhooks/{event['id']}"
        assert again.json()["status"] == "pending"
        done = await event_of(served, job_id, status="delivered")
    assert done["next_attempt_at"] is None
    shown = (await served.http.get(f"/api/webhooks/{event['id']}")).json()
    assert [(d["n"], d["status_code"]) for d in shown["deliveries"]] == [(1, 500), (2, 200)]
    assert {came.id for came in there.received} == {event["id"]}


async def test_the_list_has_pages_and_filters(served: Gateway) -> None:
    async with receiver() as there:
        for _ in range(3):
            body = SMALL | {"webhook_url": there.url}
            job_id = (await served.http.post("/api/generate", json=body)).json()["job_id"]
            await event_of(served, job_id, status="delivered")
    first = (await served.http.get("/api/webhooks?limit=2&status=delivered")).json()
    rest = (await served.http.get(f"/api/webhooks?limit=2&cursor={first['next_cursor']}")).json()
    assert [len(page["items"]) for page in (first, rest)] == [2, 1]
    assert rest["next_cursor"] is None
    assert first["items"][0]["job_id"] == job_id
    none = await served.http.get("/api/webhooks", params={"batch_id": str(uuid.uuid4())})
    assert none.json()["items"] == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=lost", "status"),
        ("job_id=x", "job_id"),
        ("cursor=x", "cursor"),
        ("limit=0", "limit"),
    ],
)
async def test_a_wrong_filter_is_named(served: Gateway, query: str, field: str) -> None:
    answer = await served.http.get(f"/api/webhooks?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


async def test_unknown_events_are_a_404_and_strangers_a_401(served: Gateway) -> None:
    for event_id in (str(uuid.uuid4()), "nonsense"):
        for method, tail in (("GET", ""), ("POST", "/redeliver")):
            path = f"/api/webhooks/{event_id}{tail}"
            answer = await served.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
            assert (await served.stranger.request(method, path)).status_code == 401


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost:1/", "ftp://example.com/", "https://a:b@example.com/"],
)
async def test_an_address_webhooks_never_go_to_is_refused_with_the_call(
    tmp_path: Path, url: str
) -> None:
    async with gateway(tmp_path / "workspace") as served:
        answer = await served.http.post("/api/generate/async", json=SMALL | {"webhook_url": url})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "webhook_url"
        assert (await served.http.get("/api/jobs")).json()["items"] == []


def shown_secret(workspace: Path, **env: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "gateway", "webhook-secret"],
        env={**inherited, "PYTHONPATH": str(ROOT), "WORKSPACE": str(workspace), **env},
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_shows_the_installations_own_secret(tmp_path: Path) -> None:
    shown = shown_secret(tmp_path).stdout.strip()
    assert shown == webhook_secret(load_secret(tmp_path / "data" / "secret"))
    assert shown == shown_secret(tmp_path).stdout.strip()


def test_the_command_line_shows_the_secrets_that_are_set(tmp_path: Path) -> None:
    shown = shown_secret(tmp_path, WEBHOOK_SECRET=f"{SECRET} {OLD_SECRET}")
    assert shown.stdout.split() == [SECRET, OLD_SECRET]


@pytest.mark.parametrize("wrong", ["plain", "whsec_c2hvcnQ=", f"{SECRET} other", "whsec_!!!!"])
def test_a_secret_that_is_none_is_refused_without_being_repeated(
    tmp_path: Path, wrong: str
) -> None:
    refused = shown_secret(tmp_path, WEBHOOK_SECRET=wrong)
    assert refused.returncode == 1
    assert "WEBHOOK_SECRET: " in refused.stderr
    assert "whsec_ and 24 to 64 bytes" in refused.stderr
    assert wrong not in refused.stderr
