"""What can be wrong with a mesh, with codes a caller may rely on."""

from typing import Literal

MeshCode = Literal[
    "mesh_crashed",
    "mesh_empty",
    "mesh_external",
    "mesh_flat",
    "mesh_invalid",
    "mesh_not_finite",
    "mesh_out_of_range",
    "mesh_timeout",
    "mesh_too_large",
    "mesh_unsupported",
]

MESH_CODES: dict[MeshCode, str] = {
    "mesh_crashed": "The process that worked on the model died.",
    "mesh_empty": "The model has no triangles.",
    "mesh_external": "The model refers to files outside of itself.",
    "mesh_flat": "The model has no size along an axis that is to be scaled.",
    "mesh_invalid": "The file is not a GLB, or a broken one.",
    "mesh_not_finite": "A vertex of the model lies at NaN or infinity.",
    "mesh_out_of_range": "The scaled model would be smaller or larger than its numbers can hold.",
    "mesh_timeout": "The work on the model took longer than it may.",
    "mesh_too_large": "The model, or what it unpacks to, is larger than allowed.",
    "mesh_unsupported": "The model uses a feature that is not supported.",
}


class MeshError(Exception):
    """Work on a mesh failed; code and message may be shown to the caller."""

    def __init__(self, code: MeshCode, message: str) -> None:
        super().__init__(code, message)
        self.code: MeshCode = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
