"""What may be asked of a mesh and what is told of it, at the gateway and the worker alike."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import (
    Clean,
    Length,
    MeshFormat,
    MeshReport,
    Normalise,
    Rescale,
    Step,
    TargetDimensions,
)
from gpu_server.protocol import Failure

INPUT = "model_url"
"""The parameter that is the mesh."""
ENGINE = "cpu"
"""What results say made them that needed no ComfyUI."""
NORMALISED: tuple[Step, ...] = (Clean(), Normalise())
"""What every mesh goes through that a model has made."""

_NOT_OF_THE_FILE = frozenset({"mesh_out_of_range", "mesh_timeout"})
"""What the other parameters bring about, too."""


class RescaleCall(BaseModel):
    """Parameters of a rescaling."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model_url: str = Field(min_length=1)
    scale_factor: Length | None = Field(
        default=None,
        description="How many times as large it becomes. Exactly one of this and "
        "`target_dimensions`.",
        examples=[2.5],
    )
    target_dimensions: TargetDimensions | None = Field(
        default=None,
        validate_default=True,
        description="How large it becomes: lengths of the box around it. Exactly one of this and "
        "`scale_factor`.",
        examples=[{"x": 100, "unit": "mm"}],
    )
    format: MeshFormat = Field(
        default="glb",
        description="`glb` keeps everything; `stl` and `3mf` lie on the print bed, in millimetres, "
        "z up, without textures; `obj` is in millimetres, y up; `obj_zip` comes with its textures.",
    )

    @field_validator("target_dimensions")
    @classmethod
    def _exactly_one(
        cls, value: TargetDimensions | None, info: ValidationInfo
    ) -> TargetDimensions | None:
        # a factor that is wrong by itself is told of alone
        if "scale_factor" in info.data and (value is None) == (info.data["scale_factor"] is None):
            raise PydanticCustomError(
                "exactly_one", "give exactly one of scale_factor and target_dimensions"
            )
        return value


def rescaled(params: Mapping[str, object]) -> tuple[Step, ...]:
    """What a rescaling does to a mesh. Raises ValidationError for values that do not fit."""
    named = ("scale_factor", "target_dimensions")
    return (Rescale.model_validate({name: params.get(name) for name in named}),)


def sizes(report: MeshReport) -> dict[str, JsonValue]:
    """What the result of a rescaling tells of the mesh, beside the parameters."""
    return {
        "unit": report.unit,
        "extents_before": report.before.model_dump(),
        "extents_after": report.after.model_dump(),
        "extents_before_in_unit": report.before_in_unit.model_dump(),
        "extents_after_in_unit": report.after_in_unit.model_dump(),
    }


def failure_of(error: MeshError, *, ours: bool) -> Failure:
    """Say whose fault it is: a process that died may do better, a mesh of ours is our own fault."""
    kind = "transient" if error.code == "mesh_crashed" else "fatal" if ours else "usage"
    named = kind == "usage" and error.code not in _NOT_OF_THE_FILE
    message = f"{INPUT}: {error.message}" if named else error.message
    return Failure(kind=kind, code=error.code, message=message)


def extension(wanted: str) -> str:
    """What a file of that format ends in."""
    return "zip" if wanted == "obj_zip" else wanted
