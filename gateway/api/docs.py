"""The documentation page, its assets served from here where a package brings them."""

from html import escape
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.staticfiles import StaticFiles

from gateway.api.problems import all_errors
from gateway.job_codes import JOB_CODES

DOCS = "/docs"
OPENAPI = "/openapi.json"
ASSETS = "/docs/assets"
ERRORS_PAGE = "/docs/errors"

_FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")


def local_assets() -> Path | None:
    """Find the page's scripts on this machine: many pods reach no content delivery network."""
    spec = find_spec("fastapi_offline")
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "static"
        if all((folder / name).is_file() for name in _FILES):
            return folder
    return None


def add_docs(app: FastAPI) -> None:
    """Add `/docs`."""
    router = APIRouter(include_in_schema=False)
    folder = local_assets()
    if folder is not None:
        app.mount(ASSETS, StaticFiles(directory=folder), name="docs-assets")

    @router.get("/")
    @router.get("/docs/")
    async def to_the_docs_page() -> RedirectResponse:
        """Where a browser that knows only the address is sent."""
        return RedirectResponse("/docs", status_code=303)

    @router.get("/docs")
    async def docs_page(expires: str = "", signature: str = "") -> HTMLResponse:
        """The page on which every call can be tried; the query is a signed link's."""
        signed = {"expires": expires, "signature": signature}
        address = f"{OPENAPI}?{urlencode(signed)}" if expires and signature else OPENAPI
        if folder is None:
            return get_swagger_ui_html(openapi_url=address, title=app.title)
        script, style, icon = (f"{ASSETS}/{name}" for name in _FILES)
        return get_swagger_ui_html(
            openapi_url=address,
            title=app.title,
            swagger_js_url=script,
            swagger_css_url=style,
            swagger_favicon_url=icon,
        )

    @router.get(ERRORS_PAGE)
    async def errors_page() -> HTMLResponse:
        """What the `type` of a problem points to."""
        return HTMLResponse(_errors_page(app.title))

    app.include_router(router)


def _errors_page(title: str) -> str:
    known = {error.code: (error.__doc__ or "").strip() for error in all_errors()}
    rows = "".join(
        f"<dt id={code}><code>{code}</code><dd>{escape(meaning)}"
        for code, meaning in (JOB_CODES | known).items()
    )
    return f"<!doctype html><title>Errors: {escape(title)}</title><h1>Errors</h1><dl>{rows}</dl>"
