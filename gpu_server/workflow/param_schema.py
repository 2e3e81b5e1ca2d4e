"""What one parameter of a caller's own workflow takes, in JSON Schema's words.

Bundled workflows have no need of it: their tools' parameters are declared in the gateway.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Scalar = str | int | float | bool
SchemaType = Literal["string", "integer", "number", "boolean", "array", "object"]

_MOST_CHOICES = 1000
_LONGEST_TEXT = 2000
_LONGEST_VALUE = 100_000


class ParamSchema(BaseModel):
    """The part of JSON Schema that a parameter can be told in; there is no `default`.

    A parameter's default is what the graph holds.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
    )

    type: SchemaType | None = None
    """Absent in what a caller writes: read off the node."""
    title: str | None = Field(default=None, max_length=200)
    description: str | None = Field(default=None, max_length=_LONGEST_TEXT)
    enum: tuple[Scalar, ...] | None = Field(default=None, min_length=1, max_length=_MOST_CHOICES)
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = Field(default=None, gt=0)
    """Not JSON Schema's own: the value is `minimum` plus a multiple of it, as nodes have it."""
    multiple_of: float | None = Field(default=None, gt=0)
    min_length: int | None = Field(default=None, ge=0)
    max_length: int | None = Field(default=None, ge=0, le=_LONGEST_VALUE)
    max_items: int | None = Field(default=None, ge=0)
    items: "ParamSchema | None" = None
    properties: dict[str, "ParamSchema"] | None = None
    required: tuple[str, ...] | None = None
    examples: tuple[Scalar, ...] | None = Field(default=None, max_length=10)

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "ParamSchema":
        for low, high, said in (
            (self.minimum, self.maximum, "minimum is above maximum"),
            (self.min_length, self.max_length, "minLength is above maxLength"),
        ):
            if low is not None and high is not None and low > high:
                raise ValueError(said)
        return self
