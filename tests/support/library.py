"""Forms with a picture, as templates and styles take them, and what is left of them."""

import functools
import io
from typing import Any

import httpx
from PIL import Image

from tests.support.gateway import Gateway


@functools.cache
def bytes_of(colour: str, kind: str = "PNG", side: int = 32) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(file, kind)
    return file.getvalue()


def file_fields(document: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Fields of a form that are files, as the OpenAPI document describes it."""
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    return [
        name
        for name, field in schema["properties"].items()
        if "binary" in {part.get("format") for part in (field, *field.get("anyOf", ()))}
    ]


async def form(
    served: Gateway,
    method: str,
    path: str,
    texts: dict[str, Any],
    picture: bytes | None = None,
) -> httpx.Response:
    """Send a form, always as multipart/form-data."""
    parts: list[tuple[str, Any]] = [(name, (None, text)) for name, text in texts.items()]
    if picture is not None:
        parts.append(("image", ("its-name.bin", picture, "application/octet-stream")))
    # without any part httpx would send no form at all
    return await served.http.request(method, path, files=parts or [("", (None, ""))])


def files_in(served: Gateway) -> set[str]:
    """Every file there is in storage."""
    root = served.context.settings.files
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def problem(answer: httpx.Response) -> tuple[int, list[tuple[str, str]]]:
    """Status of a refusal, and the fields and codes it names."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    return answer.status_code, [(e["field"], e["code"]) for e in answer.json().get("errors", [])]
