"""Priority, deadlines, limits and estimates, through the app over real jobs and rows."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.jobs import eta, limits
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway

OPTIONS = {"priority": 7, "deadline_s": 3000, "webhook_url": "https://example.com/hook"}
EXECUTION_S = 0.5
"""What the scripted backend says that each job took."""


@pytest.fixture(autouse=True)
def nothing_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eta, "FRESH_S", 0)
    monkeypatch.setattr(eta, "SHARE_OF_TIME", math.inf)
    monkeypatch.setattr(limits, "FRESH_S", 0)
    monkeypatch.setattr(limits, "SHARE_OF_TIME", math.inf)
    monkeypatch.setattr(limits, "FAR_FROM_FULL_S", 0)


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway with room for one job, which ends when the test opens the gate."""
    async with gateway(tmp_path, ScriptedBackend(capacity=1)) as running:
        yield running


async def submit(served: Gateway, **changes: Any) -> Any:
    return await served.http.post("/api/generate/async", json=SMALL | changes)


async def measured(served: Gateway, jobs: int = 3) -> None:
    """Let some jobs complete, so that estimates are known, and close the gate again."""
    served.backend.gate.set()
    for _ in range(jobs):
        answer = await served.http.post("/api/generate", json=SMALL, headers={"Prefer": "wait=60"})
        assert answer.status_code == 200
    served.backend.gate.clear()


def problem(answer: Any) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    if "retry_after" in body:
        assert answer.headers["retry-after"] == str(body["retry_after"])
    return body


async def test_a_job_shows_the_options_of_its_call(held: Gateway) -> None:
    job_id = (await submit(held, **OPTIONS)).json()["job_id"]
    job = (await held.http.get(f"/api/generate/{job_id}")).json()
    assert (job["priority"], job["webhook_url"]) == (7, "https://example.com/hook")
    assert job["batch_id"] is None
    stored = await held.context.jobs.get(job_id)
    assert stored is not None
    assert (stored.deadline_at - stored.created_at).total_seconds() == 3000
    assert "priority" not in stored.params


async def test_a_call_by_mode_takes_the_same_options(held: Gateway) -> None:
    call = {"mode": "free", "prompt": "a mug", "extra_params": {"width": 256, "height": 256}}
    answer = await held.http.post("/generate", json=call | OPTIONS)
    assert answer.status_code == 200
    job = (await held.http.get(f"/api/jobs/{answer.json()['task_id']}")).json()
    assert (job["priority"], job["webhook_url"]) == (7, "https://example.com/hook")
    wrong = await held.http.post("/generate", json=call | {"deadline_s": 0})
    assert problem(wrong)["errors"][0]["field"] == "deadline_s"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 101),
        ("priority", "high"),
        ("priority", 0.5),
        ("deadline_s", 0),
        ("deadline_s", 7 * 86_400 + 1),
        ("webhook_url", "ftp://example.com/x"),
        ("webhook_url", "https://user:secret@example.com/x"),
        ("webhook_url", "example.com"),
        ("webhook_url", "http://[::1"),
        ("webhook_url", "http://xn--/"),
        ("webhook_url", "https://exa mple.com"),
    ],
)
@pytest.mark.parametrize("path", ["/api/generate", "/api/generate/async"])
async def test_an_option_out_of_bounds_is_refused_by_name(
    held: Gateway, path: str, field: str, value: object
) -> None:
    answer = await held.http.post(path, json=SMALL | {field: value})
    assert answer.status_code == 422
    assert [error["field"] for error in problem(answer)["errors"]] == [field]


async def test_another_option_is_another_request(held: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    for body, status in ((SMALL, 202), (SMALL, 202), (SMALL | {"priority": 1}, 422)):
        answer = await held.http.post("/api/generate/async", json=body, headers=headers)
        assert answer.status_code == status
    assert problem(answer)["code"] == "idempotency_key_reused"


async def test_a_higher_priority_goes_first(held: Gateway) -> None:
    await submit(held)
    await asyncio.wait_for(held.backend.begun.wait(), 30)
    ids = [(await submit(held, priority=priority)).json()["job_id"] for priority in (-10, 0, 5)]
    held.backend.gate.set()
    for job_id in ids:
        await held.http.get(f"/api/jobs/{job_id}?wait=60")
    assert [order.run_id for order in held.backend.orders][1:] == ids[::-1]


async def test_a_full_queue_is_a_429_that_says_when_to_come_again(tmp_path: Path) -> None:
    backend = ScriptedBackend(capacity=1)
    async with gateway(tmp_path, backend, max_queued_jobs_per_caller=2) as served:
        await measured(served)
        backend.begun.clear()
        await submit(served)
        await asyncio.wait_for(backend.begun.wait(), 30)
        waiting = [(await submit(served)).json()["job_id"] for _ in range(2)]

        refused = await submit(served)

        assert refused.status_code == 429
        body = problem(refused)
        assert (body["code"], body["retry_after"]) == ("queue_full", 1)
        assert "at most 2" in body["detail"]
        assert (await served.http.get("/api/jobs")).json()["items"][0]["job_id"] == waiting[-1]
        await served.http.post(f"/api/jobs/{waiting[0]}/cancel")
        assert (await submit(served)).status_code == 202


async def test_an_idempotent_repetition_is_answered_though_the_queue_is_full(
    tmp_path: Path,
) -> None:
    backend = ScriptedBackend(capacity=0)
    async with gateway(tmp_path, backend, max_queued_jobs=1) as served:
        headers = {"Idempotency-Key": "k"}
        first = await served.http.post("/api/generate/async", json=SMALL, headers=headers)
        again = await served.http.post("/api/generate/async", json=SMALL, headers=headers)
        assert (first.status_code, again.json()) == (202, first.json())
        refused = await submit(served)
        assert problem(refused)["retry_after"] == limits.RETRY_S


async def test_a_job_that_cannot_be_done_in_time_is_refused_at_once(held: Gateway) -> None:
    await measured(held)
    for _ in range(5):
        await submit(held)

    late = await submit(held, deadline_s=1)

    assert late.status_code == 503
    body = problem(late)
    assert body["code"] == "deadline_unreachable"
    assert body["retry_after"] >= 1
    assert (await submit(held, deadline_s=60)).status_code == 202
    # above everything that waits it only waits for what runs
    assert (await submit(held, deadline_s=1.2, priority=100)).status_code == 202


async def test_a_job_that_takes_longer_than_its_deadline_by_itself_is_a_422(held: Gateway) -> None:
    await measured(held)
    answer = await submit(held, deadline_s=0.2)
    assert answer.status_code == 422
    [error] = problem(answer)["errors"]
    assert error["field"] == "deadline_s"
    assert "takes about 1 s" in error["message"]


async def test_too_few_measured_jobs_refuse_none(held: Gateway) -> None:
    await measured(held, jobs=2)
    assert (await submit(held, deadline_s=0.2)).status_code == 202


async def test_an_estimate_is_told_at_submit_while_waiting_and_in_events(held: Gateway) -> None:
    assert (await submit(held)).json()["eta_seconds"] is None
    await measured(held)
    held.backend.begun.clear()
    await submit(held)
    await asyncio.wait_for(held.backend.begun.wait(), 30)

    twice_as_many = SMALL["num_inference_steps"] * 2
    told = (await submit(held, num_inference_steps=twice_as_many)).json()

    job_id = told["job_id"]
    assert told["eta_seconds"] > 2 * EXECUTION_S
    shown = (await held.http.get(f"/api/jobs/{job_id}")).json()
    assert 2 * EXECUTION_S < shown["eta_seconds"] <= 4 * EXECUTION_S
    held.backend.gate.set()
    ended = (await held.http.get(f"/api/jobs/{job_id}?wait=60")).json()
    assert (ended["status"], ended["eta_seconds"]) == ("completed", None)
    events = (await held.http.get(f"/api/jobs/{job_id}/events")).text
    data = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert 2 * EXECUTION_S < data[0]["eta_seconds"] <= 4 * EXECUTION_S
    assert data[1]["eta_seconds"] == 2 * EXECUTION_S
    assert "eta_seconds" not in data[-1]


async def test_a_tools_time_out_can_be_set(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    async with gateway(tmp_path, backend, tool_timeouts=(("generate", 7.0),)) as served:
        await submit(served)
        await asyncio.wait_for(backend.begun.wait(), 30)
        assert backend.orders[0].call.timeout_s == 7
