"""The outermost ring as plain ASGI: request id, log line, body limit, and nothing unanswered."""

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api.problems import rendered
from gateway.errors import InternalError, PayloadTooLarge
from gateway.observability.logging import request_line

MAX_BODY = 1_000_000
"""Most bytes of a JSON body, unless the route has a limit of its own."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

logger = logging.getLogger(__name__)


class Boundary:
    """Gives each request an id and a log line; what escapes the routes is answered with a 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, sender)
        except ClientDisconnect:
            # Nobody is left to answer; 499 is what proxies log for it.
            status = status or 499
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            error = InternalError(f"This is a bug of ours; it is logged as request {request_id}.")
            await rendered(error, scope["path"])(scope, receive, sender)
        finally:
            milliseconds = (time.perf_counter() - began) * 1000
            request_line(request_id, scope["method"], template(scope), status, milliseconds)


class BodyLimit:
    """Refuses bodies that are too large before they are held in memory."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str, str], int | None]) -> None:
        self._app = app
        self._limit_of = limit_of
        """Method and path to the most bytes; None where the route counts for itself."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        limit = None
        if scope["type"] == "http":
            limit = self._limit_of(scope["method"], scope["path"])
        if limit is None:
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            await rendered(_too_large(limit), scope["path"])(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # FastAPI lets an HTTPException through where it would make a 400 of any other.
                raise HTTPException(status_code=413, detail=_too_large(limit).detail)
            return message

        await self._app(scope, counted, send)


def template(scope: Scope) -> str:
    """Name the route, without ids: what logs and metrics may hold."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else "(no route)"


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body may have at most {limit} bytes.")


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
