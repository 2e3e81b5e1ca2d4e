"""Styles: what `styleId` stands for."""

import re
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.forms import FormFile, form_body, form_of
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.pictures import ItemId, Pictures, add_picture, pictures_of
from gateway.api.problems import documented
from gateway.api.templates import WRITE_ERRORS, TemplateText
from gateway.api.views import LINK_LIFETIME, as_json
from gateway.db.styles import unknown_style
from gateway.errors import (
    Conflict,
    FieldError,
    InvalidParameters,
    NotFound,
    Unauthorized,
)
from gateway.media import Label
from gateway.pictures import STYLES_PATH, Picture, picture_path
from gateway.security.policy import PolicyCall, enforce
from gateway.styles import BUNDLED, SLUG, Style, StyleId
from gateway.templates import variables_in


def _around_a_prompt(text: str) -> str:
    if variables_in(text) != ("prompt",):
        reason = "must have {prompt} where the caller's own goes, and no other name in braces"
        raise PydanticCustomError("no_place_for_the_prompt", "{reason}", {"reason": reason})
    return text


StyleText = Annotated[TemplateText, AfterValidator(_around_a_prompt)]

_PROMPT = (
    "Words around `{prompt}`, where the caller's own goes; `{{` and `}}` are braces. A reference "
    "picture comes after the caller's pictures."
)
_IMAGE = (
    "Reference picture, for variants that take one: PNG, JPEG, WebP or GIF of at most "
    "`MAX_IMAGE_SIZE_MB`."
)


class NewStyle(BaseModel):
    """A style about to be made."""

    model_config = ConfigDict(extra="forbid")

    id: StyleId = Field(description="What calls send as `styleId`: a-z, 0-9 and hyphens.")
    name: Label = Field(description="Name for people.")
    prompt: StyleText = Field(description=_PROMPT)
    image: FormFile | None = Field(default=None, description=_IMAGE)


class StyleChange(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: Label | None = Field(default=None, description="Name for people.")
    prompt: StyleText | None = Field(default=None, description=_PROMPT)
    image: FormFile | None = Field(default=None, description=_IMAGE)


class StyleView(BaseModel):
    """A style."""

    id: str = Field(description="What to send as `styleId`.")
    name: str
    prompt: str
    image_url: str | None = Field(description="Stable path of its picture; also an input.")
    image_link: str | None = Field(description="The same path signed for 24 hours.")
    bundled: bool = Field(description="It comes with every installation, perhaps changed here.")
    created_at: AwareDatetime | None = Field(description="Null: bundled, as it came.")
    updated_at: AwareDatetime | None


class StyleList(BaseModel):
    """One page of styles, in order of their ids."""

    items: list[StyleView]
    next_cursor: str | None


_EXAMPLE = {
    "id": "blueprint",
    "name": "Blueprint",
    "prompt": "{prompt}. Style: a blueprint, white lines on blue paper",
}


def styles_router(context: Context) -> APIRouter:
    """Make the routes under `/api/styles`."""
    router = APIRouter(prefix=STYLES_PATH, tags=["styles"])
    pictures = pictures_of(context, STYLES_PATH)
    _add_reads(router, context)
    _add_create(router, context, pictures)
    _add_change(router, context, pictures)
    _add_removals(router, context, pictures)
    return router


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List the styles",
        response_model=None,
        responses={
            200: {"model": StyleList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_styles(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """What `styleId` may be."""
        if cursor is not None and not re.fullmatch(SLUG, cursor):
            message = "is not a cursor of this list: take next_cursor of the page before"
            raise InvalidParameters(
                [FieldError(field="cursor", code="invalid_cursor", message=message)]
            )
        items, following = await context.styles.list(cursor, limit)
        views = [_shown(context, item) for item in items]
        return as_json(StyleList(items=views, next_cursor=following))

    @router.get(
        "/{item_id}",
        summary="A style",
        response_model=None,
        responses={
            200: {"model": StyleView, "description": "The style."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_style(item_id: ItemId) -> Response:
        """One style."""
        return as_json(_shown(context, await _style(context, item_id)))

    async def picture(item_id: str) -> Picture | None:
        return (await _style(context, item_id)).image

    add_picture(router, context, picture, item="style")


def _add_create(router: APIRouter, context: Context, pictures: Pictures) -> None:
    @router.post(
        "",
        summary="Make a style",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": StyleView, "description": "Made; `Location` is its route."},
            **documented(*WRITE_ERRORS, Conflict),
        },
        openapi_extra=form_body(NewStyle, {"blueprint": _EXAMPLE}),
    )
    async def create_style(request: Request) -> Response:
        """Takes a form. Every call may use the style at once."""
        async with form_of(request, NewStyle) as form:
            texts = form.model_dump(exclude={"id", "image"})
            await _allow(context, texts, pictured=form.image is not None)
            image = await pictures.keep(form.image) if form.image is not None else None
        async with pictures.dropped_on_failure(image):
            added = await context.styles.add(form.id, texts, image)
        view = _shown(context, added)
        return as_json(view, 201, {"Location": f"{STYLES_PATH}/{added.id}"})


def _add_change(router: APIRouter, context: Context, pictures: Pictures) -> None:
    @router.put(
        "/{item_id}",
        summary="Change a style",
        response_model=None,
        responses={
            200: {"model": StyleView, "description": "The style as it is now."},
            **documented(*WRITE_ERRORS, NotFound),
        },
        openapi_extra=form_body(StyleChange, {"another name": {"name": "Clay"}}),
    )
    async def change_style(request: Request, item_id: ItemId) -> Response:
        """Takes a form; what is left out stays as it is. A bundled style can be changed, too."""
        found = await _style(context, item_id)
        async with form_of(request, StyleChange) as form:
            texts = form.model_dump(exclude={"image"}, exclude_none=True)
            if not texts and form.image is None:
                message = "has nothing to change: send name, prompt or image"
                raise InvalidParameters([FieldError(field="body", code="empty", message=message)])
            pictured = form.image is not None or found.image is not None
            await _allow(context, texts, pictured=pictured)
            image = await pictures.keep(form.image) if form.image is not None else None
        async with pictures.dropped_on_failure(image):
            changed, replaced = await context.styles.change(found.id, texts, image)
        await pictures.drop(replaced)
        return as_json(_shown(context, changed))


def _add_removals(router: APIRouter, context: Context, pictures: Pictures) -> None:
    gone = {204: {"description": "Gone."}}

    @router.delete(
        "/{item_id}",
        summary="Delete a style and its picture",
        status_code=204,
        response_model=None,
        responses={**gone, **documented(Unauthorized, NotFound)},
    )
    async def delete_style(item_id: ItemId) -> Response:
        """A bundled one does not come back either; making one of its id does that."""
        found = await _style(context, item_id)
        await pictures.drop(await context.styles.remove(found.id))
        return Response(status_code=204)

    @router.delete(
        "/{item_id}/image",
        summary="Delete the picture of a style",
        status_code=204,
        response_model=None,
        responses={**gone, **documented(Unauthorized, NotFound)},
    )
    async def delete_style_image(item_id: ItemId) -> Response:
        """The style stays, as words alone."""
        found = await _style(context, item_id)
        await pictures.drop(await context.styles.remove_picture(found.id))
        return Response(status_code=204)


async def _style(context: Context, item_id: str) -> Style:
    found = await context.styles.get(item_id) if re.fullmatch(SLUG, item_id) else None
    if found is None:
        raise unknown_style()
    return found


async def _allow(context: Context, texts: dict[str, str], *, pictured: bool) -> None:
    """Ask the policy: everybody's calls may use what is written here. Raises PolicyViolation."""
    files = frozenset({"image"} if pictured else ())
    asked = PolicyCall(tool="styles", variant="", caller=CALLER, params=texts, files=files)
    await enforce(context.submission.policy, asked)


def _shown(context: Context, style: Style) -> StyleView:
    path = picture_path(STYLES_PATH, style.id) if style.image is not None else None
    return StyleView(
        id=style.id,
        name=style.name,
        prompt=style.prompt,
        image_url=path,
        image_link=None if path is None else context.signer.link(path, LINK_LIFETIME),
        bundled=style.id in BUNDLED,
        created_at=style.created_at,
        updated_at=style.updated_at,
    )
