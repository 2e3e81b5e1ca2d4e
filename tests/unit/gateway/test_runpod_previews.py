"""Previews as RunPod's /stream hands them out: each once, the newest of an answer."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import httpx
import pytest
from pydantic import JsonValue

from gateway.backends import runpod_api
from gateway.backends.base import BackendUnreachable, RunLost
from gateway.backends.runpod_api import RunpodApi
from gateway.backends.runpod_previews import Looks
from gateway.backends.runpod_states import newest_preview
from gpu_server.protocol import Preview, PreviewChunk

RUN = "7a1e7a6c-6f0e-4c0e-9c0e-0123456789ab"
KEY = "rpa_no-text-may-show-this"
Looking = Callable[[list[httpx.Response]], Awaitable[list[str]]]


def chunk(seq: int, take: str = "a", run_id: str = RUN) -> dict[str, JsonValue]:
    preview = Preview(media_type="image/jpeg", data=f"{take}{seq}")
    told = PreviewChunk(run_id=run_id, take=take, seq=seq, preview=preview)
    return {"output": told.model_dump(mode="json")}


def answer(*chunks: JsonValue, status: str = "IN_PROGRESS") -> httpx.Response:
    return httpx.Response(200, json={"status": status, "stream": list(chunks)})


END = {"status": "COMPLETED", "stream": []}


class Endpoint:
    """Gives prepared answers, the last one for ever."""

    def __init__(self, answers: list[httpx.Response | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        transport = httpx.MockTransport(self._answer)
        self.http = httpx.AsyncClient(transport=transport)
        trouble: list[str] = []
        self.trouble = trouble
        self.api = RunpodApi(
            "runpod:x", "https://api.test/v2/x", KEY, self.http, on_trouble=trouble.append
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path)
        assert request.headers["authorization"] == f"Bearer {KEY}"
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found

    def previews(self, job: Callable[[], str] = lambda: "j1") -> AsyncGenerator[Preview, None]:
        return Looks(self.api, every_s=0.001).previews(RUN, job)

    async def seen(self) -> list[str]:
        async with aclosing(self.previews()) as previews:
            return [preview.data async for preview in previews]


def ended() -> httpx.Response:
    return httpx.Response(200, json=END)


@pytest.mark.parametrize(
    "chunks",
    [
        None,
        [],
        [None, 3, "x", [], {}],
        [{"output": None}, {"output": "x"}, {"output": {"seq": 1}}],
        [{"output": {"error": "of somebody else"}}],
        [chunk(1, run_id="0" * 36)],
        [{"output": {**PreviewChunk.model_validate(chunk(1)["output"]).model_dump(), "seq": 0}}],
        [
            {
                "output": {
                    "run_id": RUN,
                    "take": "a",
                    "seq": 1,
                    "preview": {"media_type": "text/html"},
                }
            }
        ],
    ],
)
def test_what_is_no_preview_of_the_run_is_passed_over(chunks: list[JsonValue] | None) -> None:
    assert newest_preview(chunks, RUN) is None


def test_a_picture_larger_than_an_event_may_be_is_passed_over() -> None:
    large = {"media_type": "image/jpeg", "data": "x" * 98_001}
    told: JsonValue = {"output": {"run_id": RUN, "take": "a", "seq": 2, "preview": large}}
    newest = newest_preview([chunk(1), told], RUN)
    assert newest is not None
    assert newest.seq == 1


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk(1), chunk(2), chunk(3)], "a3"),
        ([chunk(3), chunk(1), chunk(2)], "a3"),
        ([chunk(8), chunk(9), chunk(1, "b")], "b1"),
        ([chunk(2, "b"), None, {"output": "x"}], "b2"),
        ([{"metrics": {}, **chunk(4)}], "a4"),
    ],
)
def test_the_newest_counts(chunks: list[JsonValue], expected: str) -> None:
    newest = newest_preview(chunks, RUN)
    assert newest is not None
    assert newest.preview.data == expected


async def test_each_is_shown_once_where_chunks_are_handed_out_once() -> None:
    answers = [answer(chunk(1), chunk(2)), answer(), answer(chunk(3)), ended()]
    assert await Endpoint([*answers]).seen() == ["a2", "a3"]


async def test_each_is_shown_once_where_chunks_are_handed_out_every_time() -> None:
    first, second = [chunk(1), chunk(2)], [chunk(1), chunk(2), chunk(3)]
    answers = [answer(*first), answer(*first), answer(*second), answer(*second), ended()]
    assert await Endpoint([*answers]).seen() == ["a2", "a3"]


async def test_those_of_a_job_that_was_handed_out_again_begin_anew() -> None:
    answers = [answer(chunk(9)), answer(chunk(9), chunk(1, "b")), answer(chunk(2, "b")), ended()]
    assert await Endpoint([*answers]).seen() == ["a9", "b1", "b2"]


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"])
async def test_it_ends_with_the_job(status: str) -> None:
    endpoint = Endpoint([answer(status="IN_QUEUE"), answer(), answer(status=status)])
    assert await endpoint.seen() == []
    assert len(endpoint.asked) == 3


async def test_a_job_that_is_not_known_is_lost() -> None:
    with pytest.raises(RunLost):
        await Endpoint([answer(chunk(1)), httpx.Response(404)]).seen()


@pytest.mark.parametrize(
    "wrong",
    [
        httpx.Response(500),
        httpx.Response(401),
        httpx.Response(302, headers={"location": "https://elsewhere.test"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"stream": []}),
        httpx.Response(200, json={"status": "COMPLETED", "stream": "x"}),
        httpx.ReadTimeout(f"with {KEY}"),
        httpx.ConnectError(f"with {KEY}"),
    ],
)
async def test_whatever_else_is_answered_is_no_answer(wrong: httpx.Response | Exception) -> None:
    endpoint = Endpoint([wrong])
    with pytest.raises(BackendUnreachable) as caught:
        await endpoint.seen()
    assert KEY not in str(caught.value)
    # whether the endpoint takes work is judged by what work needs
    assert endpoint.trouble == []


async def test_an_endpoint_that_wants_fewer_calls_is_asked_later() -> None:
    slow = httpx.Response(429, headers={"retry-after": "1"})
    endpoint = Endpoint([slow, answer(chunk(1)), ended()])
    assert await endpoint.seen() == ["a1"]


async def test_of_an_endless_stream_no_more_is_read_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runpod_api, "LARGEST_STREAM", 1000)
    monkeypatch.setattr(runpod_api, "_SLOWEST_S", 0.01)
    read = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal read
        while True:
            read += 1
            yield b" " * 100

    endpoint = Endpoint([httpx.Response(200, content=endless()), answer(chunk(1)), ended()])
    assert await endpoint.seen() == ["a1"]
    assert read <= 12


async def test_where_another_job_turns_out_to_have_the_run_that_one_is_asked() -> None:
    jobs = iter(["j1", "j2", "j2"])
    endpoint = Endpoint([answer(), answer(chunk(1)), ended()])
    async with aclosing(endpoint.previews(lambda: next(jobs))) as previews:
        assert [preview.data async for preview in previews] == ["a1"]
    assert [path.rpartition("/")[2] for path in endpoint.asked] == ["j1", "j2", "j2"]


def test_the_largest_chunk_is_far_below_what_runpod_passes_on() -> None:
    preview = Preview(media_type="image/jpeg", data="x" * 98_000)
    largest = PreviewChunk(run_id=RUN, take="0" * 8, seq=10**9, preview=preview)
    assert len(json.dumps({"output": largest.model_dump(mode="json")})) < 100_000
