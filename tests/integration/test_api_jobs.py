"""`/api/jobs`: list, read, follow, cancel, delete."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.backends.base import BackendUnreachable
from tests.support.asgi import serving
from tests.support.gateway import KEY, SMALL, Gateway, ScriptedBackend, gateway


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path, ScriptedBackend()) as running:
        yield running


async def submit(served: Gateway, **changes: Any) -> str:
    answer = await served.http.post("/api/generate/async", json=SMALL | changes)
    return str(answer.json()["job_id"])


class Deaf(ScriptedBackend):
    """Has gone when it is told to forget a run."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    async def forget(self, run_id: str, reference: str) -> None:
        del run_id, reference
        self.told.set()
        raise BackendUnreachable("connection refused")


async def test_a_backend_that_is_down_leaves_one_line_in_the_log_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gateway.jobs.runner")
    backend = Deaf()
    backend.gate.set()
    async with gateway(tmp_path, backend) as served:
        job_id = await submit(served)
        await served.http.get(f"/api/jobs/{job_id}?wait=30")
        await asyncio.wait_for(backend.told.wait(), 30)
    said = [record for record in caplog.records if "forget" in record.getMessage()]
    assert "connection refused" in said[0].getMessage()
    assert not said[0].exc_info


def parsed(text: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            events.append(fields | {"data": json.loads(fields["data"])})
    return events


async def test_jobs_are_listed_newest_first_page_by_page(served: Gateway) -> None:
    ids = [await submit(served) for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await served.http.get("/api/jobs", params=params)).json()
        assert len(page["items"]) <= 2
        seen += [job["job_id"] for job in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


async def test_filters_narrow_the_list(served: Gateway) -> None:
    job_id = await submit(served)
    await served.http.get(f"/api/jobs/{job_id}?wait=30")

    async def found(**params: str) -> int:
        answer = await served.http.get("/api/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return len(answer.json()["items"])

    assert await found(status="completed", tool="generate", since="2020-01-01T00:00:00Z") == 1
    assert await found(status="failed") == 0
    assert await found(tool="upscale") == 0
    assert await found(since="2999-01-01T00:00:00Z") == 0


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=done", "status"),
        ("since=2026", "since"),
        ("since=yesterday", "since"),
        ("since=2026-01-01T00:00:00", "since"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("cursor=nonsense", "cursor"),
    ],
)
async def test_a_wrong_filter_is_named(served: Gateway, query: str, field: str) -> None:
    answer = await served.http.get(f"/api/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize("wait", ["-1", "181", "nan", "soon"])
async def test_a_wait_beyond_the_limit_is_refused(served: Gateway, wait: str) -> None:
    job_id = await submit(served)
    answer = await served.http.get(f"/api/jobs/{job_id}", params={"wait": wait})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "wait"


async def test_events_tell_every_state_and_end_with_the_last(served: Gateway) -> None:
    job_id = await submit(served)
    answer = await served.http.get(f"/api/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    events = parsed(answer.text)
    states = [e["event"] for e in events if e["event"] != "progress"]
    assert (states[0], states[-1]) == ("pending", "completed")
    assert "processing" in states
    numbers = [int(e["id"]) for e in events]
    assert numbers == sorted(numbers)
    assert all(e["data"]["at"].endswith("Z") for e in events)


async def test_events_go_on_after_the_last_one_seen(served: Gateway) -> None:
    job_id = await submit(served)
    path = f"/api/jobs/{job_id}/events"
    events = parsed((await served.http.get(path)).text)
    last_but_one = [e for e in events if e["event"] != "progress"][-2]["id"]
    rest = await served.http.get(path, headers={"Last-Event-ID": last_but_one})
    assert [e["event"] for e in parsed(rest.text)] == ["completed"]
    odd = await served.http.get(path, headers={"Last-Event-ID": "what"})
    assert parsed(odd.text)[0]["event"] == "pending"


@pytest.mark.parametrize("beyond", [str(2**31), "9" * 15, "9" * 100])
async def test_a_stream_that_has_told_all_is_not_opened_again(served: Gateway, beyond: str) -> None:
    path = f"/api/jobs/{await submit(served)}/events"
    last = parsed((await served.http.get(path)).text)[-1]["id"]
    async with (
        serving(served.app) as url,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http,
    ):
        for number in (last, beyond):
            answer = await http.get(url + path, headers={"Last-Event-ID": number})
            assert (answer.status_code, answer.content) == (204, b"")


async def test_events_open_with_the_signed_address_of_the_job(served: Gateway) -> None:
    job = (await served.http.get(f"/api/jobs/{await submit(served)}")).json()
    signed = await served.stranger.get(job["events_url"])
    assert parsed(signed.text)[-1]["event"] == "completed"
    assert (await served.stranger.get(f"/api/jobs/{job['job_id']}/events")).status_code == 401
    for path in (f"/api/jobs/{job['job_id']}", "/api/jobs"):
        borrowed = path + "?" + job["events_url"].partition("?")[2]
        assert (await served.stranger.get(borrowed)).status_code == 403


@pytest.mark.parametrize("late", [False, True])
async def test_progress_reaches_a_follower_while_the_job_runs(held: Gateway, *, late: bool) -> None:
    job_id = await submit(held)
    while late and (await held.http.get(f"/api/jobs/{job_id}")).json()["progress"] == 0:  # noqa: ASYNC110  # a state seen over HTTP
        await asyncio.sleep(0.005)
    async with (
        serving(held.app) as url,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http,
        http.stream("GET", f"{url}/api/jobs/{job_id}/events", timeout=30) as stream,
    ):
        kinds: list[str] = []
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                kinds.append(line.removeprefix("event: "))
            elif line.startswith("data: ") and kinds[-1] == "progress":
                assert json.loads(line.removeprefix("data: "))["fraction"] == 0.5
                held.backend.gate.set()
    assert "progress" in kinds
    assert kinds[-1] == "completed"


async def test_stopping_the_process_ends_open_streams(held: Gateway) -> None:
    job_id = await submit(held)
    async with (
        serving(held.app) as url,
        httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}, trust_env=False) as http,
        http.stream("GET", f"{url}/api/jobs/{job_id}/events", timeout=30) as stream,
    ):
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: pending"
        held.context.stopping.set()
        assert "event: completed" not in [line async for line in lines]


async def test_cancelling_shows_at_once_and_reaches_the_backend(held: Gateway) -> None:
    job_id = await submit(held)
    await held.backend.begun.wait()
    job = (await held.http.post(f"/api/jobs/{job_id}/cancel")).json()
    assert (job["status"], job["result"]) == ("cancelled", None)
    again = (await held.http.post(f"/api/jobs/{job_id}/cancel")).json()
    assert again["status"] == "cancelled"
    assert job["finished_at"] == again["finished_at"]


async def test_a_finished_job_is_not_changed_by_cancelling(served: Gateway) -> None:
    job_id = await submit(served)
    await served.http.get(f"/api/jobs/{job_id}?wait=30")
    assert (await served.http.post(f"/api/jobs/{job_id}/cancel")).json()["status"] == "completed"


async def test_only_an_ended_job_can_be_deleted_and_its_files_go_too(held: Gateway) -> None:
    job_id = await submit(held)
    early = await held.http.delete(f"/api/jobs/{job_id}")
    assert (early.status_code, early.json()["code"]) == (409, "conflict")
    held.backend.gate.set()
    job = (await held.http.get(f"/api/jobs/{job_id}?wait=30")).json()
    assert (await held.http.delete(f"/api/jobs/{job_id}")).status_code == 204
    assert (await held.http.get(f"/api/jobs/{job_id}")).status_code == 404
    assert (await held.http.get(job["result"]["image_url"])).status_code == 404
    assert (await held.http.delete(f"/api/jobs/{job_id}")).status_code == 404


async def test_every_route_of_an_unknown_job_is_a_404(served: Gateway) -> None:
    for job_id in ("01890000-0000-7000-8000-000000000000", "nonsense"):
        for method, tail in (
            ("GET", ""),
            ("GET", "/events"),
            ("POST", "/cancel"),
            ("DELETE", ""),
        ):
            answer = await served.http.request(method, f"/api/jobs/{job_id}{tail}")
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_job_is_found_whatever_the_case_of_its_id(served: Gateway) -> None:
    job_id = await submit(served)
    assert (await served.http.get(f"/api/jobs/{job_id.upper()}")).json()["job_id"] == job_id
