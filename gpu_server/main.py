"""The GPU service's application: `create_app`, served by `python -m gpu_server`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from gpu_server.check_routes import checks
from gpu_server.problems import answer_with_problems
from gpu_server.routes import guarded, open_to_all
from gpu_server.service import running_service
from gpu_server.settings import Settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; settings come from the environment when none are given."""
    chosen = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with running_service(chosen) as service:
            app.state.service = service
            yield

    # No pages that would be open without the token: the contract is `protocol.py`.
    app = FastAPI(title="GPU service", lifespan=lifespan, openapi_url=None)
    answer_with_problems(app)
    app.include_router(open_to_all)
    app.include_router(guarded)
    app.include_router(checks)
    return app
