"""The one websocket to ComfyUI, read by a thread of its own.

ComfyUI delivers events to all its clients in one loop that awaits each send: a client that stops
reading stalls everybody. So the thread does nothing but read, and hands each message to the event
loop without waiting for anything there.
"""

import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast
from urllib.parse import quote

from websocket import (
    ABNF,
    WebSocket,
    WebSocketException,
    WebSocketTimeoutException,
    create_connection,
)

from gpu_server.comfy.preview import FEATURES

_log = logging.getLogger(__name__)

_CONNECT_S = 10.0
_HANG_UP_S = 2.0
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0


class _Reader(Protocol):
    """What the library declares too loosely."""

    def recv_data_frame(self, control_frame: bool = ...) -> tuple[int, ABNF]: ...  # noqa: FBT001 - the library's own signature


class Listener(Protocol):
    """Who is told, in the event loop and in order, what happens on the websocket."""

    def opened(self) -> None:
        """ComfyUI has registered this socket: events sent from now on arrive."""
        ...

    def heard(self, kind: str, data: dict[str, Any]) -> None:
        """A text message arrived."""
        ...

    def pictured(self, frame: bytes) -> None:
        """A binary message arrived."""
        ...

    def closed(self) -> None:
        """The socket is gone; the thread connects again by itself."""
        ...


class ComfySocket:
    """Holds the websocket open; `start`, then `close` once."""

    def __init__(self, url: str, client_id: str, listener: Listener, *, ping_s: float = 20) -> None:
        """Args: `url` is ComfyUI's http(s) address; `ping_s` is the silence before a ping."""
        self._url = f"ws{url.removeprefix('http')}/ws?clientId={quote(client_id)}"
        self._listener = listener
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="comfyui-websocket", daemon=True)
        self._stop = threading.Event()
        self._ws: WebSocket | None = None
        self._inbox: deque[Callable[[], None]] = deque()
        self._scheduled = False
        self.last_message = time.monotonic()
        """When anything was last read, by `time.monotonic`."""

    def start(self) -> None:
        """Begin connecting; keeps trying until `close`."""
        self._thread.start()

    def reconnect(self) -> None:
        """Close the present socket and open another with the same clientId."""
        self._send_close()

    async def close(self) -> None:
        """Close the socket and end the thread."""
        self._stop.set()
        self._send_close()
        await asyncio.to_thread(self._thread.join, _HANG_UP_S)
        ws = self._ws
        if ws is not None:
            # ComfyUI has not answered the close: wake the thread the hard way.
            with contextlib.suppress(OSError, AttributeError):
                cast("socket.socket", ws.sock).shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(self._thread.join, _HANG_UP_S)

    def _send_close(self) -> None:
        ws = self._ws
        if ws is not None:
            with contextlib.suppress(OSError, WebSocketException):
                ws.send_close()

    def _run(self) -> None:
        delay = 0.0
        while not self._stop.wait(delay):
            delay = min(max(_FIRST_DELAY_S, 2 * delay), _LONGEST_DELAY_S)
            try:
                ws = create_connection(
                    self._url,
                    timeout=_CONNECT_S,
                    # ComfyUI answers 403 to an Origin that differs from Host.
                    suppress_origin=True,
                    http_no_proxy=["*"],
                    skip_utf8_validation=True,
                    enable_multithread=True,
                )
            except (OSError, WebSocketException) as error:
                _log.debug("ComfyUI's websocket: %s", type(error).__name__)
                continue
            self._ws = ws
            try:
                ws.send(json.dumps(FEATURES))
                self._read(ws)
            except (OSError, WebSocketException) as error:
                _log.info("ComfyUI's websocket broke: %s", type(error).__name__)
            finally:
                self._tell(self._listener.closed)
                _hang_up(ws)
                self._ws = None
            delay = 0.0 if delay <= _FIRST_DELAY_S else delay

    def _read(self, ws: WebSocket) -> None:
        ws.settimeout(self._ping_s)
        reader = cast("_Reader", ws)
        registered, unanswered = False, 0
        while not self._stop.is_set():
            try:
                opcode, frame = reader.recv_data_frame(control_frame=True)
            except WebSocketTimeoutException:
                # What was read of a frame so far is kept by the library, so reading goes on.
                unanswered += 1
                if unanswered > 2:  # noqa: PLR2004 - two pings without any answer
                    return
                ws.ping()
                continue
            unanswered = 0
            self.last_message = time.monotonic()
            if opcode == ABNF.OPCODE_CLOSE:
                return
            if opcode == ABNF.OPCODE_TEXT:
                if not registered:
                    # The first message tells that ComfyUI now routes this clientId to us.
                    registered = True
                    self._tell(self._listener.opened)
                self._pass_on(frame.data)
            elif opcode == ABNF.OPCODE_BINARY:
                picture = bytes(cast("bytes", frame.data))
                self._tell(lambda picture=picture: self._listener.pictured(picture))

    def _pass_on(self, text: str | bytes) -> None:
        try:
            message: object = json.loads(text)
        except ValueError:
            _log.warning("ComfyUI sent a text message that is no JSON")
            return
        if not isinstance(message, dict):
            return
        fields = cast("dict[str, Any]", message)
        kind, data = fields.get("type"), fields.get("data")
        if isinstance(kind, str) and isinstance(data, dict):
            known = cast("dict[str, Any]", data)
            self._tell(lambda: self._listener.heard(kind, known))

    def _tell(self, call: Callable[[], None]) -> None:
        self._inbox.append(call)
        if not self._scheduled:
            self._scheduled = True
            # The loop may be closed already when a process ends without `close`.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # Cleared first: whatever is appended from here on schedules another drain.
        self._scheduled = False
        while self._inbox:
            self._inbox.popleft()()


def _hang_up(ws: WebSocket) -> None:
    """Close and wait until ComfyUI has closed as well.

    Its cleanup of an old socket removes the clientId whoever holds it by then: a new socket opened
    too early would stay open and never hear anything again.
    """
    with contextlib.suppress(OSError, WebSocketException):
        ws.settimeout(_HANG_UP_S)
        if ws.connected:
            ws.send_close()
        deadline = time.monotonic() + _HANG_UP_S
        while ws.sock is not None and ws.sock.recv(65536):
            if time.monotonic() > deadline:
                break
    ws.shutdown()
