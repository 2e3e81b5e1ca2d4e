"""A server that takes output files by PUT and gives input files by GET, and remembers both."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.asgi import serving

_KEPT = 4 * 1024**2
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass
class Taken:
    """What arrived in one slot."""

    media_type: str
    length: str | None
    count: int
    sha256: str
    content: bytes
    """Its first megabytes."""
    md5: str | None = None
    """`Content-MD5`, as it came."""

    @property
    def head(self) -> bytes:
        return self.content[:64]


@dataclass
class Slots:
    """Takes every PUT unless told otherwise."""

    url: str = ""
    taken: dict[str, Taken] = field(default_factory=dict[str, Taken])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    puts: int = 0
    answers: list[int] = field(default_factory=list[int])
    """Statuses for the next PUTs, before 201 again."""
    said: bytes = b""
    """What a refusal says."""
    options: dict[str, bool] = field(default_factory=dict[str, bool])
    """`sized` and `content_md5` of every slot."""
    gate: asyncio.Event | None = None
    """While it is not set, no request is answered."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    """Some request has arrived."""

    def slots(self, run_id: str, count: int = 1, output: str = "images") -> list[dict[str, Any]]:
        """Slots for one run, as the wire wants them."""
        return [
            {"name": f"{output}/{n}", "url": f"{self.url}/{run_id}/{output}/{n}", **self.options}
            for n in range(count)
        ]

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        body, status = b"", 404
        if scope["method"] == "PUT":
            status = await self._take(scope, receive)
            body = b"" if status == 201 else self.said
        elif scope["path"] in self.files:
            body, status = self.files[scope["path"]], 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _take(self, scope: Any, receive: Receive) -> int:
        self.puts += 1
        digest, count, content = hashlib.sha256(), 0, bytearray()
        more = True
        while more:
            message = await receive()
            assert message["type"] == "http.request", "the sender broke off"
            chunk = message.get("body", b"")
            content += chunk[: max(0, _KEPT - len(content))]
            digest.update(chunk)
            count += len(chunk)
            more = message.get("more_body", False)
        if self.answers:
            return self.answers.pop(0)
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.taken[scope["path"]] = Taken(
            media_type=headers["content-type"],
            length=headers.get("content-length"),
            count=count,
            sha256=digest.hexdigest(),
            content=bytes(content),
            md5=headers.get("content-md5"),
        )
        return 201


@asynccontextmanager
async def receiving() -> AsyncGenerator[Slots]:
    """Slots that are served."""
    slots = Slots()
    async with serving(slots) as url:
        slots.url = url
        yield slots
