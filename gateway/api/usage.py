"""How much a caller keeps here."""

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.problems import documented
from gateway.api.views import as_json
from gateway.errors import Unauthorized


class Usage(BaseModel):
    """What you keep here, in bytes."""

    stored_bytes: int = Field(description="Uploads and results together.")
    uploads_bytes: int
    results_bytes: int = Field(description="Result files that were not removed.")
    limit_bytes: int | None = Field(
        description="`MAX_STORED_MB_PER_CALLER`: nothing new is taken above it. Null: no limit."
    )


def usage_router(context: Context) -> APIRouter:
    """Make `GET /api/usage`."""
    router = APIRouter(tags=["files"])

    @router.get(
        "/api/usage",
        summary="How much you keep here",
        response_model=None,
        responses={
            200: {"model": Usage, "description": "As of now."},
            **documented(Unauthorized),
        },
    )
    async def get_usage() -> Response:
        """Bytes of your uploads and results; thumbnails and removed files do not count."""
        stored = await context.quota.stored(CALLER)
        return as_json(
            Usage(
                stored_bytes=stored.total,
                uploads_bytes=stored.uploads,
                results_bytes=stored.results,
                limit_bytes=context.quota.limit,
            )
        )

    return router
