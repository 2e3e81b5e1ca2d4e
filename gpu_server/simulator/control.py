"""`/_sim`: what tells the simulator from ComfyUI, reports its counts and turns its knobs."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpu_server import __version__
from gpu_server.simulator import COMFYUI_VERSION
from gpu_server.simulator.middleware import json_body
from gpu_server.simulator.settings import SettingsError
from gpu_server.simulator.simulation import Simulation

ACTIONS = ("reset", "lose_queue", "drop_sockets")


def _state(simulation: Simulation) -> dict[str, Any]:
    counts, sockets = simulation.counts, simulation.sockets
    return {
        "simulator": True,
        "version": __version__,
        "comfyui_version": COMFYUI_VERSION,
        "worker_alive": simulation.worker.alive,
        "queue_remaining": simulation.queue.remaining(),
        "settings": simulation.knobs.current.model_dump(mode="json"),
        "counts": {
            "prompts": counts.prompts,
            "executions": counts.executions,
            "uploads": counts.uploads,
            "connections": sockets.connections,
            "open_connections": sockets.open_now,
        },
        "executed_ids": list(counts.executed_ids),
        "executions_s": list(counts.executions_s),
    }


async def report(simulation: Simulation, _: Request) -> Response:
    """Report settings and counts."""
    return JSONResponse(_state(simulation))


async def change(simulation: Simulation, request: Request) -> Response:
    """Change settings and carry out actions; what is not named stays as it is."""
    try:
        changes = await json_body(request, simulation.knobs.current.max_upload_size)
    except json.JSONDecodeError:
        return _wrong("the body is not JSON")
    if not isinstance(changes, dict):
        return _wrong("the body must be an object of settings and actions")
    settings: dict[str, Any] = dict(changes)  # pyright: ignore[reportUnknownArgumentType] - JSON
    actions = {name: settings.pop(name, False) for name in ACTIONS}
    wrong = [name for name, value in actions.items() if not isinstance(value, bool)]
    if wrong:
        return _wrong(f"{wrong[0]}: must be true or false")
    if actions["reset"]:
        simulation.knobs.replace(simulation.initial)
    try:
        simulation.knobs.update(settings)
    except SettingsError as error:
        return _wrong(str(error))
    if actions["reset"] or actions["lose_queue"]:
        simulation.lose_queue()
    if actions["drop_sockets"]:
        simulation.sockets.drop_all()
    # A worker that waits for prompts must notice that it is to be wedged.
    simulation.queue.wake()
    return JSONResponse(_state(simulation))


def _wrong(what: str) -> Response:
    return JSONResponse({"error": what}, status_code=422)
