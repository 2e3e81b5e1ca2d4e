"""The registry of trained models: what `model_id` stands for."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.api.context import Context
from gateway.api.paging import PAGE, Cursor, Limit
from gateway.api.problems import documented
from gateway.api.views import as_json
from gateway.catalogue import Catalogue
from gateway.errors import (
    Conflict,
    FieldError,
    InvalidParameters,
    ModelNotInstalled,
    NotFound,
    PayloadTooLarge,
    Unauthorized,
    UnknownVariant,
    UnsupportedMediaType,
)
from gateway.job import TrainedModel
from gateway.media import Label, ModelFileName, VariantName
from gateway.tools import GENERATE

MAX_ID = 2**31 - 1


_EXAMPLE = {
    "name": "House style",
    "lora": "demo-style.safetensors",
    "trigger_word": "TOK_STYLE",
    "base_model": "z-image-turbo",
}


class RegisterModel(BaseModel):
    """A LoRA that lies on the GPU service, about to be registered."""

    model_config = ConfigDict(extra="forbid")

    name: Label = Field(description="Name for people; each name once.")
    lora: ModelFileName = Field(description="File name of an installed LoRA, as ComfyUI lists it.")
    trigger_word: Label | None = Field(
        default=None,
        description="Word that calls it up; write it into the prompt yourself.",
    )
    base_model: VariantName = Field(
        description="Variant it was trained on: `flux1-dev`, `z-image-turbo`, `checkpoint:<file>`.",
    )


class ModelView(BaseModel):
    """A registered model."""

    id: int
    name: str
    lora: str
    trigger_word: str | None
    base_model: str
    created_at: AwareDatetime


class ModelList(BaseModel):
    """One page of registered models."""

    items: list[ModelView]
    next_cursor: str | None


def models_router(context: Context) -> APIRouter:
    """Make the routes under `/api/models`."""
    router = APIRouter(prefix="/api/models", tags=["models"])
    _add_reads(router, context)

    @router.post(
        "",
        summary="Register an installed LoRA",
        status_code=201,
        response_model=None,
        responses={
            201: {"model": ModelView, "description": "Registered; `Location` is its route."},
            **documented(
                Unauthorized,
                Conflict,
                PayloadTooLarge,
                UnsupportedMediaType,
                InvalidParameters,
                ModelNotInstalled,
                UnknownVariant,
            ),
        },
    )
    async def register_model(
        model: Annotated[
            RegisterModel, Body(openapi_examples={"LoRA": {"summary": "LoRA", "value": _EXAMPLE}})
        ],
    ) -> Response:
        """Makes a LoRA file usable as `model_id`; the file itself must already be installed."""
        check_model(context.catalogue, model)
        added = await context.models.add(
            name=model.name,
            lora=model.lora,
            trigger_word=model.trigger_word,
            base_model=model.base_model,
        )
        return as_json(shown(added), 201, {"Location": f"/api/models/{added.id}"})

    return router


def _add_reads(router: APIRouter, context: Context) -> None:
    @router.get(
        "",
        summary="List registered models",
        response_model=None,
        responses={
            200: {"model": ModelList, "description": "One page."},
            **documented(Unauthorized, InvalidParameters),
        },
    )
    async def list_models(
        cursor: Cursor = None,
        limit: Limit = PAGE,
    ) -> Response:
        """Every model `model_id` may name."""
        items, following = await context.models.list(_position(cursor), limit)
        next_cursor = None if following is None else str(following)
        return as_json(ModelList(items=[shown(item) for item in items], next_cursor=next_cursor))

    @router.get(
        "/{model_id}",
        summary="A registered model",
        response_model=None,
        responses={
            200: {"model": ModelView, "description": "The model."},
            **documented(Unauthorized, NotFound, InvalidParameters),
        },
    )
    async def get_model(
        model_id: Annotated[int, Path(ge=1, le=MAX_ID, description="The model's id.")],
    ) -> Response:
        """One model of the registry."""
        found = await context.models.get(model_id)
        if found is None:
            raise NotFound("There is no model with that id; GET /api/models lists them.")
        return as_json(shown(found))


def _position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal() and int(cursor) <= MAX_ID):
        message = "is not a cursor of this list: take next_cursor of the page before"
        raise InvalidParameters([FieldError(field="cursor", code="bad_cursor", message=message)])
    return int(cursor)


def check_model(catalogue: Catalogue, model: RegisterModel) -> None:
    """Raise unless the LoRA is installed and its base model loads LoRAs."""
    variant = catalogue.find(GENERATE, model.base_model, field="base_model")
    if "loras" not in variant.workflow.manifest.params:
        message = f"{variant.name} loads no LoRAs"
        raise InvalidParameters([FieldError(field="base_model", code="not_taken", message=message)])
    catalogue.require_installed("lora", "loras", model.lora)


def shown(model: TrainedModel) -> ModelView:
    """Shape a model for callers."""
    return ModelView(
        id=model.id,
        name=model.name,
        lora=model.lora,
        trigger_word=model.trigger_word,
        base_model=model.base_model,
        created_at=model.created_at,
    )
