"""Servers on loopback: one that must hear nothing, and one that answers as badly as it can."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil

from tests.support.hostile_urls import ALLOWED

PATIENCE_S = 120


@dataclass
class Listener:
    """Counts whoever connects, on every address of this machine."""

    port: int = 0
    addresses: list[str] = field(default_factory=list[str])
    heard: list[str] = field(default_factory=list[str])

    async def __call__(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(str(writer.get_extra_info("sockname")))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")
        await _closed(writer)


def _own_addresses() -> list[str]:
    """Of all its interfaces, those that can be listened on without naming the interface."""
    found = ["127.0.0.1", "::1"]
    every = (a for addresses in psutil.net_if_addrs().values() for a in addresses)
    families = {socket.AF_INET, socket.AF_INET6}
    found += [a.address for a in every if a.family in families and "%" not in a.address]
    return list(dict.fromkeys(found))


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    """A listener on one port of every address."""
    listener, servers = Listener(), list[asyncio.Server]()
    for address in _own_addresses():
        # a machine need not have IPv6
        with contextlib.suppress(OSError):
            servers.append(await asyncio.start_server(listener, address, listener.port))
            listener.port = servers[0].sockets[0].getsockname()[1]
            listener.addresses.append(address)
    assert listener.addresses, "there is nothing to listen on"
    try:
        yield listener
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


Answer = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _says(*lines: str, body: bytes = b"") -> bytes:
    head = ["HTTP/1.1 200 OK", "content-type: image/png", "connection: close", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def _redirect(status: int, to: str) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n".encode()


async def _for_ever(writer: asyncio.StreamWriter, piece: bytes, pause_s: float) -> None:
    while True:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)


class HostileServer:
    """Answers by its path; what it has to say is in `hostile_urls`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._open: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.asked.append(request)
            path, _, query = request.split(" ", 2)[1].lstrip("/").partition("?")
            await self._answer(writer, path, query)
        except (OSError, asyncio.IncompleteReadError):
            # the other side has had enough, as it should
            pass
        finally:
            self._open.discard(task)
            await _closed(writer)

    def stop(self) -> None:
        for task in self._open:
            task.cancel()

    async def _answer(self, writer: asyncio.StreamWriter, path: str, query: str) -> None:
        fixed = {
            "to": _redirect(302, query),
            "to307": _redirect(307, query),
            "nowhere": b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n",
            "round": _redirect(302, "/round"),
            "page": _says(body=b'<meta http-equiv="refresh" content="0;url=http://127.0.0.1/">'),
            "long": _says("content-length: 999999999999999999"),
            "short": _says("content-length: 1000", body=b"\x89PNG"),
            "gzip": _says("content-encoding: gzip", body=b"\x1f\x8b"),
            "noise": bytes(range(256)),
        }
        match path:
            case "silent":
                await asyncio.Event().wait()
            case "slow-headers":
                writer.write(b"HTTP/1.1 200 OK\r\n")
                await _for_ever(writer, b"x-a: b\r\n", 0.05)
            case "headers":
                writer.write(b"HTTP/1.1 200 OK\r\n")
                await _for_ever(writer, b"x-a: " + b"b" * 60_000 + b"\r\n", 0)
            case "drip":
                writer.write(_says(body=b"\x89PNG\r\n\x1a\n"))
                await _for_ever(writer, b"x", 0.05)
            case "endless":
                writer.write(_says(body=b"\x89PNG\r\n\x1a\n"))
                await _for_ever(writer, bytes(65_536), 0)
            case _:
                writer.write(
                    fixed.get(path, b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                )


@asynccontextmanager
async def answering_badly() -> AsyncIterator[tuple[HostileServer, int]]:
    """The server, on the one address that is allowed, and its port."""
    hostile = HostileServer()
    server = await asyncio.start_server(hostile, ALLOWED, 0)
    try:
        yield hostile, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        hostile.stop()
        await server.wait_closed()
