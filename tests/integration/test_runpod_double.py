"""The double of RunPod's API does what RunPod documents: what tests of the backend stand on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.receiver import receiver
from tests.support.runpod_double import WORKER_KEY, Fault, Runpod, runpod

Json = dict[str, Any]


@pytest.fixture
async def double() -> AsyncIterator[Runpod]:
    async with runpod(webhook_again_s=0.01) as double:
        double.poll_s = 0.2
        yield double


@pytest.fixture
async def caller(double: Runpod) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=double.url, headers=double.headers, trust_env=False, timeout=30
    ) as caller:
        yield caller


@pytest.fixture
async def worker(double: Runpod) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=double.url, headers={"authorization": WORKER_KEY}, trust_env=False, timeout=30
    ) as worker:
        yield worker


async def submitted(caller: httpx.AsyncClient, **more: Any) -> str:
    answer = await caller.post("/run", json={"input": {"a": 1}, **more})
    assert answer.json()["status"] == "IN_QUEUE", answer.text
    return str(answer.json()["id"])


async def told(caller: httpx.AsyncClient, job: str) -> Json:
    return (await caller.get(f"/status/{job}")).json()


async def done(worker: httpx.AsyncClient, job: str, **said: Any) -> int:
    return (await worker.post(f"/job-done/w1/{job}?gpu=x&isStream=false", json=said)).status_code


async def test_a_job_goes_through_its_states(
    caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    job = await submitted(caller)
    assert await told(caller, job) == {"id": job, "status": "IN_QUEUE"}
    assert (await worker.get("/job-take/w1?gpu=x")).json() == {
        "id": job,
        "input": {"a": 1},
        "webhook": None,
    }
    assert await done(worker, job, status="IN_PROGRESS", output={"seq": 1}) == 200
    running = await told(caller, job)
    assert (running["status"], running["output"]) == ("IN_PROGRESS", {"seq": 1})
    assert await done(worker, job, output={"b": 2}) == 200
    ended = await told(caller, job)
    assert (ended["status"], ended["output"], ended["workerId"]) == ("COMPLETED", {"b": 2}, "w1")
    assert ended.keys() >= {"delayTime", "executionTime"}


async def test_an_error_fails_the_job_and_a_retry_queues_it_again(
    caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    job = await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    await done(worker, job, error="it broke", output={"code": "x"})
    assert (await told(caller, job))["error"] == "it broke"
    assert (await caller.post(f"/retry/{job}")).json() == {"id": job, "status": "IN_QUEUE"}
    assert "error" not in await told(caller, job)
    assert (await caller.post(f"/retry/{job}")).status_code == 400


async def test_cancelling_a_running_job_tells_its_worker_to_stop(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    job = await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    assert (await worker.get("/job-stop/w1?gpu=x")).status_code == 204
    assert (await caller.post(f"/cancel/{job}")).json() == {"id": job, "status": "CANCELLED"}
    assert (await worker.get("/job-stop/w1?gpu=x")).json() == {"jobsToStop": [job]}
    await done(worker, job, output="too late")
    assert "output" not in await told(caller, job)
    assert double.endpoint.jobs[job].late == 1


async def test_a_purge_removes_what_waits_and_nothing_else(
    caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    running, waiting = await submitted(caller), await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    purged = await caller.post("/purge-queue")
    assert purged.json() == {"removed": 1, "status": "completed"}
    assert (await caller.get(f"/status/{waiting}")).status_code == 404
    assert (await told(caller, running))["status"] == "IN_PROGRESS"


async def test_without_the_key_nothing_is_told(double: Runpod, caller: httpx.AsyncClient) -> None:
    for headers in ({}, {"authorization": "Bearer other"}):
        async with httpx.AsyncClient(trust_env=False, headers=headers) as stranger:
            assert (await stranger.get(f"{double.url}/health")).status_code == 401
    assert (await caller.get("http://127.0.0.1/v2/other/health".replace(
        "http://127.0.0.1/v2", double.base_url))).status_code == 404  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"input": "text"}',
        b'{"input": {}, "policy": {"ttl": 1}}',
        b'{"input": {"a": "' + b"x" * 10_000_000 + b'"}}',
    ],
    ids=["no JSON", "no object", "no input", "text", "policy", "too large"],
)
async def test_a_call_that_does_not_fit_is_400(caller: httpx.AsyncClient, content: bytes) -> None:
    answer = await caller.post("/run", content=content)
    assert answer.status_code == 400


async def test_more_calls_than_the_rate_are_429(double: Runpod, caller: httpx.AsyncClient) -> None:
    double.rates["run"] = 2
    codes = [(await caller.post("/run", json={"input": {}})).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


async def test_a_result_is_forgotten_after_half_an_hour(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    job = await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    await done(worker, job, output=1)
    double.endpoint.advance(1790)
    assert (await told(caller, job))["status"] == "COMPLETED"
    double.endpoint.advance(20)
    assert (await caller.get(f"/status/{job}")).status_code == 404


async def test_ttl_deletes_and_the_execution_timeout_ends(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    first = await submitted(caller, policy={"executionTimeout": 5000})
    second = await submitted(caller, policy={"ttl": 10_000})
    await worker.get("/job-take/w1?gpu=x")
    double.endpoint.advance(6)
    assert (await told(caller, first))["status"] == "TIMED_OUT"
    assert (await worker.get("/job-stop/w1?gpu=x")).json() == {"jobsToStop": [first]}
    double.endpoint.advance(6)
    assert (await caller.get(f"/status/{second}")).status_code == 404


async def test_a_silent_worker_times_its_job_out(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    job = await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    double.endpoint.workers["w1"].last -= double.endpoint.lost_after_s + 1
    assert (await told(caller, job))["status"] == "TIMED_OUT"


async def test_a_result_too_large_is_refused_and_nothing_is_left_of_it(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    double.endpoint.result_bytes = 1000
    job = await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    assert await done(worker, job, output="x" * 2000) == 400
    ended = await told(caller, job)
    assert ended["status"] == "COMPLETED"
    assert "output" not in ended


async def test_a_webhook_is_posted_until_it_is_answered_with_200_at_most_three_times(
    double: Runpod, caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    async with receiver(status=500) as hook:
        job = await submitted(caller, webhook=f"{hook.url}/secret")
        await worker.get("/job-take/w1?gpu=x")
        await done(worker, job, output=1)
        await hook.until(3)
        assert {each.path for each in hook.received} == {"/hooks/secret"}
        assert b'"COMPLETED"' in hook.received[0].body
        hook.status = 200
        again = await submitted(caller, webhook=hook.url)
        await caller.post(f"/cancel/{again}")
        await hook.until(4)
        await double.endpoint.posted()
    assert double.endpoint.jobs[again].attempts == [200]
    assert double.endpoint.jobs[job].attempts == [500, 500, 500]


async def test_faults_are_as_scripted_and_may_come_after_the_deed(
    double: Runpod, caller: httpx.AsyncClient
) -> None:
    double.faults = [
        Fault(op="run", status=500),
        Fault(op="run", status=502, after=True),
        Fault(op="run", status=None, after=True),
    ]
    assert (await caller.post("/run", json={"input": {}})).status_code == 500
    assert not double.endpoint.jobs
    assert (await caller.post("/run", json={"input": {}})).status_code == 502
    with pytest.raises(httpx.RemoteProtocolError):
        await caller.post("/run", json={"input": {}})
    assert len(double.endpoint.jobs) == 2
    await submitted(caller)


async def test_health_counts_jobs_and_workers(
    caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    await submitted(caller)
    await submitted(caller)
    await worker.get("/job-take/w1?gpu=x")
    health = (await caller.get("/health")).json()
    assert (health["jobs"]["inProgress"], health["jobs"]["inQueue"]) == (1, 1)
    assert (health["workers"]["running"], health["workers"]["idle"]) == (1, 0)


async def test_runsync_waits_and_then_answers_what_there_is(
    caller: httpx.AsyncClient, worker: httpx.AsyncClient
) -> None:
    waiting = asyncio.create_task(caller.post("/runsync?wait=20000", json={"input": {}}))
    job = (await worker.get("/job-take/w1?gpu=x")).json()["id"]
    await done(worker, job, output=1)
    assert (await waiting).json()["status"] == "COMPLETED"
    early = await caller.post("/runsync?wait=1000", json={"input": {}})
    assert early.json()["status"] == "IN_QUEUE"
