"""The FastAPI app: rings around it, routes in it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from gateway.api import problems
from gateway.api.access import Access
from gateway.api.background_removal import background_removal_router
from gateway.api.batch_submit import BATCHES_PATH, MAX_BATCH_BODY
from gateway.api.batches import batches_router
from gateway.api.boundary import MAX_BODY, BodyLimit, Boundary
from gateway.api.catalogue import catalogue_router
from gateway.api.context import Context
from gateway.api.docs import ASSETS, add_docs
from gateway.api.files import files_router
from gateway.api.health import health_router
from gateway.api.hooks import HOOKS_PATH, hooks_router
from gateway.api.jobs import jobs_router
from gateway.api.lingering import Lingering
from gateway.api.media import media_router
from gateway.api.media_generate import GENERATE_PATH, largest_form, media_generate_router
from gateway.api.models import models_router
from gateway.api.modes import largest_body, modes_router
from gateway.api.openapi import OPEN_PATHS, add_openapi
from gateway.api.openapi_route import add_openapi_route
from gateway.api.styles import styles_router
from gateway.api.templates import templates_router
from gateway.api.tools import tool_router
from gateway.api.uploads import Served, takes_upload, uploads_router
from gateway.api.usage import usage_router
from gateway.api.views import Views
from gateway.api.webhooks import webhooks_router
from gateway.api.workflows import largest_own_body, workflows_router
from gateway.inputs import UPLOADS_PATH, largest_files
from gateway.own_workflows.tool import OWN, WORKFLOWS_PATH
from gateway.pictures import has_picture
from gateway.runtime import Runtime, build
from gateway.settings import Settings
from gateway.storage.local import SLOTS_PATH


def create_app(settings: Settings, runtime: Runtime | None = None) -> FastAPI:
    """Make the app; what it works with is built from the settings unless it is given."""
    built = runtime or build(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with built.running():
            yield

    app = FastAPI(
        title=settings.api_title,
        version=settings.api_version,
        lifespan=lifespan,
        docs_url=None,
        # a route of ours, which knows callers' own workflows
        openapi_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own spans would carry the query, signatures included.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        generate_unique_id_function=lambda route: route.name,
    )
    problems.install(app)
    views = _views(built.context)
    _add_routes(app, built.context, views)
    _add_rings(app, built.context)
    add_openapi(app, built.context.catalogue.tools)
    add_openapi_route(app, built.context, views)
    return app


def _views(context: Context) -> Views:
    tools = {tool.name: tool for tool in context.catalogue.tools}
    return Views(tools=tools, storage=context.storage, signer=context.signer)


def _add_routes(app: FastAPI, context: Context, views: Views) -> None:
    tools = context.catalogue.tools
    for tool in tools:
        app.include_router(tool_router(tool, context, views))
    app.include_router(catalogue_router(context))
    app.include_router(jobs_router(context, views))
    app.include_router(batches_router(context, views))
    app.include_router(webhooks_router(context))
    app.include_router(models_router(context))
    app.include_router(templates_router(context))
    app.include_router(styles_router(context))
    app.include_router(modes_router(context))
    app.include_router(media_generate_router(context, views))
    app.include_router(media_router(context, views))
    app.include_router(uploads_router(context))
    app.include_router(background_removal_router(context, views))
    app.include_router(usage_router(context))
    app.include_router(workflows_router(context, views))
    app.include_router(
        files_router(
            [
                *(tool.files_path for tool in (*tools, OWN) if tool.files_path is not None),
                UPLOADS_PATH,
            ],
            jobs=Served(jobs=context.jobs, rows=context.intake.rows, direct=context.direct),
            storage=context.storage,
            signer=context.signer,
            key=context.key,
            thumbnails=context.thumbnails,
            redirect=context.settings.serve_files == "redirect",
        )
    )
    app.include_router(hooks_router(context))
    app.include_router(health_router(context))
    add_docs(app)


def _add_rings(app: FastAPI, context: Context) -> None:
    """Put the rings on; the last one added is the outermost."""
    settings = context.settings
    every = (*context.catalogue.tools, OWN)
    files = tuple(f"{tool.files_path}/" for tool in every if tool.files_path)
    files = (*files, f"{UPLOADS_PATH}/")
    # These routes judge signatures themselves: PUT slots have no key at all.
    own_judgement = (*files, SLOTS_PATH, HOOKS_PATH, f"{ASSETS}/")
    by_mode = largest_body(settings)
    inline = {
        path: MAX_BODY + largest_files(tool.params, settings.max_image_size_mb)
        for tool in context.catalogue.tools
        for path in (tool.path, f"{tool.path}/async")
    }

    def is_open(path: str) -> bool:
        return path in OPEN_PATHS or path.startswith(own_judgement)

    def limit_of(method: str, path: str) -> int | None:
        if path.startswith((SLOTS_PATH, HOOKS_PATH)) or takes_upload(method, path):
            return None
        if has_picture(method, path):
            return MAX_BODY + settings.max_image_size_mb * 1024 * 1024
        if path == GENERATE_PATH:
            return largest_form(settings)
        if path == BATCHES_PATH:
            return MAX_BATCH_BODY
        if path.startswith(WORKFLOWS_PATH):
            return largest_own_body(path, settings)
        return by_mode if path == "/generate" else inline.get(path, MAX_BODY)

    app.add_middleware(BodyLimit, limit_of=limit_of)
    app.add_middleware(Access, key=context.key, signer=context.signer, is_open=is_open)
    app.add_middleware(Lingering, applies=takes_upload)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location", "Preference-Applied", "X-Request-Id"],
        )
    app.add_middleware(Boundary)
