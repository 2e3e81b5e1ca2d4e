"""Starts that are answered late or never: what the gateway may conclude from the next answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.backends.base import BackendFull, BackendUnreachable
from gateway.backends.sidecar import Sidecar
from tests.support.gpu_double import TOKEN, WORKFLOWS, new_http, order

FULL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}"
AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    b'content-length: 31\r\n\r\n{"code": "comfyui_unavailable"}'
)


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[Sidecar]:
    """A service that gives each connection the next answer; an empty one breaks it off."""
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        writer.write(left.pop(0))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with new_http() as http, server:
        yield Sidecar("gpu", f"http://127.0.0.1:{port}", TOKEN, http, WORKFLOWS)
    assert left == []


@pytest.mark.parametrize("refusal", [FULL, AWAY])
async def test_full_is_what_it_says_when_nothing_was_sent_before(refusal: bytes) -> None:
    async with answering(refusal) as backend:
        with pytest.raises(BackendFull):
            await backend.start(order())


@pytest.mark.parametrize("refusal", [FULL, AWAY])
async def test_full_after_a_request_that_broke_off_does_not_mean_that_nothing_began(
    refusal: bytes,
) -> None:
    async with answering(b"", refusal) as backend:
        with pytest.raises(BackendUnreachable):
            await backend.start(order())
