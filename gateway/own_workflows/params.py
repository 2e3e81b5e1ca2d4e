"""A manifest's parameters as the Pydantic model its calls are checked by."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model
from pydantic_core import PydanticCustomError

from gateway.media import (
    DECIMAL,
    WHOLE,
    ImageUrl,
    MaskUrl,
    VideoUrl,
    multiple_of,
    nearest,
    plain,
)
from gateway.tool import JobOptions, PictureParams
from gpu_server.workflow import Workflow
from gpu_server.workflow.manifest import Param
from gpu_server.workflow.param_schema import ParamSchema

_FILES: dict[str, Any] = {"image": ImageUrl, "mask": MaskUrl, "video": VideoUrl}
Kinds = frozenset(_FILES)
"""Kinds of file a call can bring."""


class OwnParams(PictureParams):
    """Base of the parameters of callers' own workflows: they have versions, not variants."""

    model_config = ConfigDict(protected_namespaces=())

    # takes the field out: a model's fields are what its annotations say at the end
    variant: ClassVar[None] = None  # pyright: ignore[reportIncompatibleVariableOverride] - on purpose


class _Item(BaseModel):
    """Base of the objects in a list."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_reserved(name: str) -> bool:
    """Tell a name that every call has already, or that a model cannot have."""
    known = JobOptions.model_fields.keys() | OwnParams.model_fields.keys()
    return name in known or hasattr(OwnParams, name)


def params_model(title: str, workflow: Workflow) -> type[OwnParams]:
    """Make the model; every parameter's `schema` must be filled."""
    defaults = workflow.defaults
    fields: dict[str, Any] = {}
    for name, param in workflow.manifest.params.items():
        schema = param.json_schema or ParamSchema(type="string")
        kind = _file(param) if param.upload is not None else type_of(schema, f"{title}_{name}")
        about: dict[str, Any] = {"description": schema.description, "title": schema.title}
        if schema.examples:
            about["examples"] = list(schema.examples)
        if param.required:
            fields[name] = (kind, Field(**about))
        elif name in defaults and param.chain is None:
            fields[name] = (kind, Field(default=defaults[name], **about))
        else:
            fields[name] = (kind | None, Field(default=None, **about))
    made = create_model(title, __base__=OwnParams, **fields)
    made.__doc__ = f"Parameters of {workflow.title}."
    return made


def type_of(schema: ParamSchema, name: str = "Value") -> Any:  # noqa: ANN401 - a type
    """Turn a schema into a type with its checks; `name` is for the objects in it."""
    if schema.enum is not None:
        return Literal[tuple(schema.enum)]
    if schema.type == "array":
        inner = type_of(schema.items or ParamSchema(type="string"), name)
        return Annotated[tuple[inner, ...], Field(max_length=schema.max_items)]
    if schema.type == "object":
        return _object(schema, name)
    if schema.type == "boolean":
        return Annotated[bool, Field(strict=True)]
    if schema.type in {"integer", "number"}:
        return _number(schema)
    length = Field(min_length=schema.min_length, max_length=schema.max_length)
    return Annotated[str, length, AfterValidator(_no_nul)]


def _number(schema: ParamSchema) -> Any:  # noqa: ANN401 - a type
    if schema.type == "integer":
        return Annotated[int, *_bounds(schema, int), WHOLE]
    return Annotated[float, *_bounds(schema, float), DECIMAL]


def _file(param: Param) -> Any:  # noqa: ANN401 - a type
    kind = _FILES[param.upload or "image"]
    if param.chain is None and not param.items:
        return kind
    # the mark of a file is found behind the list, its number in the list's own Field
    least = 1 if param.required else 0
    return Annotated[tuple[kind, ...], Field(min_length=least, max_length=param.most)]


def _bounds(schema: ParamSchema, number: Callable[[float], float]) -> list[Any]:
    low, high = (None if v is None else number(v) for v in (schema.minimum, schema.maximum))
    if schema.multiple_of is not None and schema.multiple_of.is_integer():
        step = int(schema.multiple_of)
        stated = Field(ge=low, le=high, json_schema_extra={"multipleOf": step})
        return [stated, AfterValidator(multiple_of(step))]
    if schema.step is None:
        return [Field(ge=low, le=high, multiple_of=schema.multiple_of)]
    return [Field(ge=low, le=high), AfterValidator(_stepped(schema.minimum or 0, schema.step))]


def _stepped(base: float, step: float) -> Callable[[float], float]:
    def check(value: float) -> float:
        if (value - base) % step:
            below, above = nearest(value, step, base)
            raise PydanticCustomError(
                "multiple_of",
                "{reason}",
                {
                    "reason": f"must be {plain(base)} plus a multiple of {plain(step)}: use "
                    f"{plain(below)} or {plain(above)}"
                },
            )
        return value

    return check


def _object(schema: ParamSchema, name: str) -> Any:  # noqa: ANN401 - a type
    required = schema.required or ()
    fields: dict[str, Any] = {}
    for key, inner in (schema.properties or {}).items():
        kind, said = type_of(inner), inner.description
        fields[key] = (
            (kind, Field(description=said))
            if key in required
            else (kind | None, Field(default=None, description=said))
        )
    return cast("Any", create_model(name, __base__=_Item, **fields))


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise PydanticCustomError("nul_character", "must not contain the NUL character")
    return text
