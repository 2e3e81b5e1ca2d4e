"""Errors on the wire: RFC 9457 problem documents with a stable code."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

_MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error; `extra` are further members of the document."""

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        detail: str,
        *,
        headers: dict[str, str] | None = None,
        **extra: Any,  # noqa: ANN401 - members of a JSON document
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers
        self.extra = extra

    def response(self) -> JSONResponse:
        """Write it out."""
        body = {
            "type": "about:blank",
            "title": self.status.phrase,
            "status": self.status.value,
            "code": self.code,
            "detail": self.detail,
            **self.extra,
        }
        return JSONResponse(
            body, status_code=self.status, headers=self.headers, media_type=_MEDIA_TYPE
        )


def answer_with_problems(app: FastAPI) -> None:
    """Let every error of this app be a problem document."""

    async def problem(_request: Request, error: Exception) -> JSONResponse:
        match error:
            case Problem():
                return error.response()
            case RequestValidationError():
                first = error.errors()[0]
                place = ".".join(str(part) for part in first["loc"][1:]) or "body"
                return Problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY,
                    "invalid_request",
                    f"{place}: {first['msg']}",
                    param=place,
                ).response()
            case HTTPException():
                status = HTTPStatus(error.status_code)
                return Problem(
                    status,
                    status.phrase.lower().replace(" ", "_"),
                    str(error.detail),
                    headers=dict(error.headers or {}),
                ).response()
            case _:
                return Problem(
                    HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error", "The GPU service failed."
                ).response()

    for kind in (Problem, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, problem)
