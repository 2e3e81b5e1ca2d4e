"""A store that keeps receipts as a bucket does: what was put can be got, at one address each."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.asgi import serving

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


@dataclass
class NoteStore:
    """Gives and takes receipts unless told otherwise."""

    url: str = ""
    kept: dict[str, bytes] = field(default_factory=dict[str, bytes])
    puts: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    """Every receipt that was taken, with its path."""
    asked: list[str] = field(default_factory=list[str])
    """Methods of all requests."""
    answers: list[int] = field(default_factory=list[int])
    """Statuses for the next requests, before it does what it is for."""
    away: bool = False
    """503 for whatever is asked."""
    gate: asyncio.Event | None = None
    """While it is not set, no PUT is answered."""
    before_put: Callable[[str], Awaitable[None]] | None = None
    after_put: Callable[[str], Awaitable[None]] | None = None

    def receipt(self, run_id: str) -> dict[str, str]:
        """A receipt as the wire wants it, with what a signed address has."""
        return {key: f"{self.url}/{run_id}?X-Signature=secret-{key}" for key in ("get", "put")}

    def lay(self, run_id: str, note: Any) -> None:
        """Put a receipt there, as somebody else does."""
        self.kept[f"/{run_id}"] = json.dumps(note).encode()

    def note(self, run_id: str) -> Any:
        """What the receipt says now, None while there is none."""
        kept = self.kept.get(f"/{run_id}")
        return None if kept is None else json.loads(kept)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.asked.append(scope["method"])
        status, body = await self._answer(scope, receive)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Any, receive: Receive) -> tuple[int, bytes]:
        path, content, more = scope["path"], b"", True
        while more:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        if self.away or self.answers:
            return (503 if self.away else self.answers.pop(0)), b""
        query = scope["query_string"].decode()
        if scope["method"] != "PUT":
            assert query == "X-Signature=secret-get"
            return (200, self.kept[path]) if path in self.kept else (404, b"")
        assert query == "X-Signature=secret-put"
        if self.gate is not None:
            await self.gate.wait()
        if self.before_put is not None:
            await self.before_put(path)
        self.kept[path] = content
        self.puts.append((path, json.loads(content)))
        if self.after_put is not None:
            await self.after_put(path)
        return 201, b""


@asynccontextmanager
async def keeping() -> AsyncGenerator[NoteStore]:
    """A store that is served."""
    store = NoteStore()
    async with serving(store) as url:
        store.url = url
        yield store
