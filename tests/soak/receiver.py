"""A server that webhooks are sent to, and which checks each one's signature."""

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"the soak's secret, 32 bytes long").decode()


@dataclass
class Received:
    """What came, by event id: the payload, and how often."""

    payloads: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    times: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])


class Receiver:
    """Takes every webhook; an event that comes twice must say the same."""

    def __init__(self) -> None:
        self.received = Received()
        received, lock = self.received, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    _take(received, dict(self.headers.items()), body)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name there
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _take(received: Received, headers: dict[str, str], body: bytes) -> None:
    lowered = {name.lower(): value for name, value in headers.items()}
    event_id = lowered.get("webhook-id", "")
    try:
        Webhook(SECRET).verify(body, lowered)
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        received.wrong.append(f"{event_id}: {error!r}")
        return
    payload = json.loads(body)
    before = received.payloads.setdefault(event_id, payload)
    if before["type"] != payload["type"]:
        received.wrong.append(f"{event_id}: first {before['type']}, then {payload['type']}")
    received.times[event_id] = received.times.get(event_id, 0) + 1
