"""What happens around every request: the origin check, the slow-answer knobs, the body limit."""

import asyncio
import ipaddress
import json
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyTooLargeError(Exception):
    """A request body exceeds the limit; the text is the answer."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"Maximum request body size {limit} exceeded.")


class SameOrigin:
    """Refuses requests a foreign web page makes to a server on this machine."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse with 403."""
        if scope["type"] == "lifespan" or not _foreign(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 403})
        else:
            await Response(status_code=403)(scope, receive, send)


def _foreign(headers: Headers) -> bool:
    if "host" not in headers or "origin" not in headers:
        return False
    host = urlsplit(f"//{headers['host'].lower()}")
    origin = urlsplit(headers["origin"].lower())
    if not _is_loopback(host.hostname) or not origin.hostname:
        return False
    # A side that names no port is compared by its host name alone.
    asked = host.hostname if _port(origin) is None else host.netloc
    asking = origin.hostname if _port(host) is None else origin.netloc
    return asked != asking


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port
    except ValueError:
        return None


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


class Delays:
    """Applies the knobs that make requests unread or answers late."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the waits that are asked for."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        settings = scope["app"].state.simulation.knobs.current
        path = scope["path"].removeprefix("/api")
        await asyncio.sleep(settings.hold_ms.get(path, 0) / 1000)

        async def late(message: Message) -> None:
            if message["type"] == "http.response.start":
                await asyncio.sleep(settings.delay_ms.get(path, 0) / 1000)
            await send(message)

        await self._app(scope, receive, late)


def limited(request: Request, limit: int) -> Request:
    """Return the request with a body that may not grow beyond so many bytes."""
    if int(request.headers.get("content-length") or 0) > limit:
        raise BodyTooLargeError(limit)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise BodyTooLargeError(limit)
        return message

    return Request(request.scope, receive)


async def json_body(request: Request, limit: int) -> Any:  # noqa: ANN401 - JSON
    """Read a JSON body; `ValueError` when it is none."""
    return json.loads(await limited(request, limit).body())
