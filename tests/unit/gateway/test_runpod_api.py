"""Reading what RunPod answers: what is not understood is passed over, and nothing is guessed."""

from typing import Any

import httpx
import pytest

from gateway.backends.base import BackendUnreachable
from gateway.backends.runpod_api import Counts, JobTold, RunpodApi

URL = "http://127.0.0.1:1/v2/ep0test"


@pytest.mark.parametrize(
    ("told", "jobs", "workers"),
    [
        ({}, {}, {}),
        ({"jobs": None, "workers": []}, {}, {}),
        ({"jobs": {"inQueue": 1}, "workers": {"idle": None}}, {"inQueue": 1}, {}),
        ({"workers": {"idle": 1, "byGpu": {"A": 1}, "share": 0.5}}, {}, {"idle": 1}),
        ({"jobs": {"inQueue": -5, "inProgress": "soon"}}, {"inQueue": 0}, {}),
        ({"jobs": {"inQueue": "2"}, "version": 3}, {"inQueue": 2}, {}),
    ],
)
def test_counts_that_are_none_are_passed_over(told: Any, jobs: Any, workers: Any) -> None:
    counts = Counts.model_validate(told)
    assert (counts.jobs, counts.workers) == (jobs, workers)


@pytest.mark.parametrize(
    ("jobs", "unfinished"),
    [({"inQueue": 2, "inProgress": 1}, 3), ({"inQueue": 2}, None), ({"inProgress": None}, None)],
)
def test_jobs_nobody_counted_are_not_none(jobs: Any, unfinished: int | None) -> None:
    assert Counts.model_validate({"jobs": jobs}).unfinished == unfinished


@pytest.mark.parametrize(
    ("took", "ms"),
    [(1500, 1500), (0.5, 0.5), ("soon", None), (None, None), ({}, None), (True, None)],
    ids=str,
)
def test_a_duration_that_is_no_number_is_passed_over(took: Any, ms: float | None) -> None:
    told = JobTold.model_validate({"status": "TIMED_OUT", "executionTime": took})
    assert told.execution_ms == ms


def api_answering(answers: list[httpx.Response], asked: list[bytes]) -> RunpodApi:
    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return answers.pop(0)

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return RunpodApi("runpod:ep0test", URL, "key", http, on_trouble=lambda _: None)


async def test_a_jobs_id_stays_one_part_of_an_address() -> None:
    asked: list[bytes] = []
    api = api_answering([httpx.Response(404)] * 4, asked)
    assert await api.status("../x?y=1#z\n") is None
    await api.cancel("a/b")
    await api.stream("é")
    assert asked == [
        b"/v2/ep0test/status/..%2Fx%3Fy%3D1%23z%0A",
        b"/v2/ep0test/cancel/a%2Fb",
        b"/v2/ep0test/status/a%2Fb",
        b"/v2/ep0test/stream/%C3%A9",
    ]


@pytest.mark.parametrize("told", ["", " ", "..", "a/b", "x?y", "a\nb", "a\n", "é", "x" * 101, 7])
async def test_a_submit_whose_answer_names_no_usable_job_is_in_doubt(told: Any) -> None:
    api = api_answering([httpx.Response(200, json={"id": told, "status": "IN_QUEUE"})], [])
    with pytest.raises(BackendUnreachable, match="is not known"):
        await api.run(b"{}")


@pytest.mark.parametrize("told", ["a", "8a919258-b3ae-47d6-a4db-49fc58284610-u1", "x_Y-9" * 20])
async def test_a_submit_is_known_by_the_job_it_made(told: str) -> None:
    api = api_answering([httpx.Response(200, json={"id": told})], [])
    assert await api.run(b"{}") == told
