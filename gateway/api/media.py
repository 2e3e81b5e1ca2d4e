"""Media under ids of ours: uploaded through this API or straight into storage, listed, deleted."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.openapi.models import Example
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.access import CALLER
from gateway.api.cards import MEDIA_PATH, CardView, card_view, delete_card
from gateway.api.context import Context
from gateway.api.forms import FormFile
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.problems import documented
from gateway.api.streamed_form import file_body
from gateway.api.uploads import TAKE_ERRORS, MediaView, media_view, taken, upload_of
from gateway.api.views import Views, as_json
from gateway.errors import (
    Conflict,
    InvalidParameters,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
)
from gateway.media import WHOLE
from gateway.uploads.direct import unknown_upload
from gateway.uploads.intake import MAX_ANNOUNCED

UPLOAD_PATH = f"{MEDIA_PATH}/upload"
DIRECT_PATH = f"{MEDIA_PATH}/uploads"
_LONGEST_NAME = 1000

# The bounds are stated, not checked: whatever is no id is a 404.
CardId = Annotated[
    str,
    Path(description="The `card_id`, as it was answered.", json_schema_extra={"maxLength": 200}),
]


class MediaUpload(BaseModel):
    """A picture or video about to be uploaded."""

    model_config = ConfigDict(extra="forbid")

    file: FormFile = Field(
        description="PNG, JPEG, WebP, GIF, MP4, MOV or WebM of at most `UPLOAD_MAX_MB`, told by "
        "its content: its name and stated type count for nothing."
    )


class DirectUpload(BaseModel):
    """A picture or video whose bytes will go straight into storage."""

    model_config = ConfigDict(extra="forbid")

    bytes: Annotated[int, WHOLE] = Field(
        ge=1, le=MAX_ANNOUNCED, description="How many there are, exactly; at most `UPLOAD_MAX_MB`."
    )
    content_type: str | None = Field(
        default=None,
        max_length=100,
        description="What it is, such as `video/mp4`; something else is then refused. Absent: "
        "whatever its content shows.",
    )
    name: str | None = Field(
        default=None, max_length=_LONGEST_NAME, description="What you call it. Absent: nothing."
    )


class UploadSlot(BaseModel):
    """Where the bytes go."""

    method: str
    url: str = Field(description="Beginning with a slash: of this API. It carries its permission.")
    headers: dict[str, str] = Field(description="To be sent with it.")


class AnnouncedMedia(BaseModel):
    """An upload that waits for its bytes."""

    card_id: str = Field(description="A ULID.")
    upload: UploadSlot
    expires_at: AwareDatetime | None = Field(description="When the slot ends.")


class MediaList(BaseModel):
    """One page of uploaded media, newest first."""

    items: list[MediaView]
    next_cursor: str | None


_DIRECT = {"bytes": 734003200, "content_type": "video/mp4", "name": "holiday.mp4"}


def media_router(context: Context, views: Views) -> APIRouter:
    """Make the routes under `/api/media`, all but `generate`."""
    router = APIRouter(tags=["media"])
    _add_upload(router, context)
    _add_announce(router, context)
    _add_complete(router, context)
    _add_reads(router, context, views)
    _add_remove(router, context)
    return router


def _add_upload(router: APIRouter, context: Context) -> None:
    @router.post(
        UPLOAD_PATH,
        summary="Upload a picture or video",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": MediaView, "description": "Taken; `Location` is its route."},
            **documented(*TAKE_ERRORS),
        },
        openapi_extra=file_body(MediaUpload),
    )
    async def upload_media(request: Request) -> Response:
        """Takes a form with one file, which goes into storage as it comes.

        It is decoded before it is taken: what is damaged, absurdly large or no picture or video at
        all is refused, and nothing of it is kept. Sent twice, it is there twice.
        """
        upload = await taken(context.intake, request, "media")
        location = {"Location": f"{MEDIA_PATH}/{upload.id}"}
        return as_json(media_view(context, upload), 201, location)


def _add_announce(router: APIRouter, context: Context) -> None:
    example = Example(summary="a video", value=_DIRECT)

    @router.post(
        DIRECT_PATH,
        summary="Announce a large picture or video",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": AnnouncedMedia, "description": "Where to PUT it within 24 hours."},
            **documented(*TAKE_ERRORS),
        },
    )
    async def announce_media(
        asked: Annotated[DirectUpload, Body(openapi_examples={"a video": example})],
    ) -> Response:
        """For files too large for a form: PUT the bytes to `upload.url`, then `complete` it.

        With storage in a bucket they do not pass through this API at all.
        """
        if asked.bytes > context.intake.most:
            raise PayloadTooLarge(f"A file may have at most {context.intake.most} bytes.")
        made = await context.direct.announce(
            caller=CALLER, size=asked.bytes, media_type=asked.content_type, name=asked.name
        )
        view = AnnouncedMedia(
            card_id=made.upload.id,
            upload=UploadSlot(method="PUT", url=made.url, headers=made.headers),
            expires_at=made.upload.expires_at,
        )
        return as_json(view, 201, {"Location": f"{MEDIA_PATH}/{made.upload.id}"})


def _add_complete(router: APIRouter, context: Context) -> None:
    @router.post(
        DIRECT_PATH + "/{card_id}/complete",
        summary="Complete an announced picture or video",
        response_model=None,
        responses={
            200: {"model": MediaView, "description": "Taken."},
            **documented(*TAKE_ERRORS, NotFound, Conflict),
        },
    )
    async def complete_media(card_id: CardId) -> Response:
        """Looks at what has arrived, as `upload` does; 409 while nothing has.

        What is refused is deleted, and another file may be PUT in its place. Asked again, it
        answers the same.
        """
        waiting = await upload_of(context, card_id, "media")
        if waiting is None:
            raise unknown_upload()
        done = await context.direct.complete(CALLER, waiting.id)
        return as_json(media_view(context, done))


def _add_reads(router: APIRouter, context: Context, views: Views) -> None:
    @router.get(
        MEDIA_PATH,
        summary="List the uploaded media",
        response_model=None,
        responses={
            200: {"model": MediaList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_media(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """Every uploaded picture and video, newest first; generated ones are listed as jobs."""
        items, following = await context.intake.rows.page(CALLER, "media", cursor, limit)
        found = [media_view(context, item) for item in items]
        return as_json(MediaList(items=found, next_cursor=following))

    @router.get(
        # any text may be a card's id
        MEDIA_PATH + "/{card_id:path}",
        summary="Uploaded or generated media",
        response_model=None,
        responses={
            200: {"model": MediaView | CardView, "description": "The media, with fresh links."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_media(card_id: CardId) -> Response:
        """Media by the id that an upload was given, or that the caller gave when generating."""
        # what was generated under an upload's id came later
        card = await context.cards.get(CALLER, card_id)
        if card is not None:
            return as_json(await card_view(context, views, card))
        upload = await upload_of(context, card_id, "media")
        if upload is None:
            raise _unknown_card()
        return as_json(media_view(context, upload))


def _add_remove(router: APIRouter, context: Context) -> None:
    @router.delete(
        MEDIA_PATH + "/{card_id:path}",
        summary="Delete media",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound, Conflict)},
    )
    async def delete_media(card_id: CardId) -> Response:
        """What `GET` shows goes: the file and its thumbnails at once, of a generated one its job.

        A job that waits and reads the file fails with `input_gone`.
        """
        card = await context.cards.get(CALLER, card_id)
        if card is not None:
            # what GET shows: an upload of the same id is shown again, and stays
            await delete_card(context, card)
            return Response(status_code=204)
        upload = await upload_of(context, card_id, "media")
        if upload is None:
            raise _unknown_card()
        await context.intake.remove(upload)
        return Response(status_code=204)


def _unknown_card() -> NotFound:
    return NotFound("There are no media with that id here; GET /api/media lists what was uploaded.")
