"""Rescaling: a mesh in the size it is to be printed in."""

from typing import Annotated

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gateway.examples import BOX
from gateway.media import DECIMAL, ModelUrl
from gateway.mesh.order import Extents, Length, MeshFormat, TargetDimensions, Unit
from gateway.tool import Tool, ToolParams, ToolResult


class RescaleParams(ToolParams):
    """Parameters of `POST /api/model3d/rescale`."""

    model_url: ModelUrl = Field(description="The mesh, a GLB. Its axes are glTF's: y is up.")
    scale_factor: Annotated[Length, DECIMAL] | None = Field(
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


class UsedRescaleParams(BaseModel):
    """Every value really used, and the sizes of the mesh."""

    scale_factor: float | None
    target_dimensions: TargetDimensions | None
    format: MeshFormat
    unit: Unit = Field(description="That of `target_dimensions`; metres for a factor.")
    extents_before: Extents = Field(description="In metres.")
    extents_after: Extents = Field(description="In metres.")
    extents_before_in_unit: Extents
    extents_after_in_unit: Extents


class RescaleResult(ToolResult):
    """The mesh in its new size."""

    rescaled_model_url: str = Field(description="Stable path of the mesh.")
    rescale_params: UsedRescaleParams


RESCALE = Tool(
    name="rescale",
    summary="Rescale a 3D model for print",
    description="Scales a mesh by a factor or to dimensions, about the origin. Materials, textures "
    "and vertex colours of a GLB stay as they are. Needs no GPU.",
    path="/api/model3d/rescale",
    files_path="/api/meshes",
    prefix="meshes",
    params=RescaleParams,
    result=RescaleResult,
    url_key="rescaled_model_url",
    params_key="rescale_params",
    reported={name: name for name in UsedRescaleParams.model_fields},
    default_variant="cpu",
    timeout_s=900,
    deadline_s=2 * 3600,
    examples={
        "to 100 mm": {"model_url": BOX, "target_dimensions": {"x": 100, "unit": "mm"}},
        "for a printer": {"model_url": BOX, "scale_factor": 0.1, "format": "3mf"},
    },
)
