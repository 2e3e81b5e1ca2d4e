"""Files of a caller's own: taken in as plain inputs, listed, deleted, and how all uploads look."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Path, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.files import ServedFile
from gateway.api.forms import FormFile
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.problems import documented
from gateway.api.streamed_form import file_body, streamed_file
from gateway.api.views import LINK_LIFETIME, as_json
from gateway.db.uploads import Upload, UploadKind, Uploads
from gateway.errors import (
    InvalidParameters,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    StorageFull,
    Unauthorized,
    UnsupportedMediaType,
)
from gateway.inputs import UPLOADS_PATH
from gateway.job import Artifact
from gateway.uploads import DirectUploads, Intake
from gateway.uploads.direct import unknown_upload
from gateway.uploads.intake import THUMBNAIL_SIDE

FILES_PATH = "/api/files"
TAKE_ERRORS = (
    Unauthorized,
    PayloadTooLarge,
    UnsupportedMediaType,
    InvalidParameters,
    QuotaExceeded,
    StorageFull,
)
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")

# The bound is stated, not checked: whatever is no id of ours is a 404.
FileId = Annotated[
    str, Path(description="The `id` of the list.", json_schema_extra={"maxLength": 100})
]


class FileUpload(BaseModel):
    """A file about to be uploaded."""

    model_config = ConfigDict(extra="forbid")

    file: FormFile = Field(
        description="PNG, JPEG, WebP, GIF, MP4, MOV, WebM, GLB, WAV, MP3, FLAC or ZIP of at most "
        "`UPLOAD_MAX_MB`, told by its content: its name and stated type count for nothing."
    )


class FileView(BaseModel):
    """An uploaded file."""

    id: str
    url: str = Field(description="Stable path; readable with the API key, and an input.")
    link: str = Field(description="The same path signed for 24 hours; also an input.")
    address: str = Field(description="Where it is stored: `local://files/…`, `r2://…`, `s3://…`.")
    media_type: str
    bytes: int
    sha256: str
    name: str | None = Field(description="As it was called when it was sent.")
    width: int | None = Field(description="Pixels, of pictures and videos.")
    height: int | None
    frames: int | None
    duration_s: float | None = Field(description="Seconds, of videos.")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = Field(description="When it is removed; null: never.")


class UploadedFiles(BaseModel):
    """One page of uploaded files, newest first."""

    items: list[FileView]
    next_cursor: str | None


class MediaView(BaseModel):
    """An uploaded picture or video, or one whose bytes are still to come."""

    card_id: str = Field(description="A ULID.")
    media_url: str | None = Field(
        description="Address of the file, signed for 24 hours: for `<img>` and `<video>`, and an "
        "input of every tool. Null while its bytes are still to come."
    )
    thumb_url: str | None = Field(
        description="The same within 512 by 512 pixels, as WebP with its transparency; of a "
        "video the picture at 0.1 s."
    )
    media_type: Literal["image", "video"] | None
    status: Literal["pending", "completed"] = Field(
        description="`pending` while the bytes of a direct upload are still to come."
    )
    content_type: str | None = Field(description="What the file was found to be: `image/png`, ….")
    address: str | None = Field(description="Where it is stored: `local://…`, `r2://…`, `s3://…`.")
    bytes: int
    sha256: str | None
    name: str | None = Field(description="As it was called when it was sent.")
    width: int | None = Field(description="Pixels, turned as the file says.")
    height: int | None
    frames: int | None
    duration_s: float | None = Field(description="Seconds, of videos.")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = Field(description="When it is removed; null: never.")


class KnowsJobs(Protocol):
    """Who knows the files of jobs."""

    async def file(self, filename: str) -> Artifact | None:
        """The artifact of that file name."""
        ...

    async def takes_files(self, job_id: str) -> bool:
        """Whether the job is there and has not ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Every file there is a route for: results of jobs, and uploads."""

    jobs: KnowsJobs
    rows: Uploads
    direct: DirectUploads

    async def file(self, filename: str) -> ServedFile | None:
        """The result or upload of that file name."""
        return await self.jobs.file(filename) or await self.rows.file(filename)

    async def takes_files(self, job_id: str) -> bool:
        """Whether files may go into that folder: of a job under way, or of an announced upload."""
        return (
            await self.jobs.takes_files(job_id) or await self.direct.most_bytes(job_id) is not None
        )

    async def most_bytes(self, job_id: str) -> int | None:
        """Bytes that were announced of an upload; None = as many as the storage takes."""
        return await self.direct.most_bytes(job_id)


async def taken(
    intake: Intake, request: Request, kind: UploadKind, *, caller: str = CALLER
) -> Upload:
    """Take in the file of a form as it comes. Raises what `TAKE_ERRORS` names, and StorageError."""
    file = await streamed_file(request, most=intake.most)
    return await intake.keep(
        file.chunks, caller=caller, kind=kind, name=file.name, expected=file.expected
    )


async def upload_of(context: Context, upload_id: str, kind: UploadKind) -> Upload | None:
    """Find the caller's upload of that id and kind; None where there is none."""
    wanted = upload_id.upper()
    if not _ULID.fullmatch(wanted):
        return None
    found = await context.intake.rows.get(CALLER, wanted)
    return found if found is not None and found.kind == kind else None


def takes_upload(method: str, path: str) -> bool:
    """Tell whether the body of a request is a file that is taken in as it comes."""
    return method == "POST" and path in {
        FILES_PATH,
        "/api/media/upload",
        "/api/background-removal/submit",
    }


def uploads_router(context: Context) -> APIRouter:
    """Make the routes under `/api/files`."""
    router = APIRouter(prefix=FILES_PATH, tags=["files"])
    _add_create(router, context)
    _add_reads(router, context)
    return router


def _add_create(router: APIRouter, context: Context) -> None:
    @router.post(
        "",
        summary="Upload a file for tools to read",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": FileView, "description": "Taken; `Location` is its route."},
            **documented(*TAKE_ERRORS),
        },
        openapi_extra=file_body(FileUpload),
    )
    async def upload_file(request: Request) -> Response:
        """Takes a form with one file; `url`, `link` and `address` are inputs of every tool.

        Pictures and videos are decoded before they are taken, so that a damaged one is told here
        and not by a job that fails.
        """
        upload = await taken(context.intake, request, "file")
        return as_json(_shown(context, upload), 201, {"Location": f"{FILES_PATH}/{upload.id}"})


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List the uploaded files",
        response_model=None,
        responses={
            200: {"model": UploadedFiles, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_uploaded_files(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """Every file sent to this route, newest first; media have a list of their own."""
        items, following = await context.intake.rows.page(CALLER, "file", cursor, limit)
        views = [_shown(context, item) for item in items]
        return as_json(UploadedFiles(items=views, next_cursor=following))

    @router.get(
        "/{file_id}",
        summary="An uploaded file",
        response_model=None,
        responses={
            200: {"model": FileView, "description": "The file."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_uploaded_file(file_id: FileId) -> Response:
        """One file, with a fresh link."""
        return as_json(_shown(context, await _file(context, file_id)))

    @router.delete(
        "/{file_id}",
        summary="Delete an uploaded file",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound)},
    )
    async def delete_uploaded_file(file_id: FileId) -> Response:
        """A job that waits and reads it fails with `input_gone`."""
        await context.intake.remove(await _file(context, file_id))
        return Response(status_code=204)


async def _file(context: Context, file_id: str) -> Upload:
    found = await upload_of(context, file_id, "file")
    if found is None:
        raise unknown_upload()
    return found


def _shown(context: Context, upload: Upload) -> FileView:
    path = f"{UPLOADS_PATH}/{upload.filename}"
    return FileView(
        id=upload.id,
        url=path,
        link=context.signer.link(path, LINK_LIFETIME),
        address=context.storage.address(upload.key),
        media_type=upload.media_type,
        bytes=upload.bytes,
        sha256=upload.sha256,
        name=upload.name,
        width=upload.width,
        height=upload.height,
        frames=upload.frames,
        duration_s=upload.duration_s,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
    )


def _medium(media_type: str) -> Literal["image", "video"]:
    return "image" if media_type.startswith("image/") else "video"


def media_view(context: Context, upload: Upload) -> MediaView:
    """Shape an uploaded picture or video."""
    here = upload.status == "ready"
    link = context.signer.link(f"{UPLOADS_PATH}/{upload.filename}", LINK_LIFETIME) if here else None
    return MediaView(
        card_id=upload.id,
        media_url=link,
        # a signature holds for the path, whatever else is asked
        thumb_url=None if link is None else f"{link}&w={THUMBNAIL_SIDE}",
        media_type=_medium(upload.media_type) if here else None,
        status="completed" if here else "pending",
        content_type=upload.media_type if here else None,
        address=context.storage.address(upload.key) if here else None,
        bytes=upload.bytes,
        sha256=upload.sha256 or None,
        name=upload.name,
        width=upload.width,
        height=upload.height,
        frames=upload.frames,
        duration_s=upload.duration_s,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
    )
