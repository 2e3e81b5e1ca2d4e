"""A GPU service on the wire that does what a test scripts, misbehaviour included."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from gateway.backends.base import Order
from gateway.backends.sidecar import Sidecar
from gateway.job import Call
from gpu_server.protocol import (
    Event,
    Failure,
    OutputFile,
    Progress,
    RunRequest,
    RunState,
    RunStatus,
    Slot,
)
from gpu_server.workflow import Workflow, load_workflows

TOKEN = "a-token-nobody-may-read"
RUN = "01890000-0000-7000-8000-000000000000"
WORKFLOWS = load_workflows(Path(__file__).parents[2] / "workflows")
WORKFLOW = WORKFLOWS["checkpoint"]
CHECKPOINT = "tiny-sd15.ckpt"
FILE = OutputFile(slot="images/0", media_type="image/png", bytes=3, sha256="a" * 64)
BREAK = "break"
"""In a script of events: the connection is cut here."""
Script = list[Event | str]


def problem(status: int, code: str, detail: str = "because") -> JSONResponse:
    return JSONResponse(
        {"title": "x", "status": status, "code": code, "detail": detail},
        status,
        media_type="application/problem+json",
    )


def progress(fraction: float) -> Event:
    return Event(type="progress", progress=Progress(fraction=fraction))


def ended(state: RunState, failure: Failure | None = None, *, executed: bool = True) -> Event:
    status = RunStatus(
        run_id=RUN,
        state=state,
        engine="simulator",
        outputs=[FILE] if state == "completed" else [],
        params={"seed": 7},
        failure=failure,
        executed=executed,
        duration_seconds=1.5,
    )
    return Event.model_validate({"type": state, "status": status})


@dataclass
class Double:
    """A GPU service that does what the test scripted."""

    puts: list[RunRequest] = field(default_factory=list[RunRequest])
    if_match: list[str | None] = field(default_factory=list[str | None])
    """The header of each PUT."""
    deletes: list[str] = field(default_factory=list[str])
    streams: int = 0
    put_answer: Callable[[RunRequest], Response] | None = None
    delete_answer: Callable[[], Response] = lambda: Response(status_code=204)
    events_answer: Callable[[], Response] | None = None
    scripts: list[Script] = field(default_factory=list[Script])
    """One a stream; the last is repeated."""
    silent: bool = False
    """Streams say nothing after their script and stay open."""
    available: bool = True
    readiness: str = "ready"
    token: str = TOKEN
    protocol: list[str] = field(default_factory=lambda: ["v1"])

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def guard(request: Request, call_next: Any) -> Response:
            if request.headers.get("authorization") != f"Bearer {self.token}":
                return problem(401, "unauthorized", "Send the shared token")
            answer: Response = await call_next(request)
            return answer

        app.add_api_route("/runs/{run_id}", self.put, methods=["PUT"])
        app.add_api_route("/runs/{run_id}", self.delete, methods=["DELETE"])
        app.add_api_route("/runs/{run_id}/events", self.events, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/workflows", self.workflows, methods=["GET"])
        return app

    async def put(self, run_id: str, request: Request) -> Response:
        wanted = RunRequest.model_validate_json(await request.body())
        self.puts.append(wanted)
        self.if_match.append(request.headers.get("if-match"))
        if self.put_answer is not None:
            return self.put_answer(wanted)
        return JSONResponse(RunStatus(run_id=run_id, state="queued").model_dump(mode="json"), 201)

    async def delete(self, run_id: str) -> Response:
        self.deletes.append(run_id)
        return self.delete_answer()

    async def events(self) -> Response:
        self.streams += 1
        if self.events_answer is not None:
            return self.events_answer()
        script = self.scripts[min(self.streams, len(self.scripts)) - 1]
        return StreamingResponse(self.lines(script), media_type="text/event-stream")

    async def lines(self, script: Script) -> AsyncIterator[bytes]:
        yield b": still here\n\n"
        for entry in script:
            if isinstance(entry, str):
                raise ConnectionResetError
            data = entry.model_dump_json(exclude_none=True)
            yield f"event: {entry.type}\ndata: {data}\n\n".encode()
        if self.silent:
            await asyncio.Event().wait()

    async def health(self) -> dict[str, Any]:
        return {
            "status": "healthy" if self.available else "degraded",
            "comfyui_available": self.available,
            "service": "gpu_server",
            "version": "1",
            "protocol": self.protocol,
            "engine": "simulator",
            "capacity": 2,
        }

    async def workflows(self) -> dict[str, Any]:
        missing = {"kind": "model", "name": "x.safetensors", "directory": "checkpoints"}
        return {
            "engine": "simulator",
            "workflows": [
                {
                    "name": WORKFLOW.name,
                    "digest": "b" * 64,
                    "readiness": self.readiness,
                    "missing": [missing] if self.readiness == "missing" else [],
                }
            ],
            "installed": {"checkpoints": [CHECKPOINT], "loras": []},
        }


def new_http() -> httpx.AsyncClient:
    """A client as the gateway's runtime makes it."""
    return httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False)


def order(workflow: Workflow = WORKFLOW, slots: tuple[Slot, ...] = ()) -> Order:
    return Order(
        run_id=RUN,
        call=Call(
            workflow=workflow.name,
            digest=workflow.digest,
            params={"prompt": "a lighthouse", "seed": 7, "loras": None},
            outputs=("images/0",),
            prefix="generated",
            timeout_s=60,
        ),
        slots=slots or (Slot(name="images/0", url="http://127.0.0.1:8000/api/slots/x"),),
    )


class Changes:
    """Waits until the backend, having told of a change, is as wanted."""

    def __init__(self, backend: Sidecar) -> None:
        self.count = 0
        self._backend = backend
        self._told = asyncio.Event()
        backend.on_change = self.tell

    def tell(self) -> None:
        self.count += 1
        self._told.set()

    async def until_capacity(self, wanted: int) -> None:
        async with asyncio.timeout(30):
            while self._backend.capacity != wanted:
                self._told.clear()
                await self._told.wait()
