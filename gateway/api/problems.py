"""Every error as `application/problem+json`, and how each is documented per route."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from gateway.db import DatabaseUnavailable
from gateway.errors import (
    DeadlineUnreachable,
    FieldError,
    GatewayError,
    IdempotencyKeyReused,
    InternalError,
    InvalidParameters,
    MethodNotAllowed,
    ModelNotInstalled,
    NoBackend,
    NotFound,
    NotReady,
    PayloadTooLarge,
    PolicyViolation,
    QueueFull,
    QuotaExceeded,
    StorageFull,
    Unauthorized,
    Unavailable,
    UnknownBackend,
    UnknownVariant,
    UnsupportedMediaType,
    UsageError,
)
from gateway.media import NO_CONTROL_CHARACTERS, plain
from gateway.storage.base import StorageError

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
MAX_TEXT = 300
MAX_FIELD = 100

SUBMIT_ERRORS = (
    Unauthorized,
    PayloadTooLarge,
    UnsupportedMediaType,
    InvalidParameters,
    UnknownVariant,
    UnknownBackend,
    ModelNotInstalled,
    PolicyViolation,
    IdempotencyKeyReused,
    QuotaExceeded,
    NotReady,
    NoBackend,
    QueueFull,
    DeadlineUnreachable,
    StorageFull,
)
"""What a call that makes jobs may answer, whichever route it comes by."""

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

logger = logging.getLogger(__name__)


def rendered(error: GatewayError, path: str) -> Response:
    """Answer an error of ours."""
    problem = error.problem().model_copy(update={"instance": path[:MAX_TEXT]})
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return Response(
        problem.model_dump_json(exclude_none=True),
        status_code=problem.status,
        headers=headers,
        media_type=MEDIA_TYPE,
    )


def install(app: FastAPI) -> None:
    """Make every error of the app a problem."""
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(DatabaseUnavailable, _unavailable)
    app.add_exception_handler(StorageError, _unavailable)


def documented(*errors: type[GatewayError]) -> dict[int | str, dict[str, Any]]:
    """Build the `responses=` entries of a route that answers these errors."""
    grouped: dict[int, list[type[GatewayError]]] = {}
    for error in errors:
        grouped.setdefault(error.status, []).append(error)
    return {
        status: {
            "description": "; ".join(f"`{e.code}`: {(e.__doc__ or '').strip()}" for e in group),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, group in grouped.items()
    }


def from_pydantic(error: ValidationError, prefix: str) -> InvalidParameters:
    """Translate a validation we ran ourselves, its fields below `prefix`."""
    details = error.errors(include_url=False, include_context=True)
    return InvalidParameters(list(_fields(details, (prefix,) if prefix else ())))


async def _gateway_error(request: Request, error: Exception) -> Response:
    known = cast("GatewayError", error)
    return rendered(known, request.url.path)


async def _unavailable(request: Request, error: Exception) -> Response:
    logger.warning("%s", error)
    what = "The storage" if isinstance(error, StorageError) else "The database"
    said = Unavailable(f"{what} does not answer at the moment: try again shortly.")
    return rendered(said, request.url.path)


async def _validation_error(request: Request, error: Exception) -> Response:
    known = cast("RequestValidationError", error)
    details = cast("Sequence[ErrorDetails]", known.errors())
    if _wrong_media_type(request, details):
        said = UnsupportedMediaType("Send the body as JSON with `Content-Type: application/json`.")
        return rendered(said, request.url.path)
    return rendered(InvalidParameters(list(_fields(details, ()))), request.url.path)


async def _http_exception(request: Request, error: Exception) -> Response:
    known = cast("HTTPException", error)
    return rendered(_translated(known, request), request.url.path)


def _translated(error: HTTPException, request: Request) -> GatewayError:
    match error.status_code:
        case 404:
            return NotFound("There is no such route; GET /docs lists them.")
        case 405:
            return MethodNotAllowed(request.method, _methods(request))
        case 413:
            return PayloadTooLarge(error.detail)
        case 400:
            message = "could not be read as JSON: send one JSON object in UTF-8"
            return InvalidParameters(
                [FieldError(field="body", code="json_invalid", message=message)]
            )
        case _:
            logger.error("an HTTPException of status %s was not expected", error.status_code)
            return InternalError("The request could not be carried out.")


def _methods(request: Request) -> list[str]:
    """List the methods of a path: a route knows its own alone, and several may share the path."""
    scope: dict[str, Any] = {
        "type": "http",
        "path": request.scope["path"],
        "root_path": "",
        "headers": [],
    }
    # A mount takes every method for itself; the only one here serves files.
    routes = [r for r in cast("FastAPI", request.app).routes if not isinstance(r, Mount)]
    found = [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return found or ["GET", "HEAD"]


def _wrong_media_type(request: Request, details: Sequence[ErrorDetails]) -> bool:
    """FastAPI leaves a body of another type unparsed, which then fails as a whole."""
    if not any(tuple(d["loc"]) == ("body",) and d["type"] != "missing" for d in details):
        return False
    stated = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return not (stated == "application/json" or stated.endswith("+json"))


def _fields(details: Sequence[ErrorDetails], prefix: tuple[str, ...]) -> Iterator[FieldError]:
    for detail in details[:MAX_ERRORS]:
        yield FieldError(
            field=_field_name(detail, prefix)[:MAX_FIELD],
            code=detail["type"],
            message=_message(detail)[:MAX_TEXT],
        )


def _field_name(detail: ErrorDetails, prefix: tuple[str, ...]) -> str:
    parts = [str(part) for part in detail["loc"]]
    if detail["type"] == "json_invalid":
        return "body"
    if not prefix and len(parts) > 1 and parts[0] in {"body", "query", "path", "header"}:
        parts = parts[1:]
    return ".".join((*prefix, *parts)) or "body"


def _not_a_time(_: Mapping[str, Any]) -> str:
    return "must be an RFC 3339 time such as 2026-01-31T12:00:00Z"


def _too_short(context: Mapping[str, Any]) -> str:
    least = context["min_length"]
    return "must not be empty" if least == 1 else f"must be at least {least} characters long"


def _mismatch(context: Mapping[str, Any]) -> str:
    if context["pattern"] == NO_CONTROL_CHARACTERS:
        return "must not contain control characters"
    return f"must match {context['pattern']}"


_MESSAGES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "is required",
    "extra_forbidden": lambda _: "is not a parameter here: remove it",
    "greater_than_equal": lambda c: f"must be at least {plain(c['ge'])}",
    "greater_than": lambda c: f"must be more than {plain(c['gt'])}",
    "less_than_equal": lambda c: f"must be at most {plain(c['le'])}",
    "less_than": lambda c: f"must be less than {plain(c['lt'])}",
    "string_too_long": lambda c: f"must be at most {c['max_length']} characters long",
    "string_too_short": _too_short,
    "too_long": lambda c: f"must have at most {c['max_length']} items",
    "too_short": lambda c: f"must have at least {c['min_length']} items",
    "datetime_from_date_parsing": _not_a_time,
    "datetime_parsing": _not_a_time,
    "timezone_aware": _not_a_time,
    "string_pattern_mismatch": _mismatch,
    "string_type": lambda _: "must be text",
    "string_unicode": lambda _: "must be valid Unicode text",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_parsing_size": lambda _: "must be a smaller number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "float_parsing": lambda _: "must be a number",
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "tuple_type": lambda _: "must be a list",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be an object",
    "model_type": lambda _: "must be an object",
    "model_attributes_type": lambda _: "must be a JSON object",
    "literal_error": lambda c: f"must be one of {c['expected']}",
    # Python ends some of them with "at", and the place is named here.
    "json_invalid": lambda c: f"is not valid JSON: {str(c['error']).removesuffix(' at')}",
}


def _message(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    known = _MESSAGES.get(detail["type"])
    if known is None:
        return detail["msg"]
    text = known(context)
    if detail["type"] == "json_invalid" and len(detail["loc"]) > 1:
        return f"{text} at character {detail['loc'][1]}"
    return text


def all_errors() -> list[type[GatewayError]]:
    """List every error a caller can meet, in the order of the tree."""

    def below(parent: type[GatewayError]) -> Iterator[type[GatewayError]]:
        for child in parent.__subclasses__():
            yield child
            yield from below(child)

    named = [error for error in below(GatewayError) if "code" in vars(error)]
    return [error for error in named if error is not UsageError]
