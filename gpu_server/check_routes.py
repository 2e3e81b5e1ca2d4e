"""What a gateway asks about workflows that callers bring: what nodes take, and what is missing."""

import json
from http import HTTPStatus

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from gpu_server.comfy import ComfyUnavailable
from gpu_server.problems import Problem
from gpu_server.protocol import CheckAnswer, CheckRequest, NodesAnswer, NodesRequest
from gpu_server.routes import Here, message, require_token

checks = APIRouter(dependencies=[Depends(require_token)])


@checks.post("/workflows/check", response_model=CheckAnswer)
async def check_workflows(request: Request, service: Here) -> JSONResponse:
    """Tell how ready ComfyUI is for workflows that are in no files here."""
    wanted = await message(request, CheckRequest)
    checked = await service.catalogue.check(wanted.workflows, refresh=wanted.refresh)
    return JSONResponse(CheckAnswer(workflows=checked).model_dump(mode="json", exclude_none=True))


@checks.post("/nodes", response_model=NodesAnswer)
async def nodes(request: Request, service: Here) -> JSONResponse:
    """Tell what ComfyUI says of node classes now."""
    wanted = await message(request, NodesRequest)
    try:
        object_info = await service.comfy.object_info(refresh=True)
    except ComfyUnavailable:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE, "comfyui_unavailable", "ComfyUI does not answer."
        ) from None
    found = {name: object_info[name] for name in wanted.classes if name in object_info}
    # Packs declare infinite bounds, which JSON has no word for: no bound.
    plain = json.loads(json.dumps(found), parse_constant=lambda _: None)
    return JSONResponse({"nodes": plain})
