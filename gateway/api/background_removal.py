"""Background removal as its first clients call it: a file in, an id to ask by."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.forms import FormFile
from gateway.api.lookup import job_of, wait_of, waited
from gateway.api.prefer import IdempotencyKey
from gateway.api.problems import SUBMIT_ERRORS, documented
from gateway.api.streamed_form import file_body, streamed_file
from gateway.api.uploads import UPLOADS_PATH
from gateway.api.views import Views, as_json
from gateway.db.uploads import Upload
from gateway.errors import GatewayError, InvalidParameters, NotFound, Unauthorized
from gateway.job import Job, JobStatus
from gateway.submission import Origin
from gateway.tools import BACKGROUND_REMOVAL

PATH = BACKGROUND_REMOVAL.path
SUBMIT_PATH = f"{PATH}/submit"

RequestId = Annotated[
    str, Path(json_schema_extra={"maxLength": 100}, description="The `request_id` answered.")
]


class BackgroundRemovalFile(BaseModel):
    """A picture about to lose its background."""

    model_config = ConfigDict(extra="forbid")

    file: FormFile = Field(description="PNG, JPEG, WebP or GIF of at most `UPLOAD_MAX_MB`.")


class RemovalSubmitted(BaseModel):
    """A picture that was taken."""

    request_id: str = Field(description="Also the id of its job: `GET /api/jobs/{job_id}`.")
    status: Literal["submitted"] = "submitted"


class RemovalStatus(BaseModel):
    """How it stands."""

    status: JobStatus
    result_url: str | None = Field(
        description="Address of the cut-out, signed for 24 hours; null until completed, and again "
        "once its file was removed."
    )
    error: str | None = Field(description="Why it failed.")


class RemovalCancelled(BaseModel):
    """What has become of it."""

    cancelled: bool = Field(description="False: it had completed or failed before.")


def background_removal_router(context: Context, views: Views) -> APIRouter:
    """Make the routes `submit`, `status` and `cancel`."""
    router = APIRouter(tags=[BACKGROUND_REMOVAL.name])
    _add_submit(router, context)
    _add_status(router, context, views)
    _add_cancel(router, context)
    return router


def _add_submit(router: APIRouter, context: Context) -> None:
    @router.post(
        SUBMIT_PATH,
        summary="Submit a file for background removal",
        status_code=202,
        response_model=None,
        responses={
            202: {"model": RemovalSubmitted, "description": "Taken; `Location` is its status."},
            **documented(*SUBMIT_ERRORS),
        },
        openapi_extra=file_body(BackgroundRemovalFile),
    )
    async def submit_background_removal(
        request: Request, idempotency_key: IdempotencyKey = None
    ) -> Response:
        """Takes a form with one file, and answers at once.

        The file is an upload like any other: `GET /api/files` lists it, and it stays until it is
        deleted or has been there for `UPLOAD_RETENTION_DAYS`.
        """
        file = await streamed_file(request, most=context.intake.most)
        upload = await context.intake.keep(
            file.chunks,
            caller=CALLER,
            kind="file",
            name=file.name,
            expected=file.expected,
            families=("image",),
            still=True,
        )
        job = await _submitted(context, upload, idempotency_key)
        location = {"Location": f"{PATH}/status/{job.id}"}
        return as_json(RemovalSubmitted(request_id=job.id), 202, location)


def _add_status(router: APIRouter, context: Context, views: Views) -> None:
    @router.get(
        f"{PATH}/status/{{request_id}}",
        summary="State and result of a submitted file",
        response_model=None,
        responses={
            200: {"model": RemovalStatus, "description": "How it stands."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )
    async def background_removal_request(
        request_id: RequestId, wait: Annotated[float, wait_of(context.settings)] = 0
    ) -> Response:
        """Of every background removal of yours, whichever route it came by."""
        job = await waited(
            context, await job_of(context, request_id, BACKGROUND_REMOVAL.name), wait
        )
        result = views.result(job)
        shown = RemovalStatus(
            status=job.status,
            result_url=result.files[0].link if result and result.files else None,
            error=job.error.message if job.error else None,
        )
        return as_json(shown)


def _add_cancel(router: APIRouter, context: Context) -> None:
    @router.post(
        f"{PATH}/cancel/{{request_id}}",
        summary="Cancel a submitted file",
        response_model=None,
        responses={
            200: {"model": RemovalCancelled, "description": "Whether it is cancelled."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def cancel_background_removal(request_id: RequestId) -> Response:
        """Stops it wherever it is; one that has completed or failed stays as it is."""
        job = await job_of(context, request_id, BACKGROUND_REMOVAL.name)
        ended = await context.jobs.cancel(job.id) or job
        return as_json(RemovalCancelled(cancelled=ended.status == "cancelled"))


async def _submitted(context: Context, upload: Upload, key: str | None) -> Job:
    """Make the job that reads an upload; one that makes none leaves nothing of it."""
    params = BACKGROUND_REMOVAL.params.model_validate(
        {"image_url": f"{UPLOADS_PATH}/{upload.filename}"}
    )
    # its name is another each time: the same request is one with the same bytes
    sent = {"sha256": upload.sha256}
    origin = Origin(caller=CALLER, route=SUBMIT_PATH, body=sent, idempotency_key=key)
    try:
        job, known = await context.submission.submit(BACKGROUND_REMOVAL, params, origin)
    except InvalidParameters as error:
        await context.intake.remove(upload)
        moved = [one.model_copy(update={"field": "file"}) for one in error.errors]
        raise type(error)(moved) from None
    except GatewayError:
        await context.intake.remove(upload)
        raise
    if known:
        await context.intake.remove(upload)
    return job
