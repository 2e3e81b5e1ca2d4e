"""Websockets and the one publish loop: who gets which event, in which order."""

import asyncio
import json
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gpu_server.simulator.settings import Knobs

log = logging.getLogger(__name__)

PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
_FORMATS = {"jpeg": 1, "png": 2}
_FORBIDDEN = 403


class DroppableProtocol(WebSocketsSansIOProtocol):
    """Uvicorn's websocket, whose connection a knob can end without a closing handshake."""

    async def run_asgi(self) -> None:
        """Hand the application a way to hang up."""
        self.scope.setdefault("state", {})["hang_up"] = self.transport.close
        await super().run_asgi()


@dataclass(slots=True, eq=False)
class Connection:
    """One open websocket."""

    socket: WebSocket
    features: dict[str, Any] = field(default_factory=dict[str, Any])

    async def send(self, message: str | bytes) -> None:
        """Send a frame; a client that is gone is no error."""
        try:
            if isinstance(message, str):
                await self.socket.send_text(message)
            else:
                await self.socket.send_bytes(message)
        except (WebSocketDisconnect, RuntimeError) as error:
            log.debug("websocket gone while sending: %r", error)

    def hang_up(self) -> None:
        """End the connection abruptly: the client sees 1006."""
        self.socket.scope["state"]["hang_up"]()


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One message on its way to one client id, or to everybody."""

    event: str
    data: Any
    client_id: Any


class Sockets:
    """Open websockets by client id, and the loop that serves them."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._by_client: dict[str, Connection] = {}
        self._open: set[Connection] = set()
        self._outgoing: asyncio.Queue[Outgoing] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.connections = 0
        """How many websockets were ever accepted."""
        self.current: tuple[Any, str] | None = None
        """Client id and node of the prompt that runs now."""

    @property
    def open_now(self) -> int:
        """How many websockets are open."""
        return len(self._open)

    def put(self, event: str, data: Any, client_id: Any = None) -> None:  # noqa: ANN401 - JSON
        """Hand over a message from any thread; None as client id means everybody."""
        self._loop.call_soon_threadsafe(self._outgoing.put_nowait, Outgoing(event, data, client_id))

    def supports(self, client_id: Any, feature: str) -> bool:  # noqa: ANN401 - as posted
        """Tell whether a client announced a feature in its first message."""
        connection = self._by_client.get(client_id)
        return connection is not None and bool(connection.features.get(feature))

    async def publish(self) -> None:
        """Send messages one after the other, for ever.

        Each send is awaited: a client that stops reading stalls everybody, as in ComfyUI.
        """
        while True:
            message = await self._outgoing.get()
            await self._send(message)
            self._drop_if_due(message)

    async def _send(self, message: Outgoing) -> None:
        encoded = _encoded(message.event, message.data)
        if message.client_id is None:
            for connection in list(self._by_client.values()):
                await connection.send(encoded)
        # An unhashable client id raises here and ends the loop; ComfyUI's process dies of it.
        elif message.client_id in self._by_client:
            await self._by_client[message.client_id].send(encoded)

    def _drop_if_due(self, message: Outgoing) -> None:
        settings = self._knobs.current
        if settings.drop_after_event == message.event:
            self._knobs.update({"drop_after_event": None})
            self.drop_all()
        step = settings.drop_at_step
        if step is not None and message.event == "progress" and message.data["value"] >= step:
            self._knobs.update({"drop_at_step": None})
            self.drop_all()

    def drop_all(self) -> None:
        """Hang up on everybody, without a closing handshake."""
        for connection in list(self._open):
            connection.hang_up()

    async def serve(
        self, socket: WebSocket, remaining: Callable[[], int], features: Callable[[], Any]
    ) -> None:
        """Carry one websocket from its handshake to its end."""
        if self._knobs.current.refuse_sockets:
            await socket.close(_FORBIDDEN)
            return
        await socket.accept()
        client_id = socket.query_params.get("clientId") or uuid4().hex
        connection = Connection(socket)
        # The newest connection of an id gets its events …
        self._by_client[client_id] = connection
        self._open.add(connection)
        self.connections += 1
        try:
            await connection.send(_encoded("status", status(remaining()) | {"sid": client_id}))
            if self.current is not None and self.current[0] == client_id:
                await connection.send(_encoded("executing", {"node": self.current[1]}))
            await self._listen(connection, client_id, features)
        finally:
            self._open.discard(connection)
            # … and an older one that ends unhooks the newer one without telling it, as in ComfyUI.
            self._by_client.pop(client_id, None)

    async def _listen(
        self, connection: Connection, client_id: str, features: Callable[[], Any]
    ) -> None:
        first = True
        while True:
            received = await connection.socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            announced = _announced(received.get("text"))
            if first and announced is not None:
                connection.features = announced
                if client_id in self._by_client:
                    answer = _encoded("feature_flags", features())
                    await self._by_client[client_id].send(answer)
            first = first and announced is None and not _is_json(received.get("text"))


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "")
    except ValueError:
        return False
    return True


def _announced(text: str | None) -> dict[str, Any] | None:
    """Return the features of a `feature_flags` message; None for any other."""
    try:
        message: Any = json.loads(text or "")
        return dict(message.get("data", {})) if message["type"] == "feature_flags" else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def status(remaining: int) -> dict[str, Any]:
    """Build the data of a `status` event."""
    return {"status": {"exec_info": {"queue_remaining": remaining}}}


def _encoded(event: str, data: Any) -> str | bytes:  # noqa: ANN401 - JSON or bytes
    if isinstance(data, bytes):
        return data
    return json.dumps({"type": event, "data": data})


def picture_frame(encoded: bytes, kind: str) -> bytes:
    """Frame a picture for clients that announced nothing; `kind` is jpeg or png."""
    return struct.pack(">II", PREVIEW, _FORMATS[kind]) + encoded


def picture_frame_with_metadata(encoded: bytes, kind: str, metadata: dict[str, Any]) -> bytes:
    """Frame a picture for clients that support metadata."""
    described = json.dumps({**metadata, "image_type": f"image/{kind}"}).encode()
    return struct.pack(">II", PREVIEW_WITH_METADATA, len(described)) + described + encoded


def text_frame(node_id: str, text: str) -> bytes:
    """Frame a text shown on a node."""
    node = node_id.encode()
    return struct.pack(">II", TEXT, len(node)) + node + text.encode()
