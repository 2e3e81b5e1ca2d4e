"""Routes around the queue: submit, look, cancel, forget."""

import contextlib
import json
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpu_server.simulator.middleware import json_body
from gpu_server.simulator.simulation import Simulation
from gpu_server.simulator.validation import Outcome, validate


async def _json(simulation: Simulation, request: Request) -> Any:  # noqa: ANN401 - JSON
    return await json_body(request, simulation.knobs.current.max_upload_size)


def _members(posted: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """Return an object's members; a list or a text has none, anything else is an error."""
    if isinstance(posted, list | str):
        return {}
    return dict(posted)


async def get_prompt(simulation: Simulation, _: Request) -> Response:
    """Return how many prompts run or wait."""
    return JSONResponse({"exec_info": {"queue_remaining": simulation.queue.remaining()}})


async def post_prompt(simulation: Simulation, request: Request) -> Response:
    """Check a prompt and queue it."""
    posted = _members(await _json(simulation, request))
    number = _number(simulation, posted)
    if "prompt" not in posted:
        return _refused({"type": "no_prompt", "message": "No prompt provided"})
    prompt_id = str(posted.get("prompt_id", uuid4()))
    outcome = validate(
        posted["prompt"], posted.get("partial_execution_targets"), simulation.folders
    )
    extra_data = posted.get("extra_data", {})
    if "client_id" in posted:
        extra_data["client_id"] = posted["client_id"]
    if outcome.error is not None:
        return JSONResponse(
            {"error": outcome.error, "node_errors": outcome.node_errors}, status_code=400
        )
    if simulation.knobs.take("partial_reject"):
        outcome = _partly_rejected(posted["prompt"], outcome)
    simulation.counts.prompts += 1
    simulation.queue.put((number, prompt_id, posted["prompt"], extra_data, outcome.outputs))
    return JSONResponse(
        {"prompt_id": prompt_id, "number": number, "node_errors": outcome.node_errors}
    )


def _number(simulation: Simulation, posted: dict[str, Any]) -> float:
    if "number" in posted:
        return float(posted["number"])
    number = simulation.next_number
    simulation.next_number += 1
    return -number if posted.get("front") else number


def _refused(error: dict[str, Any]) -> Response:
    full: dict[str, Any] = {**error, "details": error["message"], "extra_info": {}}
    return JSONResponse({"error": full, "node_errors": {}}, status_code=400)


def _partly_rejected(graph: dict[str, Any], outcome: Outcome) -> Outcome:
    """Answer as if the first output had a fault; it is ignored when another one is left."""
    faulty = outcome.outputs[0]
    reason: dict[str, Any] = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "simulated fault",
        "extra_info": {},
    }
    errors: dict[str, Any] = {
        "errors": [reason],
        "dependent_outputs": [faulty],
        "class_type": graph[faulty]["class_type"],
    }
    outputs = outcome.outputs[1:] or outcome.outputs
    return Outcome(outputs, None, {**outcome.node_errors, faulty: errors})


async def get_queue(simulation: Simulation, _: Request) -> Response:
    """Return running and pending prompts."""
    return JSONResponse(simulation.queue.listing())


async def post_queue(simulation: Simulation, request: Request) -> Response:
    """Drop pending prompts."""
    posted = _members(await _json(simulation, request))
    if posted.get("clear"):
        simulation.queue.clear()
    simulation.queue.delete(posted.get("delete", []))
    return Response()


async def get_history(simulation: Simulation, request: Request) -> Response:
    """Return finished prompts."""
    max_items = request.query_params.get("max_items")
    offset = request.query_params.get("offset")
    return JSONResponse(
        simulation.queue.histories(
            None if max_items is None else int(max_items), -1 if offset is None else int(offset)
        )
    )


async def get_history_of(simulation: Simulation, request: Request) -> Response:
    """Return one finished prompt, or an empty object."""
    return JSONResponse(simulation.queue.history(request.path_params["prompt_id"]))


async def post_history(simulation: Simulation, request: Request) -> Response:
    """Forget finished prompts."""
    posted = _members(await _json(simulation, request))
    if posted.get("clear"):
        simulation.queue.forget_all()
    simulation.queue.forget(posted.get("delete", []))
    return Response()


async def post_interrupt(simulation: Simulation, request: Request) -> Response:
    """Stop what runs; with a prompt id only if it is that one."""
    posted: Any = {}
    with contextlib.suppress(json.JSONDecodeError):
        posted = await _json(simulation, request)
    prompt_id = posted.get("prompt_id")
    if not prompt_id or simulation.queue.is_running(prompt_id):
        simulation.interrupt.ask()
    return Response()


async def post_free(simulation: Simulation, request: Request) -> Response:
    """Ask the worker to free memory before its next prompt."""
    posted = await _json(simulation, request)
    for name in ("unload_models", "free_memory"):
        if posted.get(name, False):
            simulation.queue.set_flag(name)
    return Response()
