"""A real receiver of webhooks on loopback, that answers as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from tests.support.asgi import serving

PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> dict[str, Any]:
        """The payload, by the library's own verifier."""
        payload: dict[str, Any] = Webhook(secret).verify(self.body, dict(self.headers))
        return payload


@dataclass(kw_only=True)
class Receiver:
    """Remembers what came; answers `status` once `gate` is set."""

    status: int = 200
    answer_headers: dict[str, str] = field(default_factory=dict[str, str])
    endless: bool = False
    """The answer's body never ends."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    received: list[Received] = field(default_factory=list[Received])
    answered: int = 0
    open: int = 0
    most_open: int = 0
    came: asyncio.Condition = field(default_factory=asyncio.Condition)
    url: str = ""

    async def __call__(
        self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self.received.append(Received(path=scope["path"], headers=headers, body=body))
        async with self.came:
            self.came.notify_all()
        try:
            await self.gate.wait()
            self.answered += 1
            start = [(k.encode(), v.encode()) for k, v in self.answer_headers.items()]
            await send({"type": "http.response.start", "status": self.status, "headers": start})
            while self.endless:
                await send({"type": "http.response.body", "body": b"x" * 999, "more_body": True})
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.open -= 1

    async def until(self, count: int) -> None:
        """Return once that many deliveries have come."""
        async with self.came, asyncio.timeout(PATIENCE_S):
            await self.came.wait_for(lambda: len(self.received) >= count)


@asynccontextmanager
async def receiver(*, port: int = 0, held: bool = False, **answer: Any) -> AsyncIterator[Receiver]:
    """A receiver that answers at once, or when its gate is set."""
    made = Receiver(**answer)
    if not held:
        made.gate.set()
    async with serving(made, port=port) as url:
        made.url = f"{url}/hooks"
        try:
            yield made
        finally:
            made.endless = False
            made.gate.set()
