"""A light HTTP client: a load generator must not be what is measured."""

import asyncio
import json
import uuid
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.stack import KEY

Json = dict[str, Any]


class Connection:
    """One kept connection; one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """The JSON of an answer."""
        self.send(method, path, body)
        length = await self._head()
        answer: Json = json.loads(await self._reader.readexactly(length))
        return answer

    def send(self, method: str, path: str, body: Json | None = None) -> None:
        """Send a request; whoever calls reads the answer."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n"
            f"idempotency-key: {uuid.uuid4()}\r\n\r\n"
        )
        self._writer.write(head.encode() + data)

    async def line(self) -> bytes:
        """The next line of whatever comes."""
        return await self._reader.readline()

    async def _head(self) -> int:
        length, status = 0, (await self._reader.readline()).split()[1]
        while (line := await self._reader.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            if name.lower() == "content-length":
                length = int(value)
        if not status.startswith(b"2"):
            raise RuntimeError(f"{status!r} {await self._reader.readexactly(length)!r}")
        return length


def body(n: int) -> Json:
    """A small call."""
    return {
        "prompt": f"bench {n}",
        "variant": "checkpoint:tiny-sd15.ckpt",
        "width": 256,
        "height": 256,
        "num_inference_steps": 1,
        # so that none is refused because the double takes long
        "deadline_s": 600_000,
    }


async def submits(url: str, count: int, clients: int) -> list[str]:
    """Submit so many jobs by so many clients at once; their ids."""
    numbers = iter(range(count))
    ids: list[str] = []

    async def client() -> None:
        async with Connection(url) as connection:
            for n in numbers:
                answer = await connection.ask("POST", "/api/generate/async", body(n))
                ids.append(answer["job_id"])

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return ids
