"""The OpenAPI document: FastAPI's own, with problems and the API key made exact."""

from collections.abc import Sequence
from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api.forms import FORM
from gateway.api.problems import MEDIA_TYPE
from gateway.errors import Problem
from gateway.tool import AnyTool

OPEN_PATHS = frozenset(
    {"/", "/health", "/livez", "/readyz", "/docs", "/docs/", "/docs/errors", "/openapi.json"}
)
"""Routes that need no key."""

TAGS = [
    {"name": "tools", "description": "What can be asked for, and whether it can run now."},
    {"name": "jobs", "description": "Every call is a durable job."},
    {"name": "batches", "description": "Many jobs of one tool in one call."},
    {"name": "webhooks", "description": "Who was told of a job that ended."},
    {"name": "models", "description": "Trained models that `model_id` names."},
    {"name": "templates", "description": "Prompts to be used again, each with a picture."},
    {"name": "styles", "description": "What `styleId` stands for."},
    {"name": "workflows", "description": "ComfyUI graphs of your own, each a tool like any other."},
    {"name": "modes", "description": "The first clients' route."},
    {"name": "media", "description": "Media under your own ids: uploaded, or generated."},
    {"name": "files", "description": "Result files, by key or by signed link."},
    {"name": "health", "description": "Open: no key needed."},
]

_DESCRIPTION = """\
Every tool has a route that waits, one that does not (`/async`), one for state and result, and one
for its files. Errors are `application/problem+json` with a stable `code` (`docs/errors.md`). Send
the key as `Authorization: Bearer <key>` where one is configured.
"""

_VALIDATION = ("HTTPValidationError", "ValidationError")


def add_openapi(app: FastAPI, tools: Sequence[AnyTool]) -> None:
    """Make `app.openapi()` answer the finished document, callers' own workflows left out."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app, tools)
        return app.openapi_schema

    app.openapi = openapi


def document(app: FastAPI, tools: Sequence[AnyTool]) -> dict[str, Any]:
    """Make the document of an app."""
    made = get_openapi(
        title=app.title,
        version=app.version,
        description=_DESCRIPTION,
        routes=app.routes,
        tags=[*({"name": t.name, "description": f"{t.summary}."} for t in tools), *TAGS],
    )
    components = cast("dict[str, Any]", made.setdefault("components", {}))
    schemas = cast("dict[str, Any]", components.setdefault("schemas", {}))
    for name in _VALIDATION:
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    components["securitySchemes"] = {
        "ApiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "The key in `GATEWAY_API_KEY`.",
        }
    }
    for path, operations in cast("dict[str, dict[str, Any]]", made["paths"]).items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN_PATHS else [{"ApiKey": []}]
            _problems_only(operation)
            _named_form(operation, schemas)
            _valid_stream(operation)
            for parameter in operation.get("parameters", ()):
                if not parameter.get("required"):
                    _null_default(parameter["schema"])
    for schema in schemas.values():
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            if name not in required:
                _null_default(field)
    _whole_bounds(schemas)
    return made


def _null_default(schema: dict[str, Any]) -> None:
    """Say that leaving it out is null: FastAPI drops a default that is null."""
    if {"type": "null"} in schema.get("anyOf", ()):
        schema.setdefault("default", None)


def _whole_bounds(node: object) -> None:
    """Write an integer's bounds as integers: FastAPI prints 16.0 where 16 was declared."""
    if isinstance(node, dict):
        schema = cast("dict[str, object]", node)
        if schema.get("type") == "integer":
            for bound in ("minimum", "maximum", "multipleOf"):
                value = schema.get(bound)
                if isinstance(value, float):
                    schema[bound] = int(value)
        for value in schema.values():
            _whole_bounds(value)
    elif isinstance(node, list):
        for value in cast("list[object]", node):
            _whole_bounds(value)


def _problems_only(operation: dict[str, Any]) -> None:
    """Replace FastAPI's own 422 by ours, and say what every route may answer."""
    responses = cast("dict[str, Any]", operation["responses"])
    ours = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    stated = responses.get("422")
    if stated is not None and MEDIA_TYPE not in stated.get("content", {}):
        responses["422"] = {
            "description": "`invalid_parameters`: A field is wrong; `errors` names each one.",
            **ours,
        }
    elif stated is not None:
        stated["content"] = ours["content"]
    responses["500"] = {"description": "`internal_error`: a bug of ours.", **ours}


def _named_form(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put a form's schema where FastAPI puts those of bodies it reads itself."""
    body = cast("dict[str, Any]", operation.get("requestBody", {}))
    form = cast("dict[str, Any] | None", body.get("content", {}).get(FORM))
    if form is None or "title" not in form["schema"]:
        return
    name = form["schema"]["title"]
    schemas[name] = {"required": [], **form["schema"]}
    named = {**form, "schema": {"$ref": f"#/components/schemas/{name}"}}
    operation["requestBody"] = {**body, "content": {FORM: named}}


def _valid_stream(operation: dict[str, Any]) -> None:
    """Describe an event stream as 3.1 can: FastAPI writes the `itemSchema` of 3.2 into it."""
    for response in cast("dict[str, dict[str, Any]]", operation["responses"]).values():
        content = cast("dict[str, dict[str, Any]]", response.get("content", {}))
        if "text/event-stream" in content:
            response["description"] = "Server-sent events: `event`, `id` and JSON `data`."
            content["text/event-stream"] = {"schema": {"type": "string"}}
