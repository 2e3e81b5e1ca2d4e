"""ComfyUI's HTTP and websocket, with as little interpretation as a test can bear."""

import json
import struct
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import websocket

from .graphs import Graph

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One websocket message; a binary frame has the type `binary`."""

    type: str
    data: Json

    @property
    def node(self) -> str | None:
        return self.data.get("node")


class Listener:
    """A websocket of one client id."""

    def __init__(self, url: str, client_id: str) -> None:
        self.client_id = client_id
        address = url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        self._socket = websocket.create_connection(address, timeout=30)

    def next(self, timeout: float = 30) -> Event:
        self._socket.settimeout(timeout)
        message = self._socket.recv()
        if isinstance(message, str):
            content = json.loads(message)
            return Event(content["type"], content["data"])
        kind = struct.unpack(">I", message[:4])[0]
        return Event("binary", {"event": kind, "payload": message[4:]})

    def until(self, done: Callable[[Event], bool], timeout: float = 50) -> list[Event]:
        """Everything up to and including the first event that satisfies `done`."""
        seen: list[Event] = []
        deadline = time.monotonic() + timeout
        while True:
            event = self.next(max(0.01, deadline - time.monotonic()))
            seen.append(event)
            if done(event):
                return seen

    def until_type(self, event_type: str) -> list[Event]:
        return self.until(lambda event: event.type == event_type)

    def until_end(self, prompt_id: str) -> list[Event]:
        """Everything up to `executing` with node null of this prompt: the end of a run."""
        return self.until(
            lambda event: (
                event.type == "executing"
                and event.node is None
                and event.data.get("prompt_id") == prompt_id
            )
        )

    def rest(self, quiet: float = 0.7) -> list[Event]:
        """Everything that arrives until nothing came for `quiet` seconds."""
        seen: list[Event] = []
        try:
            while True:
                seen.append(self.next(quiet))
        except websocket.WebSocketTimeoutException:
            return seen

    def send(self, message: Json) -> None:
        self._socket.send(json.dumps(message))

    def close(self) -> None:
        self._socket.close()


@dataclass
class Comfy:
    """One ComfyUI server and the prompts this suite put into it."""

    url: str
    http: httpx.Client
    version: tuple[int, ...]
    submitted: list[str] = field(default_factory=list[str])

    @contextmanager
    def listen(self, client_id: str | None = None) -> Generator[Listener]:
        """An open websocket whose first `status` is still to be read."""
        listener = Listener(self.url, client_id or uuid.uuid4().hex)
        try:
            yield listener
        finally:
            listener.close()

    def post(self, graph: object, **extra: object) -> httpx.Response:
        """POST /prompt with a prompt id of our own unless `extra` brings one."""
        body = {"prompt": graph, "prompt_id": str(uuid.uuid4()), **extra}
        self.submitted.append(str(body["prompt_id"]))
        return self.http.post("/prompt", json=body)

    def submit(self, graph: Graph, listener: Listener | None = None, **extra: object) -> str:
        """An accepted prompt's id."""
        if listener is not None:
            extra["client_id"] = listener.client_id
        answer = self.post(graph, **extra)
        assert answer.status_code == 200, answer.text
        assert answer.json()["node_errors"] == {}
        return str(answer.json()["prompt_id"])

    def run(self, graph: Graph, **extra: object) -> tuple[list[Event], Json]:
        """Runs to the end: its own events (no `status`) and its history entry."""
        with self.listen() as listener:
            prompt_id = self.submit(graph, listener, **extra)
            events = [e for e in listener.until_end(prompt_id) if e.type != "status"]
        return events, self.history(prompt_id)

    def history(self, prompt_id: str) -> Json:
        """The history entry; empty while there is none."""
        answer = self.http.get(f"/history/{quote(prompt_id, safe='')}")
        entry: Json = answer.json().get(prompt_id, {})
        return entry

    def wait_history(self, prompt_id: str, timeout: float = 30) -> Json:
        deadline = time.monotonic() + timeout
        while not (entry := self.history(prompt_id)):
            assert time.monotonic() < deadline, f"{prompt_id} never reached the history"
            time.sleep(0.02)
        return entry

    def queue(self) -> tuple[list[str], list[str]]:
        """The ids running, and those pending."""
        content = self.http.get("/queue").json()
        running = [item[1] for item in content["queue_running"]]
        return running, [item[1] for item in content["queue_pending"]]

    def view(self, file: Json) -> bytes:
        answer = self.http.get("/view", params=file)
        assert answer.status_code == 200, answer.text
        return answer.content

    def stop_all(self, timeout: float = 20) -> None:
        """Ends whatever the suite left behind, and nothing else."""
        self.http.post("/queue", json={"delete": self.submitted})
        deadline = time.monotonic() + timeout
        while set(self.queue()[0]) & set(self.submitted):
            assert time.monotonic() < deadline, "a prompt could not be interrupted"
            for prompt_id in self.submitted:
                self.http.post("/interrupt", json={"prompt_id": prompt_id})
            time.sleep(0.05)
        self.submitted.clear()


def images(entry: Json) -> list[Json]:
    """Every file dict of the history entry's `images`."""
    return [file for ui in entry["outputs"].values() for file in ui.get("images", [])]
