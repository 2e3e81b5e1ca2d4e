"""Templates: prompts to be used again, each with a reference picture."""

import uuid
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from gateway.api.access import CALLER
from gateway.api.context import Context
from gateway.api.forms import FormFile, form_body, form_of
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.pictures import ItemId, Pictures, add_picture, pictures_of
from gateway.api.problems import documented
from gateway.api.views import LINK_LIFETIME, as_json
from gateway.db.templates import unknown_template
from gateway.errors import (
    FieldError,
    InvalidParameters,
    NotFound,
    PayloadTooLarge,
    PolicyViolation,
    StorageFull,
    Unauthorized,
    UnsupportedMediaType,
)
from gateway.media import MAX_PROMPT, Label, Prompt
from gateway.pictures import TEMPLATES_PATH, Picture, picture_path
from gateway.security.policy import PolicyCall, enforce
from gateway.templates import (
    DEFAULT_KEYWORD,
    KEYWORD,
    TRIGGER_WORD,
    Malformed,
    Template,
    TooLong,
    Unresolved,
    variables_in,
)

WRITE_ERRORS = (
    Unauthorized,
    PayloadTooLarge,
    UnsupportedMediaType,
    InvalidParameters,
    PolicyViolation,
    StorageFull,
)


_MAX_VARIABLES = 100


def _well_formed(text: str) -> str:
    try:
        names = variables_in(text)
    except Malformed as error:
        raise PydanticCustomError("malformed", "{reason}", {"reason": str(error)}) from None
    if len(names) > _MAX_VARIABLES:
        message = f"names more than {_MAX_VARIABLES} variables"
        raise PydanticCustomError("too_many_variables", "{reason}", {"reason": message})
    return text


def _keyword(text: str) -> str:
    if not KEYWORD.fullmatch(text):
        raise PydanticCustomError(
            "keyword_braces", "must be text without braces, or one name between braces"
        )
    return text


TemplateText = Annotated[Prompt, AfterValidator(_well_formed)]
"""A prompt whose braces all belong to a `{name}` or are doubled."""
Keyword = Annotated[Label, AfterValidator(_keyword)]

_PROMPT = (
    "Text in which the trigger keyword stands for the trigger word and `{name}` for a variable; "
    "`{{` and `}}` are braces."
)
_KEYWORD = (
    "What in the prompt stands for the trigger word, wherever it occurs. `{trigger_word}` always "
    "does as well."
)
_IMAGE = "Reference picture: PNG, JPEG, WebP or GIF of at most `MAX_IMAGE_SIZE_MB`."


class NewTemplate(BaseModel):
    """A template about to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Label = Field(description="Name for people.")
    prompt: TemplateText = Field(description=_PROMPT)
    trigger_keyword: Keyword = Field(default=DEFAULT_KEYWORD, description=_KEYWORD)
    image: FormFile = Field(description=_IMAGE)


class TemplateChange(BaseModel):
    """What is to change; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: Label | None = Field(default=None, description="Name for people.")
    prompt: TemplateText | None = Field(default=None, description=_PROMPT)
    trigger_keyword: Keyword | None = Field(default=None, description=_KEYWORD)
    image: FormFile | None = Field(default=None, description=_IMAGE)


class ResolveTemplate(BaseModel):
    """What goes into a template's gaps."""

    model_config = ConfigDict(extra="forbid")

    trigger_word: Label = Field(description="Takes the place of the trigger keyword.")
    variables: dict[str, Annotated[str, Field(max_length=MAX_PROMPT)]] = Field(
        default_factory=dict,
        max_length=_MAX_VARIABLES,
        json_schema_extra={"default": {}},
        description="Values of the prompt's `{name}`s. They are put in as they stand: braces and "
        "keywords in them mean nothing.",
    )


class TemplateView(BaseModel):
    """A template."""

    id: str
    name: str
    prompt: str
    trigger_keyword: str
    variables: list[str] = Field(description="What `variables` of `/resolve` must have.")
    image_url: str = Field(description="Stable path; readable with the API key, and an input.")
    image_link: str = Field(description="The same path signed for 24 hours.")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class TemplateList(BaseModel):
    """One page of templates, newest first."""

    items: list[TemplateView]
    next_cursor: str | None


class ResolvedTemplate(BaseModel):
    """A template with its gaps filled."""

    template_id: str
    template_name: str
    original_prompt: str
    resolved_prompt: str
    trigger_word: str


_EXAMPLE = {
    "name": "Mug on a table",
    "prompt": "a photo of TRIGGER_WORD on a {surface}, soft light",
}
_RESOLVE = {"trigger_word": "TOK_MUG", "variables": {"surface": "marble table"}}


def templates_router(context: Context) -> APIRouter:
    """Make the routes under `/api/templates`."""
    router = APIRouter(prefix=TEMPLATES_PATH, tags=["templates"])
    pictures = pictures_of(context, TEMPLATES_PATH)
    _add_reads(router, context)
    _add_create(router, context, pictures)
    _add_change(router, context, pictures)
    _add_remove(router, context, pictures)
    _add_resolve(router, context)
    return router


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List the templates",
        response_model=None,
        responses={
            200: {"model": TemplateList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_templates(cursor: Cursor = None, limit: Limit = PAGE) -> Response:
        """Every template, newest first."""
        items, following = await context.templates.list(cursor, limit)
        views = [_shown(context, item) for item in items]
        return as_json(TemplateList(items=views, next_cursor=following))

    @router.get(
        "/{item_id}",
        summary="A template",
        response_model=None,
        responses={
            200: {"model": TemplateView, "description": "The template."},
            **documented(Unauthorized, NotFound),
        },
    )
    async def get_template(item_id: ItemId) -> Response:
        """One template."""
        return as_json(_shown(context, await _template(context, item_id)))

    async def picture(item_id: str) -> Picture:
        return (await _template(context, item_id)).image

    add_picture(router, context, picture, item="template")


def _add_create(router: APIRouter, context: Context, pictures: Pictures) -> None:
    @router.post(
        "",
        summary="Make a template",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": TemplateView, "description": "Made; `Location` is its route."},
            **documented(*WRITE_ERRORS),
        },
        openapi_extra=form_body(NewTemplate, {"a mug": _EXAMPLE}),
    )
    async def create_template(request: Request) -> Response:
        """Takes a form; the picture is kept for as long as the template has it."""
        async with form_of(request, NewTemplate) as form:
            texts = form.model_dump(exclude={"image"})
            await _allow(context, texts)
            image = await pictures.keep(form.image)
        async with pictures.dropped_on_failure(image):
            added = await context.templates.add(texts, image)
        view = _shown(context, added)
        return as_json(view, 201, {"Location": f"{TEMPLATES_PATH}/{added.id}"})


def _add_change(router: APIRouter, context: Context, pictures: Pictures) -> None:
    @router.put(
        "/{item_id}",
        summary="Change a template",
        response_model=None,
        responses={
            200: {"model": TemplateView, "description": "The template as it is now."},
            **documented(*WRITE_ERRORS, NotFound),
        },
        openapi_extra=form_body(TemplateChange, {"another name": {"name": "Mug on a table"}}),
    )
    async def change_template(request: Request, item_id: ItemId) -> Response:
        """Takes a form; what is left out stays as it is."""
        found = await _template(context, item_id)
        async with form_of(request, TemplateChange) as form:
            texts = form.model_dump(exclude={"image"}, exclude_none=True)
            if not texts and form.image is None:
                message = "has nothing to change: send name, prompt, trigger_keyword or image"
                raise InvalidParameters([FieldError(field="body", code="empty", message=message)])
            await _allow(context, texts)
            image = await pictures.keep(form.image) if form.image is not None else None
        async with pictures.dropped_on_failure(image):
            changed, replaced = await context.templates.change(found.id, texts, image)
        await pictures.drop(replaced)
        return as_json(_shown(context, changed))


def _add_remove(router: APIRouter, context: Context, pictures: Pictures) -> None:
    @router.delete(
        "/{item_id}",
        summary="Delete a template and its picture",
        status_code=204,
        response_model=None,
        responses={204: {"description": "Gone."}, **documented(Unauthorized, NotFound)},
    )
    async def delete_template(item_id: ItemId) -> Response:
        """A job that waits and reads its picture fails with `input_gone`."""
        found = await _template(context, item_id)
        await pictures.drop(await context.templates.remove(found.id))
        return Response(status_code=204)


def _add_resolve(router: APIRouter, context: Context) -> None:
    example = Example(summary="a mug", value=_RESOLVE)

    @router.post(
        "/{item_id}/resolve",
        summary="Fill a template's gaps",
        response_model=None,
        responses={
            200: {"model": ResolvedTemplate, "description": "The prompt, ready to be sent."},
            **documented(
                Unauthorized, NotFound, PayloadTooLarge, UnsupportedMediaType, InvalidParameters
            ),
        },
    )
    async def resolve_template(
        item_id: ItemId, gaps: Annotated[ResolveTemplate, Body(openapi_examples={"mug": example})]
    ) -> Response:
        """Variables the prompt does not have are ignored; one it has and that is not sent is named.

        Nothing is stored, and nothing is generated.
        """
        found = await _template(context, item_id)
        return as_json(
            ResolvedTemplate(
                template_id=found.id,
                template_name=found.name,
                original_prompt=found.prompt,
                resolved_prompt=_resolved(found, gaps),
                trigger_word=gaps.trigger_word,
            )
        )


def _resolved(template: Template, gaps: ResolveTemplate) -> str:
    try:
        return template.resolve(gaps.trigger_word, gaps.variables)
    except Unresolved as error:
        wrong = [
            FieldError(
                field=f"variables.{name}",
                code="unresolved",
                message=f"the prompt has {{{name}}}: send its value",
            )
            for name in error.names
        ]
    except TooLong:
        message = f"make the prompt too long: at most {MAX_PROMPT} characters"
        wrong = [FieldError(field="variables", code="string_too_long", message=message)]
    raise InvalidParameters(wrong)


async def _template(context: Context, item_id: str) -> Template:
    try:
        found = await context.templates.get(str(uuid.UUID(item_id)))
    except ValueError:
        found = None
    if found is None:
        raise unknown_template()
    return found


async def _allow(context: Context, texts: dict[str, str]) -> None:
    """Ask the policy: everybody's calls may use what is written here. Raises PolicyViolation."""
    asked = PolicyCall(
        tool="templates", variant="", caller=CALLER, params=texts, files=frozenset({"image"})
    )
    await enforce(context.submission.policy, asked)


def _shown(context: Context, template: Template) -> TemplateView:
    path = picture_path(TEMPLATES_PATH, template.id)
    names = variables_in(template.prompt, template.trigger_keyword)
    return TemplateView(
        id=template.id,
        name=template.name,
        prompt=template.prompt,
        trigger_keyword=template.trigger_keyword,
        variables=[name for name in names if name != TRIGGER_WORD],
        image_url=path,
        image_link=context.signer.link(path, LINK_LIFETIME),
        created_at=template.created_at,
        updated_at=template.updated_at,
    )
