"""An answer that comes before the body has: what is read behind it, and for how long."""

import asyncio
from typing import Any

import httpx

from gateway.api.lingering import Lingering
from tests.support.asgi import serving

REFUSAL = b"no" * 50


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """Reads the first piece of a body and answers."""
    if scope["type"] == "http":
        await receive()
        headers = [(b"content-length", str(len(REFUSAL)).encode())]
        await send({"type": "http.response.start", "status": 422, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})


def lingering(**seconds: float) -> Lingering:
    return Lingering(refusing, lambda method, path: (method, path) == ("POST", "/large"), **seconds)


async def sent(url: str, path: str, megabytes: int) -> bytes:
    """Send everything, then look for an answer, as simple clients do."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    size = megabytes * 1024 * 1024
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    writer.write(head.encode())
    for _ in range(megabytes):
        writer.write(bytes(1024 * 1024))
        await writer.drain()
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_a_client_that_sends_it_all_first_reads_the_answer() -> None:
    async with serving(lingering()) as url:
        answer = await sent(url, "/large", 20)
        assert answer.startswith(b"HTTP/1.1 422")
        assert answer.endswith(REFUSAL)


async def test_the_answer_is_there_before_the_body_is_and_silence_ends_it() -> None:
    async with serving(lingering(silence_s=0.05)) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx")
        await reader.readuntil(REFUSAL)
        writer.close()


async def test_it_is_not_read_for_ever() -> None:
    received = 0
    told: list[Any] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": "/large"}
    await lingering(longest_s=0.05)(scope, receive, send)
    assert received > 1
    assert [message.get("more_body", False) for message in told[1:]] == [True, False]


async def test_what_is_read_whole_or_no_upload_is_answered_as_before() -> None:
    async with serving(lingering(longest_s=0)) as url, httpx.AsyncClient(trust_env=False) as http:
        for path, body in (("/large", b""), ("/large", b"small"), ("/small", bytes(10_000_000))):
            answer = await http.post(url + path, content=body)
            assert (answer.status_code, answer.content) == (422, REFUSAL)
