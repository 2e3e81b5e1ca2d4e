"""What can be done to a mesh, within which limits, and what is reported of it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

Unit = Literal["mm", "cm", "m", "in", "ft"]
MeshFormat = Literal["glb", "stl", "obj", "obj_zip", "3mf"]

METRES: dict[Unit, float] = {"mm": 0.001, "cm": 0.01, "m": 1.0, "in": 0.0254, "ft": 0.3048}
"""How many metres one of a unit is."""

MEDIA_TYPES: dict[MeshFormat, str] = {
    "glb": "model/gltf-binary",
    "stl": "model/stl",
    "obj": "model/obj",
    "obj_zip": "application/zip",
    "3mf": "model/3mf",
}


def _number(value: object) -> object:
    if isinstance(value, bool | str | bytes):
        raise PydanticCustomError("float_type", "must be a number")
    return value


Length = Annotated[
    float,
    Field(gt=0, le=1e9, allow_inf_nan=False, strict=True),
    BeforeValidator(_number),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshLimits:
    """How large a model and the work on it may be; whatever exceeds it is `mesh_too_large`."""

    file_bytes: int = 256 * 2**20
    json_bytes: int = 16 * 2**20
    """The glTF document within the file."""
    items: int = 20_000
    """Nodes, meshes, accessors, … of each kind."""
    depth: int = 64
    """Nodes below one another."""
    vertices: int = 5_000_000
    """As drawn: an instance counts each time."""
    faces: int = 5_000_000
    """As drawn: an instance counts each time."""
    texture_pixels: int = 256 * 2**20
    """Of all textures together."""
    seconds: float = 120
    memory_bytes: int = 4 * 2**30
    """Address space of the process that does the work."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Clean(_Frozen):
    """Remove duplicate and degenerate faces and stray vertices, close small holes."""

    op: Literal["clean"] = "clean"
    hole_edges: int = Field(default=32, ge=0, le=1000)
    """A hole with more edges stays open; 0 closes none."""
    hole_perimeter: float = Field(default=0.3, ge=0, le=10)
    """A hole with a longer rim stays open; in longest sides of the mesh it is in."""


class Normalise(_Frozen):
    """Centre the model on the origin and make its longest side 1."""

    op: Literal["normalise"] = "normalise"


class TargetDimensions(_Frozen):
    """Lengths along glTF's axes (y is up); at least one of them."""

    x: Length | None = Field(default=None, description="Width.")
    y: Length | None = Field(default=None, description="Height.")
    z: Length | None = Field(default=None, description="Depth.")
    unit: Unit
    mode: Literal["fit", "stretch"] = Field(
        default="fit",
        description="`fit` scales all axes alike, until the given ones bound the model; `stretch` "
        "gives each given axis its length and leaves the others.",
    )

    @model_validator(mode="after")
    def _some_axis(self) -> Self:
        if self.x is None and self.y is None and self.z is None:
            raise PydanticCustomError("no_axis", "give at least one of x, y and z")
        return self

    def metres(self) -> tuple[float | None, float | None, float | None]:
        """The lengths in glTF's unit; None for an axis that was not given."""
        one = METRES[self.unit]
        x, y, z = (None if side is None else side * one for side in (self.x, self.y, self.z))
        return x, y, z


class Rescale(_Frozen):
    """Scale by a factor or to dimensions: exactly one of the two."""

    op: Literal["rescale"] = "rescale"
    scale_factor: Length | None = None
    target_dimensions: TargetDimensions | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.scale_factor is None) == (self.target_dimensions is None):
            raise ValueError("give exactly one of scale_factor and target_dimensions")
        return self


Step = Annotated[Clean | Normalise | Rescale, Field(discriminator="op")]


class MeshOrder(_Frozen):
    """Take the GLB at `source` through the steps, in their order, and write it to `target`."""

    source: Path
    target: Path
    steps: tuple[Step, ...] = ()
    format: MeshFormat = "glb"


class Extents(_Frozen):
    """Lengths of the box around every triangle, along glTF's axes."""

    x: float
    y: float
    z: float

    def in_unit(self, unit: Unit) -> "Extents":
        """The same box, from metres to another unit."""
        one = METRES[unit]
        return Extents(x=self.x / one, y=self.y / one, z=self.z / one)


class Cleaned(_Frozen):
    """What cleaning changed."""

    duplicate_faces: int
    degenerate_faces: int
    stray_vertices: int
    holes_closed: int
    holes_left: int


class MeshReport(_Frozen):
    """What became of a mesh; lengths in metres, and in the unit that was asked for."""

    before: Extents
    after: Extents
    unit: Unit
    before_in_unit: Extents
    after_in_unit: Extents
    cleaned: Cleaned | None
    faces: int
    bytes: int


def part_of(target: Path) -> Path:
    """Where a file lies while it is being written."""
    return target.with_name(target.name + ".part")
