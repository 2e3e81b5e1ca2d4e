"""A proxy before an S3 server that fails as it is told.

It hands on `Host` as it came: its own address is the endpoint that is signed for.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from tests.support.s3 import S3Server
from tests.support.stack import free_port

PATIENCE_S = 100
_DRIP = 4_000
_DRIP_EVERY_S = 0.05
_CHUNK = 64 * 1024
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_EXPECT = re.compile(rb"(?i)\r\nexpect: *100-continue")
_CONNECTION = re.compile(rb"(?i)\r\nconnection: *[^\r]*")
_REASONS = {403: "Forbidden", 404: "Not Found", 500: "Internal Server Error"}
EVERY = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to requests of these methods."""

    kind: Literal["refuse", "hang", "drip", "cut", "corrupt", "answer"]
    methods: frozenset[str] = EVERY
    status: int = 500
    code: str = "InternalError"


REFUSED = Fault(kind="refuse")
HANGS = Fault(kind="hang")
DRIPS = Fault(kind="drip")
CUTS = Fault(kind="cut", methods=frozenset({"PUT"}))
CORRUPTS = Fault(kind="corrupt", methods=frozenset({"PUT"}))
BROKEN = Fault(kind="answer")
OVERLOADED = Fault(kind="answer", status=503, code="SlowDown")
DENIED = Fault(kind="answer", status=403, code="AccessDenied")
SKEWED = Fault(kind="answer", status=403, code="RequestTimeTooSkewed")
NO_BUCKET = Fault(kind="answer", status=404, code="NoSuchBucket")
FULL = Fault(kind="answer", status=507, code="XMinioStorageFull")


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    head: bytes
    length: int


@dataclass
class FaultyS3:
    """Runs in a thread of its own: a test may block while it starts a process."""

    server: S3Server
    port: int = field(default_factory=free_port)
    seen: list[str] = field(default_factory=list[str])
    """Method and path of every request, struck or not."""
    _fault: Fault | None = None
    _struck: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _listening: asyncio.Server | None = None
    _open: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _lifted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self) -> dict[str, str]:
        """What a gateway needs to keep its files in the bucket behind the proxy."""
        return {**self.server.env(), "S3_ENDPOINT_URL": self.endpoint}

    def fail(self, fault: Fault) -> None:
        """From now on, until it ends; what is under way goes on."""
        self._on_loop(self._turn(fault))

    def end(self) -> None:
        """All is well again; requests that hang are dropped."""
        self._on_loop(self._turn(None))

    def until_struck(self, times: int = 1) -> None:
        """Return once the present fault has struck so often; a refusal is never seen."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self._struck >= times, PATIENCE_S)
        assert reached, f"{self._fault} struck {self._struck} times: {self.seen}"

    def until_seen(self, method: str, since: int = 0) -> None:
        """Return once a request of that method came after the first so many."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(line.startswith(method) for line in self.seen[since:]):
            assert time.monotonic() < deadline, self.seen
            time.sleep(0.02)

    def _on_loop(self, change: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(change, self._loop).result(PATIENCE_S)

    async def _turn(self, fault: Fault | None) -> None:
        self._fault, self._struck = fault, 0
        if fault is not None and fault.kind == "refuse":
            await self._close()
        elif self._listening is None:
            await self._listen()
        self._lifted.set()
        self._lifted = asyncio.Event()

    async def _listen(self) -> None:
        self._listening = await asyncio.start_server(self._served, "127.0.0.1", self.port)

    async def _close(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            # either side went away, which is what this is for
            writer.transport.abort()
        finally:
            self._open.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split(" ", 2)
        length = _LENGTH.search(head)
        request = _Request(method, head, int(length[1]) if length else 0)
        assert b"transfer-encoding" not in head.lower(), "a body of unknown length"
        self.seen.append(f"{method} {target.partition('?')[0]}")
        fault = self._fault if self._fault and method in self._fault.methods else None
        lifted = self._lifted
        if fault is not None:
            with self._changed:
                self._struck += 1
                self._changed.notify_all()
        if _EXPECT.search(head):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        match fault.kind if fault else None:
            case "hang":
                await lifted.wait()
            case "answer":
                assert fault is not None
                await _drain(reader, request.length)
                writer.write(_refusal(fault, request))
                await writer.drain()
            case kind:
                await self._forward(request, reader, writer, kind, lifted)

    async def _forward(
        self,
        request: _Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        kind: str | None,
        lifted: asyncio.Event,
    ) -> None:
        above, below = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            head = _EXPECT.sub(b"", _CONNECTION.sub(b"", request.head))
            below.write(head.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n")
            left = request.length // 2 if kind == "cut" else request.length
            async for piece in _pieces(reader, left, kind, lifted):
                below.write(piece)
                await below.drain()
            if kind == "cut":
                return
            while piece := await above.read(_DRIP if kind == "drip" else _CHUNK):
                writer.write(piece)
                await writer.drain()
                await _pause(kind, lifted)
        finally:
            below.close()


async def _pieces(
    reader: asyncio.StreamReader, left: int, kind: str | None, lifted: asyncio.Event
) -> AsyncIterator[bytes]:
    corrupt = kind == "corrupt"
    while left:
        piece = await reader.read(min(left, _DRIP if kind == "drip" else _CHUNK))
        if not piece:
            raise EOFError
        left -= len(piece)
        yield bytes([piece[0] ^ 1]) + piece[1:] if corrupt else piece
        corrupt = False
        await _pause(kind, lifted)


async def _pause(kind: str | None, lifted: asyncio.Event) -> None:
    if kind == "drip" and not lifted.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lifted.wait(), _DRIP_EVERY_S)


async def _drain(reader: asyncio.StreamReader, left: int) -> None:
    while left:
        piece = await reader.read(min(left, _CHUNK))
        if not piece:
            raise EOFError
        left -= len(piece)


def _refusal(fault: Fault, request: _Request) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code></Error>".encode()
    reason = _REASONS.get(fault.status, "Refused")
    head = (
        f"HTTP/1.1 {fault.status} {reason}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request.method == "HEAD" else body)


@contextmanager
def faulty(server: S3Server) -> Generator[FaultyS3]:
    """A proxy at work, without a fault for now."""
    proxy = FaultyS3(server)
    thread = threading.Thread(target=proxy._loop.run_forever, name="faulty S3")
    thread.start()
    try:
        proxy.end()
        yield proxy
    finally:
        proxy._on_loop(proxy._close())
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join()
        proxy._loop.close()
