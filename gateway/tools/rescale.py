"""Rescaling: a mesh in the size it is to be printed in."""

from pydantic import BaseModel, Field

from gateway.examples import BOX
from gateway.media import ModelUrl
from gateway.tool import Tool, ToolParams, ToolResult
from gpu_server.mesh.calls import RescaleCall
from gpu_server.mesh.order import Extents, MeshFormat, TargetDimensions, Unit


class RescaleParams(RescaleCall, ToolParams):
    """Parameters of `POST /api/model3d/rescale`."""

    model_url: ModelUrl = Field(description="The mesh, a GLB. Its axes are glTF's: y is up.")


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
