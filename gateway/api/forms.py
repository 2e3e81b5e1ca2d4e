"""Bodies that are forms: texts and files, checked and refused like any other body.

Files are spooled: beyond 1 MiB they lie on disk until the form is closed.
"""

import errno
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from gateway.api.problems import from_pydantic
from gateway.errors import FieldError, InvalidParameters, StorageFull, UnsupportedMediaType

M = TypeVar("M", bound=BaseModel)

FORM = "multipart/form-data"
_URLENCODED = "application/x-www-form-urlencoded"
MAX_TEXT_KB = 64
"""Most of one text; a prompt of 8000 characters has at most 32 KB."""
_MOST_PARTS = 32
_BAD_REQUEST = 400


def _a_file(value: object) -> UploadFile:
    if not isinstance(value, UploadFile):
        raise PydanticCustomError("file_expected", "must be a file: give the part a file name")
    return value


FormFile = Annotated[
    UploadFile,
    PlainValidator(_a_file),
    WithJsonSchema({"type": "string", "format": "binary"}),
]
"""A file of a form."""


@asynccontextmanager
async def form_of(
    request: Request, model: type[M], *, text_kb: int = MAX_TEXT_KB
) -> AsyncGenerator[M]:
    """Read a form into a model; its files are gone afterwards. `text_kb`: most of one text.

    Raises UnsupportedMediaType, InvalidParameters and StorageFull.
    """
    stated = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if stated not in {FORM, _URLENCODED}:
        raise UnsupportedMediaType(f"Send the body as a form with `Content-Type: {FORM}`.")
    form = await _read(request, text_kb)
    try:
        yield _checked(form, model)
    finally:
        await form.close()


async def _read(request: Request, text_kb: int) -> FormData:
    try:
        return await request.form(
            max_files=_MOST_PARTS, max_fields=_MOST_PARTS, max_part_size=text_kb * 1024
        )
    except HTTPException as error:
        if error.status_code != _BAD_REQUEST:
            raise
        message = f"could not be read as a form: send {FORM}, a text at most {text_kb} KB long"
        raise InvalidParameters(
            [FieldError(field="body", code="form_invalid", message=message)]
        ) from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull("The disk is full: the files of this form were not read.") from error
        raise


def _checked(form: FormData, model: type[M]) -> M:
    values: dict[str, UploadFile | str] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and not value.filename and not value.size:
            continue  # what a browser sends where no file was chosen
        if name in values:
            wrong = FieldError(field=name[:100], code="sent_twice", message="send it once")
            raise InvalidParameters([wrong])
        values[name] = value
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise from_pydantic(error, "") from None


def form_body(model: type[BaseModel], examples: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Build the `openapi_extra` of a route that reads a form; files are left out of the examples.

    `gateway.api.openapi` gives the schema its name.
    """
    content = {
        "schema": model.model_json_schema(ref_template="#/components/schemas/{model}"),
        "examples": {name: {"summary": name, "value": dict(v)} for name, v in examples.items()},
    }
    return {"requestBody": {"required": True, "content": {FORM: content}}}
