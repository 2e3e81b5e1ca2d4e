"""Hostile addresses, sent to a gateway and to a GPU service: nothing inside is ever asked."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import runtime
from gateway.jobs.receivers import Receivers
from gateway.tools import TOOLS
from gpu_server import fetch, inputs
from gpu_server.protocol import InputFile
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.hostile_gpu import failure_of, gpu_service
from tests.support.hostile_server import Listener, answering_badly, listening
from tests.support.hostile_urls import ALLOWED, HOSTILE_URLS, NAMES, TAKEN
from tests.support.reading import INVERT, workflows
from tests.support.slots import receiving

PATIENCE_S = 120
MEBIBYTE = 1024 * 1024


class Names:
    """A name server; for what it does not know, this machine's own is asked about numbers."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        known = NAMES.get(host.rstrip(".").lower())
        if known is not None:
            return known[min(self.asked.count(host), len(known)) - 1]
        flags = socket.AI_NUMERICHOST
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
        return [str(entry[4][0]) for entry in found]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()

    async def of_webhooks(_: Receivers, host: str, port: int) -> Sequence[str]:
        return await made(host, port)

    monkeypatch.setattr(fetch, "_system_lookup", made)
    monkeypatch.setattr(Receivers, "_system_lookup", of_webhooks)
    return made


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening() as listener:
        yield listener


@pytest.fixture
async def web() -> AsyncIterator[int]:
    async with answering_badly() as (_, port):
        yield port


@asynccontextmanager
async def resting(tmp_path: Path, ports: Sequence[int]) -> AsyncIterator[Gateway]:
    """A gateway that begins no run."""
    env: dict[str, Any] = {
        "workflows_path": workflows(tmp_path / "workflows"),
        "fetch_ports": (80, 443, *ports),
        "max_queued_jobs_per_caller": 1000,
    }
    backend = ScriptedBackend(capacity=0)
    async with gateway(tmp_path / "workspace", backend, **env) as served:
        yield served


def code_of(answer: httpx.Response) -> str:
    """What a call got, by the one field that is wrong with it."""
    if answer.status_code == 202:
        return TAKEN
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert "secret" not in answer.text.replace("//somebody/secret", "")
    return str(error["code"])


@pytest.mark.usefixtures("names")
async def test_a_call_gets_for_each_address_what_the_table_says(
    tmp_path: Path, listener: Listener, web: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "TOOLS", (*TOOLS, INVERT))
    got: dict[str, tuple[str, str | None]] = {}
    async with resting(tmp_path, [listener.port, web]) as served:
        for each in HOSTILE_URLS:
            url = each.url.format(port=listener.port, web=web)
            answer = await served.http.post("/api/invert/async", json={"image_url": url})
            webhook = None
            if each.webhook is not None:
                body = {"prompt": "x", "webhook_url": url}
                refused = await served.http.post("/api/generate/async", json=body)
                webhook = code_of(refused)
            got[each.name] = code_of(answer), webhook
        jobs = (await served.http.get("/api/jobs", params={"limit": 100})).json()["items"]
    assert got == {each.name: (each.call, each.webhook) for each in HOSTILE_URLS}
    assert len(jobs) == sum(each.call == TAKEN for each in HOSTILE_URLS)
    assert listener.heard == []


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("names")
async def test_a_gpu_service_gets_nothing_from_them_whoever_tells_it_to(
    tmp_path: Path, listener: Listener, web: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "ANSWER_S", 1)
    monkeypatch.setattr(fetch, "STALL_S", 1)
    monkeypatch.setattr(inputs, "MAX_PICTURE_BYTES", MEBIBYTE)
    got: dict[str, str] = {}
    async with (
        receiving() as slots,
        gpu_service(tmp_path, [listener.port, web]) as service,
    ):
        for each in HOSTILE_URLS:
            url = each.url.format(port=listener.port, web=web)
            file = InputFile(url=url, media_type="image/png", ours=False)
            got[each.name] = await failure_of(service, f"{slots.url}/a", file)
        # what a former gateway sends is trusted at the gateway's own addresses, and nowhere else
        file = InputFile(url=f"http://127.0.0.1:{listener.port}/x.png", media_type="image/png")
        assert await failure_of(service, f"{slots.url}/a", file) == "url_refused"
        # an address of a caller's is not trusted for being where the results go
        file = InputFile(url=f"{slots.url}/b", media_type="image/png", ours=False)
        assert await failure_of(service, f"{slots.url}/a", file) == "url_refused"
        assert not slots.asked.is_set()
    assert got == {each.name: each.fetch for each in HOSTILE_URLS}
    assert listener.heard == []


async def test_a_name_that_changes_between_check_and_connection_gains_nothing(
    tmp_path: Path, names: Names, listener: Listener, web: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"rebinding.example": ((ALLOWED,), ("127.0.0.1",))}
    monkeypatch.setattr("tests.integration.test_hostile_urls.NAMES", {**NAMES, **answers})
    async with receiving() as slots, gpu_service(tmp_path, [listener.port, web]) as service:
        for port, code in ((web, "file_not_found"), (listener.port, "url_refused")):
            file = InputFile(
                url=f"http://rebinding.example:{port}/x", media_type="image/png", ours=False
            )
            assert await failure_of(service, f"{slots.url}/a", file) == code
    assert names.asked.count("rebinding.example") == 2
    assert listener.heard == []


async def test_the_listener_would_hear_what_gets_through(names: Names, listener: Listener) -> None:
    rules = fetch.FetchRules.of([listener.port], ["127.0.0.1/32"])
    async with (
        fetch.Fetcher(rules=rules) as fetcher,
        fetcher.open(
            f"http://private.example:{listener.port}/x.png", max_bytes=99, timeout_s=PATIENCE_S
        ) as download,
    ):
        assert b"".join([chunk async for chunk in download.chunks]) == b"secret"
    assert len(listener.heard) == 1
    assert names.asked == ["private.example"]
