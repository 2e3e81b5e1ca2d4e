"""Answers before the body has come: the rest is passed over for a while, or nobody would read them.

A server that closes a connection with bytes of it unread resets it, and a client that sends its
whole body before it looks for an answer never sees one.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_S = 30.0
SILENCE_S = 5.0
"""How long nothing may come."""


class Lingering:
    """Reads on behind a complete answer, within bounds, before it is ended."""

    def __init__(
        self,
        app: ASGIApp,
        applies: Callable[[str, str], bool],
        *,
        longest_s: float = LONGEST_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._app = app
        self._applies = applies
        """Method and path to whether bodies are large there."""
        self._longest_s = longest_s
        self._silence_s = silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not self._applies(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        over = False

        async def receiver() -> Message:
            nonlocal over
            message = await receive()
            over = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def rest() -> None:
            while not over:
                async with asyncio.timeout(self._silence_s):
                    await receiver()

        async def sender(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False) or over:
                await send(message)
                return
            await send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(self._longest_s):
                    await rest()
            await send({"type": "http.response.body", "body": b""})

        await self._app(scope, receiver, sender)
