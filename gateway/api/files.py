"""Result files out, by key or by signed link; for runs, files out and in by signature alone."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from gateway.api.problems import documented
from gateway.errors import (
    Conflict,
    Forbidden,
    InternalError,
    NotFound,
    PayloadTooLarge,
    RangeNotSatisfiable,
    StorageFull,
    Unauthorized,
)
from gateway.job import Artifact
from gateway.security.api_keys import Credentials, RequireKey
from gateway.security.signing import Signer
from gateway.storage.base import NoRoom, Storage, StorageError, StoredFile
from gateway.storage.local import SLOTS_PATH, LocalStorage, TooManyBytes

_RANGE = re.compile(r"bytes=\s*(\d{0,19})-(\d{0,19})\s*")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
_LONGEST_NAME = 200
_UNKNOWN_TYPE = "application/octet-stream"
# no other file is ever served under its name
_FOR_EVER = "private, max-age=31536000, immutable"
# What a browser would run as a document of ours is only offered as a download.
_DOCUMENTS = re.compile(r"text/html|text/xml|application/(.*\+)?xml|image/svg\+xml")

FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {_UNKNOWN_TYPE: {}}},
    206: {"description": "The part asked for with `Range`", "content": {_UNKNOWN_TYPE: {}}},
    304: {"description": "Unchanged (`If-None-Match`)"},
    **documented(Unauthorized, Forbidden, NotFound, RangeNotSatisfiable),
}

# The bounds are stated, not checked: whatever does not fit is a 403 or a 404 anyway.
Expires = Annotated[
    str | None,
    Query(
        description="From a signed link: when it ends (Unix time).",
        json_schema_extra={"maxLength": 20},
    ),
]
Signature = Annotated[
    str | None,
    Query(
        description="From a signed link, in place of the key.",
        json_schema_extra={"maxLength": 100},
    ),
]


class ServedFile(Protocol):
    """What must be known of a file to serve it."""

    @property
    def key(self) -> str:
        """Where it lies in storage."""
        ...

    @property
    def filename(self) -> str:
        """What a download is called."""
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


class FileIndex(Protocol):
    """Who knows which file belongs to which job."""

    async def file(self, filename: str) -> Artifact | None:
        """The artifact of that file name."""
        ...

    async def takes_files(self, job_id: str) -> bool:
        """Whether the job is there and has not ended."""
        ...


def files_router(
    paths: Iterable[str], *, jobs: FileIndex, storage: Storage, signer: Signer, key: RequireKey
) -> APIRouter:
    """`GET` and `HEAD` of `<path>/{filename}` for every file route, the slots of local storage."""
    router = APIRouter(tags=["files"])
    for path in dict.fromkeys(paths):
        endpoint = _file_endpoint(path, jobs=jobs, storage=storage, signer=signer, key=key)
        name = "get_file_" + path.strip("/").replace("/", "_")
        for method in ("GET", "HEAD"):
            router.add_api_route(
                path + "/{filename}",
                endpoint,
                methods=[method],
                name=name,
                responses=FILE_RESPONSES,
                response_model=None,
                include_in_schema=method == "GET",
            )
    if isinstance(storage, LocalStorage):
        router.include_router(_slots_router(storage, signer, jobs))
    return router


def _file_endpoint(
    path: str, *, jobs: FileIndex, storage: Storage, signer: Signer, key: RequireKey
) -> Callable[..., Awaitable[Response]]:
    async def get_file(
        request: Request,
        filename: Annotated[
            str,
            Path(
                description="File name, as `url` and `link` of a result end.",
                json_schema_extra={"maxLength": _LONGEST_NAME},
            ),
        ],
        credentials: Credentials,
        expires: Expires = None,
        signature: Signature = None,
    ) -> Response:
        """Return a result file; the key or a signed link opens it.

        `Range`, `If-Range` and `If-None-Match` are understood; the ETag is the file's SHA-256.
        """
        if not key.accepts(credentials):
            if expires is None and signature is None:
                await key(credentials)
            if not signer.valid(request.method, f"{path}/{filename}", expires, signature):
                raise Forbidden("The link has expired or was altered; read the job again.")
        artifact = await jobs.file(filename)
        if artifact is None:
            raise NotFound(f"There is no file {filename[:_LONGEST_NAME]!r}.")
        return await answered(request, artifact, storage)

    return get_file


def _slots_router(storage: LocalStorage, signer: Signer, jobs: FileIndex) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get(SLOTS_PATH + "{key:path}")
    async def get_slot(
        key: str, expires: Expires = None, signature: Signature = None
    ) -> StreamingResponse:
        """Give a run a file that it reads."""
        if not signer.valid("GET", SLOTS_PATH + key, expires, signature):
            raise Forbidden("The link has expired or was altered.")
        stored = await storage.stat(key)
        if stored is None:
            raise NotFound("There is no such file any more.")
        return StreamingResponse(
            await _opened(storage, key, 0, stored.bytes),
            headers={
                "Content-Length": str(stored.bytes),
                "Content-Disposition": "attachment",
                "X-Content-Type-Options": "nosniff",
            },
            media_type=stored.media_type,
        )

    @router.put(SLOTS_PATH + "{key:path}")
    async def put_slot(
        request: Request, key: str, expires: Expires = None, signature: Signature = None
    ) -> Response:
        """Take a file in; the same bytes again change nothing."""
        if not signer.valid("PUT", SLOTS_PATH + key, expires, signature):
            raise Forbidden("The slot has expired or its address was altered.")
        if int(request.headers.get("content-length", 0)) > storage.max_bytes:
            raise _too_large(storage.max_bytes)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = _UNKNOWN_TYPE
        try:
            known = await storage.stat(key)
            stored = await _taken(storage, jobs, key, media_type, request.stream())
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is left to read it; as proxies log it
        return _stored(stored, created=known is None)

    return router


async def _taken(
    storage: LocalStorage,
    jobs: FileIndex,
    key: str,
    media_type: str,
    chunks: AsyncIterator[bytes],
) -> StoredFile:
    if not await jobs.takes_files(_job_of(key)):
        raise _over()
    try:
        stored = await storage.write(key, media_type, chunks)
    except TooManyBytes as error:
        raise _too_large(error.limit) from error
    except NoRoom as error:
        raise StorageFull("The disk is full: the file was not kept.") from error
    except StorageError as error:
        raise InternalError("The file could not be stored.") from error
    if not await _wanted(jobs, key):
        await storage.delete(key)
        raise _over()
    return stored


def _job_of(key: str) -> str:
    return key.rpartition("/")[0].rpartition("/")[2]


async def _wanted(jobs: FileIndex, key: str) -> bool:
    """Whether a file that has just come may stay: its job may have ended while it came."""
    return (
        await jobs.takes_files(_job_of(key)) or await jobs.file(key.rpartition("/")[2]) is not None
    )


def _over() -> Conflict:
    return Conflict("The job has ended: its slots take no more files.")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A file may have at most {limit} bytes.")


def _stored(stored: StoredFile, *, created: bool) -> Response:
    return JSONResponse(
        {"bytes": stored.bytes, "sha256": stored.sha256}, status_code=201 if created else 200
    )


async def answered(
    request: Request, artifact: ServedFile, storage: Storage, *, cached: str = _FOR_EVER
) -> Response:
    """Answer a request for a file: whole, a part of it, or that it is unchanged."""
    etag = f'"{artifact.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": cached,
        "X-Content-Type-Options": "nosniff",
    }
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    kind = "attachment" if _DOCUMENTS.fullmatch(artifact.media_type) else "inline"
    headers["Content-Disposition"] = f'{kind}; filename="{artifact.filename}"'
    headers["Content-Length"] = str(artifact.bytes)
    if request.method == "HEAD":
        if await _stat(storage, artifact) is None:
            raise _gone(artifact.filename)
        return Response(headers=headers, media_type=artifact.media_type)
    part = _part(request.headers, etag, artifact.bytes)
    start, end = part or (0, artifact.bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.bytes}"
        headers["Content-Length"] = str(end - start)
    return StreamingResponse(
        await _opened(storage, artifact.key, start, end),
        status_code=200 if part is None else 206,
        headers=headers,
        media_type=artifact.media_type,
    )


async def _opened(storage: Storage, key: str, start: int, end: int) -> AsyncIterator[bytes]:
    """The bytes, the first piece already read: a file that is gone is a 404, not a torn 200."""
    pieces = storage.read(key, start, end)
    try:
        first = await anext(pieces, b"")
    except KeyError as error:
        raise _gone(key.rpartition("/")[2]) from error
    except StorageError as error:
        raise InternalError("The file could not be read.") from error

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return body()


async def _stat(storage: Storage, artifact: ServedFile) -> StoredFile | None:
    try:
        return await storage.stat(artifact.key)
    except StorageError as error:
        raise InternalError("The file could not be read.") from error


def _gone(filename: str) -> NotFound:
    return NotFound(f"The file {filename!r} is not in storage any more.")


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
