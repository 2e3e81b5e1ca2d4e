"""`/openapi.json`: the document, with callers' own workflows for whoever may see them."""

import asyncio
import json
import logging
from typing import Any, cast

from fastapi import FastAPI, Request, Response

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.docs import OPENAPI
from gateway.api.openapi import document
from gateway.api.tools import tool_router
from gateway.api.views import Views
from gateway.db import DatabaseUnavailable
from gateway.own_workflows.registry import LEAST_KEPT, OwnWorkflow
from gateway.security.api_keys import Credentials
from gpu_server.lru import Lru

logger = logging.getLogger(__name__)

Document = dict[str, Any]


def add_openapi_route(app: FastAPI, context: Context, views: Views) -> None:
    """Add the route; each version of a workflow is described once."""
    parts = _Parts(context, views)

    @app.get(OPENAPI, include_in_schema=False)
    async def openapi(request: Request, credentials: Credentials) -> Response:
        """Everything that can be called; a stranger sees nobody's workflows."""
        query = request.query_params
        expires, signature = query.get("expires"), query.get("signature")
        known = context.key.accepts(credentials) or context.signer.valid(
            "GET", OPENAPI, expires, signature
        )
        own = await _current(context) if known else ()
        content = await asyncio.to_thread(_whole, app, parts, own)
        headers = {"Cache-Control": "private, no-cache"}
        return Response(content, headers=headers, media_type="application/json")


async def _current(context: Context) -> tuple[OwnWorkflow, ...]:
    try:
        current = await context.own.current()
    except DatabaseUnavailable:
        logger.warning("the documentation is without own workflows: the database does not answer")
        return ()
    return tuple(own for own in current if own.head.caller == CALLER)


def _whole(app: FastAPI, parts: "_Parts", own: tuple[OwnWorkflow, ...]) -> bytes:
    made: Document = app.openapi()
    if own:
        found = [parts.of(one) for one in own]
        components = cast("Document", made["components"])
        schemas = {
            name: one for part in found for name, one in part["components"]["schemas"].items()
        }
        made = {
            **made,
            "paths": made["paths"]
            | {path: one for part in found for path, one in part["paths"].items()},
            # what the tools have in common is described by the document itself
            "components": {**components, "schemas": schemas | components["schemas"]},
        }
    return json.dumps(made).encode()


class _Parts:
    """What the document says of each workflow."""

    def __init__(self, context: Context, views: Views) -> None:
        self._context = context
        self._views = views
        most = max(LEAST_KEPT, context.settings.own_workflows_max)
        self._known: Lru[tuple[str, int], Document] = Lru(most)

    def of(self, own: OwnWorkflow) -> Document:
        """Describe one, as if it were a tool of the catalogue."""
        key = (own.head.name, own.head.version)
        known = self._known.get(key)
        if known is None:
            side = FastAPI(openapi_url=None, generate_unique_id_function=lambda route: route.name)
            side.include_router(tool_router(own.tool, self._context, self._views))
            known = document(side, ())
            self._known.keep(key, known)
        return known
