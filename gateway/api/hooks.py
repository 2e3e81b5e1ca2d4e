"""Where RunPod tells that a job is over; it is told nothing by it that is believed."""

from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from gateway.api.context import Context
from gateway.errors import NotFound
from gateway.security.signing import Signer

HOOKS_PATH: Final = "/api/hooks/"
_RUNPOD: Final = f"{HOOKS_PATH}runpod/"
_READ_BYTES: Final = 64 * 1024


def webhook_path(signer: Signer, run_id: str) -> str:
    """Path of a run's own receiver; nobody can guess it."""
    return f"{_RUNPOD}{run_id}/{signer.hook(run_id)}"


def hooks_router(context: Context) -> APIRouter:
    """Make the receivers; their paths are judged, no key is asked for."""
    router = APIRouter(include_in_schema=False)

    @router.post(_RUNPOD + "{run_id}/{signature}")
    async def runpod_hook(request: Request, run_id: str, signature: str) -> Response:
        """Look how the run's job is: whoever calls says no more than that there may be news."""
        if not context.signer.is_hook(run_id, signature):
            raise NotFound("There is nothing here.")
        await _passed_over(request)
        await context.serverless.look(run_id)
        return Response()

    return router


async def _passed_over(request: Request) -> None:
    """Read the body away, as far as it is a small one: the connection can be used again."""
    read = 0
    try:
        async for chunk in request.stream():
            read += len(chunk)
            if read > _READ_BYTES:
                return
    except ClientDisconnect:
        return
