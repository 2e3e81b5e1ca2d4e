"""The floor of `benchmarks.media`: a server that writes a body into a file, or sends a file.

    python -m benchmarks.bare_store PORT FOLDER

No key, no form, no hash, no look, no database; `fsync` before the answer, as a store that promises
to keep a file must.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

PIECE = 1024 * 1024
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class BareStore:
    """PUT and GET of whole files, by ASGI alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = self._folder / Path(scope["path"]).name
        if scope["method"] == "PUT":
            await _take(path, receive)
            await send({"type": "http.response.start", "status": 201, "headers": []})
        elif path.is_file():
            length = str(path.stat().st_size).encode()
            headers = [(b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _give(path, send)
        else:
            await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _take(path: Path, receive: Receive) -> None:
    with path.open("wb") as file:
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await asyncio.to_thread(file.write, message.get("body", b""))
        await asyncio.to_thread(os.fsync, file.fileno())


async def _give(path: Path, send: Send) -> None:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            await send({"type": "http.response.body", "body": piece, "more_body": True})


def main() -> None:
    """Serve until told to stop."""
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    uvicorn.run(BareStore(folder), host="127.0.0.1", port=port, log_level="error", lifespan="off")


if __name__ == "__main__":
    main()
