"""How files in storage are answered with: whole or in part, small, to save, or from elsewhere."""

import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Protocol

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from gateway.api.disposition import disposition
from gateway.api.problems import documented
from gateway.errors import (
    FieldError,
    Forbidden,
    InvalidParameters,
    NotFound,
    RangeNotSatisfiable,
    Unauthorized,
    Unavailable,
)
from gateway.storage.base import Storage, StorageError
from gateway.storage.pieces import closing
from gateway.thumbnails.store import FIELD, SIDES, SMALLEST, Thumbnails

UNKNOWN_TYPE = "application/octet-stream"
FOR_EVER = "private, max-age=31536000, immutable"
"""For what is served under a name that no other file ever has."""
_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*")
_LINK_LIFE = timedelta(minutes=15)
# a redirect that is kept must not outlive the address it leads to
_REDIRECT_CACHED = "private, max-age=600"
_LONGEST_NAME = 200
_OWN_NAME = frozenset({"", "1", "true"})

FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {UNKNOWN_TYPE: {}}},
    206: {"description": "The part asked for with `Range`", "content": {UNKNOWN_TYPE: {}}},
    304: {"description": "Unchanged (`If-None-Match`)"},
    307: {"description": "The file lies at `Location`, for some minutes (`SERVE_FILES`)"},
    **documented(
        Unauthorized, Forbidden, NotFound, RangeNotSatisfiable, InvalidParameters, Unavailable
    ),
}

Width = Annotated[
    int | None,
    Query(
        alias=FIELD,
        ge=SMALLEST,
        le=SIDES[-1],
        description="Answer with a WebP that fits this many pixels each way, rounded up to "
        f"{', '.join(map(str, SIDES[:-1]))} or {SIDES[-1]}; never enlarged, transparency kept. Of "
        "a video it is the picture at 0.1 s. Pictures and videos only.",
    ),
]
# The bound is stated, not checked: a longer name is cut.
Download = Annotated[
    str | None,
    Query(
        description="`1`: offer the file for saving under its own name; anything else is the name "
        "to save it under. What cannot be in a file name is replaced, the ending is the file's.",
        json_schema_extra={"maxLength": 1000},
    ),
]


class ServedFile(Protocol):
    """What must be known of a file to serve it; one with a `name` is saved under that."""

    @property
    def key(self) -> str:
        """Where it lies in storage."""
        ...

    @property
    def filename(self) -> str:
        """What it is called here."""
        ...

    @property
    def media_type(self) -> str:
        """What it is."""
        ...

    @property
    def bytes(self) -> int:
        """Its length."""
        ...

    @property
    def sha256(self) -> str:
        """Its ETag."""
        ...


class TornFile(Exception):
    """The storage gave fewer bytes than were announced: the connection is broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Answers requests for files of one storage."""

    storage: Storage
    thumbnails: Thumbnails | None = None
    redirect: bool = False
    """Whether callers are sent to a remote store's own address."""

    async def answer(
        self,
        request: Request,
        file: ServedFile,
        *,
        width: int | None = None,
        download: str | None = None,
        cached: str = FOR_EVER,
    ) -> Response:
        """Answer with a file or its thumbnail: whole, a part, or that it is unchanged.

        Raises GatewayError, StorageError.
        """
        if width is None:
            return await self._answer(request, file, _named(file, download), cached)
        if self.thumbnails is None:
            error = FieldError(field=FIELD, code="no_thumbnail", message="there are none here")
            raise InvalidParameters([error])
        small = await self.thumbnails.of(file, width)
        try:
            return await self._answer(request, small, _named(file, download, small), cached)
        except NotFound:
            # lost, but not forgotten: the file it was made of may well be there
            await self.thumbnails.forget(small)
            small = await self.thumbnails.of(file, width)
            return await self._answer(request, small, _named(file, download, small), cached)

    async def _answer(
        self, request: Request, file: ServedFile, named: str, cached: str
    ) -> Response:
        etag = f'"{file.sha256}"'
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": cached,
            "X-Content-Type-Options": "nosniff",
        }
        if _names(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        headers["Content-Disposition"] = named
        headers["Content-Length"] = str(file.bytes)
        if request.method == "HEAD":
            if await self.storage.stat(file.key) is None:
                raise _gone(file.filename)
            return Response(headers=headers, media_type=file.media_type)
        if self.redirect and self.storage.is_remote:
            return self._redirected(file, named, cached)
        part = _part(request.headers, etag, file.bytes)
        start, end = part or (0, file.bytes)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
            headers["Content-Length"] = str(end - start)
        return StreamingResponse(
            await opened(self.storage, file.key, start, end),
            status_code=200 if part is None else 206,
            headers=headers,
            media_type=file.media_type,
        )

    def _redirected(self, file: ServedFile, named: str, cached: str) -> Response:
        return Response(
            status_code=307,
            headers={
                "Location": self.storage.link(file.key, _LINK_LIFE, disposition=named),
                "Cache-Control": _REDIRECT_CACHED if cached == FOR_EVER else cached,
                "X-Content-Type-Options": "nosniff",
            },
        )


async def opened(storage: Storage, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
    """The bytes, the first piece already read: a file that is gone is a 404, not a torn 200.

    Raises NotFound, StorageError; the generator raises StorageError and TornFile.
    """
    pieces = storage.read(key, start, end)
    try:
        first = await anext(pieces, b"")
    except KeyError as error:
        raise _gone(key.rpartition("/")[2]) from error
    if end > start and not first:
        raise StorageError("the file is empty that is to be read")

    async def body() -> AsyncGenerator[bytes]:
        async with closing(pieces):
            left = end - start - len(first)
            yield first
            async for piece in pieces:
                left -= len(piece)
                yield piece
        if left > 0:
            # the length was announced: a client must not take this for the whole file
            raise TornFile(f"{key}: {left} bytes are missing")

    return body()


def _named(file: ServedFile, download: str | None, small: ServedFile | None = None) -> str:
    shown = small or file
    label = getattr(file, "name", None)
    own = label if isinstance(label, str) and label else file.filename
    name = own if download is None or download.lower() in _OWN_NAME else download
    filename = shown.filename if small is None else _renamed(file.filename, small.filename)
    if small is not None and name is own:
        name = _renamed(own, small.filename)
    return disposition(
        name, filename=filename, media_type=shown.media_type, attachment=download is not None
    )


def _renamed(name: str, like: str) -> str:
    """A name with another's ending."""
    stem = name[: name.rfind(".")] if "." in name[1:] else name
    return stem + like[like.rfind(".") :]


def _gone(filename: str) -> NotFound:
    return NotFound(f"The file {filename[:_LONGEST_NAME]!r} is not in storage any more.")


def _names(if_none_match: str | None, etag: str) -> bool:
    """Whether If-None-Match names this file (weak comparison, RFC 9110 §13.1.2)."""
    if if_none_match is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


def _part(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of the one range asked for; None = the whole file.

    Several ranges, other units and malformed ones are ignored, as RFC 9110 §14.2 allows.
    """
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or headers.get("if-range", etag) != etag:
        return None
    first, last = asked.groups()
    if not first and not last:
        return None
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start = int(first)
        end = min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(size)
    return start, end
