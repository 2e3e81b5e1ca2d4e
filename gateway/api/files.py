"""Files out, by key or by signed link; for runs, files out and in by signature alone."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Annotated, Protocol, runtime_checkable

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from gateway.api.serving import (
    FILE_RESPONSES,
    UNKNOWN_TYPE,
    Download,
    ServedFile,
    Serving,
    Width,
    opened,
)
from gateway.errors import (
    Conflict,
    Forbidden,
    InternalError,
    NotFound,
    PayloadTooLarge,
    StorageFull,
)
from gateway.receipts import LARGEST as LARGEST_RECEIPT
from gateway.receipts import is_receipt
from gateway.security.api_keys import Credentials, RequireKey
from gateway.security.signing import Signer
from gateway.storage.base import NoRoom, Storage, StorageError, StoredFile
from gateway.storage.local import SLOTS_PATH, LocalStorage, TooManyBytes
from gateway.thumbnails.store import Thumbnails

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}")
_LONGEST_NAME = 200

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


class FileIndex(Protocol):
    """Who knows which file belongs to which job."""

    async def file(self, filename: str) -> ServedFile | None:
        """The result or upload of that file name."""
        ...

    async def takes_files(self, job_id: str) -> bool:
        """Whether the job is there and has not ended."""
        ...


@runtime_checkable
class AnnouncedLengths(Protocol):
    """Who knows how long a file is that is to come."""

    async def most_bytes(self, job_id: str) -> int | None:
        """Bytes of the file that may go into that folder; None = as many as the storage takes."""
        ...


def files_router(
    paths: Iterable[str],
    *,
    jobs: FileIndex,
    storage: Storage,
    signer: Signer,
    key: RequireKey,
    thumbnails: Thumbnails | None = None,
    redirect: bool = False,
) -> APIRouter:
    """`GET` and `HEAD` of `<path>/{filename}` for every file route, the slots of local storage."""
    serving = Serving(storage=storage, thumbnails=thumbnails, redirect=redirect)
    router = APIRouter(tags=["files"])
    for path in dict.fromkeys(paths):
        endpoint = _file_endpoint(path, jobs=jobs, serving=serving, signer=signer, key=key)
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
    path: str, *, jobs: FileIndex, serving: Serving, signer: Signer, key: RequireKey
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
        *,
        expires: Expires = None,
        signature: Signature = None,
        width: Width = None,
        download: Download = None,
    ) -> Response:
        """Return a file; the key or a signed link opens it.

        `Range`, `If-Range` and `If-None-Match` are understood; the ETag is the file's SHA-256.
        """
        if not key.accepts(credentials):
            if expires is None and signature is None:
                await key(credentials)
            if not signer.valid(request.method, f"{path}/{filename}", expires, signature):
                raise Forbidden("The link has expired or was altered; read the job again.")
        file = await jobs.file(filename)
        if file is None:
            raise NotFound(f"There is no file {filename[:_LONGEST_NAME]!r}.")
        return await serving.answer(request, file, width=width, download=download)

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
            await opened(storage, key, 0, stored.bytes),
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
        most = await _most_bytes(storage, jobs, key)
        if int(request.headers.get("content-length", 0)) > most:
            raise _too_large(most)
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not _MEDIA_TYPE.fullmatch(media_type):
            media_type = UNKNOWN_TYPE
        try:
            known = await storage.stat(key)
            stored = await _taken(storage, jobs, key, media_type, _bounded(request.stream(), most))
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is left to read it; as proxies log it
        return _stored(stored, created=known is None)

    return router


async def _most_bytes(storage: LocalStorage, jobs: FileIndex, key: str) -> int:
    if is_receipt(key):
        return LARGEST_RECEIPT
    announced = None
    if isinstance(jobs, AnnouncedLengths):
        announced = await jobs.most_bytes(_job_of(key))
    return storage.max_bytes if announced is None else min(announced, storage.max_bytes)


async def _bounded(chunks: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    left = most
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise _too_large(most)
        yield chunk


async def _taken(
    storage: LocalStorage,
    jobs: FileIndex,
    key: str,
    media_type: str,
    chunks: AsyncIterator[bytes],
) -> StoredFile:
    # a receipt tells most where its job has ended
    if not is_receipt(key) and not await jobs.takes_files(_job_of(key)):
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
        is_receipt(key)
        or await jobs.takes_files(_job_of(key))
        or await jobs.file(key.rpartition("/")[2]) is not None
    )


def _over() -> Conflict:
    return Conflict("The job has ended: its slots take no more files.")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"A file may have at most {limit} bytes.")


def _stored(stored: StoredFile, *, created: bool) -> Response:
    return JSONResponse(
        {"bytes": stored.bytes, "sha256": stored.sha256}, status_code=201 if created else 200
    )
