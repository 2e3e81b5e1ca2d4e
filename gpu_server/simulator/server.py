"""The simulator as one ASGI application: routes of ComfyUI, bare and under /api."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from gpu_server.simulator import control, files, info, prompts
from gpu_server.simulator.middleware import BodyTooLargeError, Delays, SameOrigin
from gpu_server.simulator.settings import Settings
from gpu_server.simulator.simulation import Simulation

log = logging.getLogger(__name__)

Handler = Callable[[Simulation, Request], Awaitable[Response]]
TROUBLE = "500 Internal Server Error\n\nServer got itself in trouble"

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/prompt", prompts.get_prompt),
    ("POST", "/prompt", prompts.post_prompt),
    ("GET", "/queue", prompts.get_queue),
    ("POST", "/queue", prompts.post_queue),
    ("GET", "/history", prompts.get_history),
    ("POST", "/history", prompts.post_history),
    ("GET", "/history/{prompt_id:path}", prompts.get_history_of),
    ("POST", "/interrupt", prompts.post_interrupt),
    ("POST", "/free", prompts.post_free),
    ("POST", "/upload/image", files.upload_image),
    ("POST", "/upload/mask", files.upload_mask),
    ("GET", "/view", files.view),
    ("GET", "/view_metadata/{folder}", files.view_metadata),
    ("GET", "/object_info", info.object_info),
    ("GET", "/object_info/{class_type:path}", info.object_info_of),
    ("GET", "/system_stats", info.system_stats),
    ("GET", "/features", info.features),
    ("GET", "/models", info.models),
    ("GET", "/models/{folder}", info.model_files),
    ("GET", "/experiment/models/{folder}", info.model_details),
    ("GET", "/embeddings", info.embeddings),
    ("GET", "/internal/folder_paths", info.folder_paths),
    ("GET", "/_sim", control.report),
    ("POST", "/_sim", control.change),
    ("GET", "/", info.start_page),
]


def create_app(directory: Path, settings: Settings, ledger: Path | None = None) -> Starlette:
    """Build the application; the worker and the publish loop run while it does."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        simulation = Simulation(directory, settings, ledger)
        app.state.simulation = simulation
        publishing = asyncio.create_task(simulation.sockets.publish())
        publishing.add_done_callback(_die_with_publisher)
        simulation.start()
        yield
        simulation.stop()
        publishing.cancel()

    app = Starlette(routes=_routes(), lifespan=lifespan)
    app.router.redirect_slashes = False
    app.add_middleware(Delays)
    app.add_middleware(SameOrigin)
    return app


def _die_with_publisher(publishing: asyncio.Task[None]) -> None:
    # ComfyUI's process ends when its publish loop does (an unhashable client id does it).
    if not publishing.cancelled():
        log.error("the publish loop died", exc_info=publishing.exception())
        os.kill(os.getpid(), signal.SIGTERM)


def _routes() -> list[BaseRoute]:
    routes: list[BaseRoute] = []
    for prefix in ("", "/api"):
        routes += [
            Route(prefix + path, _endpoint(handler), methods=[method])
            for method, path, handler in ROUTES
            if prefix == "" or path not in {"/", "/_sim", "/internal/folder_paths"}
        ]
        routes.append(WebSocketRoute(f"{prefix}/ws", _websocket))
    return routes


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request.app.state.simulation, request)
        except BodyTooLargeError as error:
            return PlainTextResponse(str(error), 413)
        except Exception:
            # ComfyUI answers bad JSON and worse like this: in plain text, with nothing to go by.
            log.exception("error handling %s %s", request.method, request.url.path)
            return PlainTextResponse(TROUBLE, 500)

    return endpoint


async def _websocket(socket: WebSocket) -> None:
    simulation: Simulation = socket.app.state.simulation
    await simulation.sockets.serve(
        socket, simulation.queue.remaining, lambda: info.feature_flags(simulation)
    )


def uvicorn_options() -> dict[str, Any]:
    """Return what uvicorn needs to behave like ComfyUI's server."""
    return {
        "ws": "gpu_server.simulator.sockets:DroppableProtocol",
        "ws_ping_interval": None,
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": 1,
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
    }
