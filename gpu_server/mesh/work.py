"""Carries out one order on files, in the process that calls it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpu_server.mesh.clean import clean
from gpu_server.mesh.model import Model
from gpu_server.mesh.order import (
    Clean,
    Cleaned,
    MeshFormat,
    MeshLimits,
    MeshOrder,
    MeshReport,
    Normalise,
    Rescale,
    Unit,
    part_of,
)
from gpu_server.mesh.place import normalise, rescale
from gpu_server.mesh.printing import write_3mf, write_stl
from gpu_server.mesh.scene import bounds, check_scene, extents, instances
from gpu_server.mesh.wavefront import write_obj, write_obj_zip


def carry_out(order: MeshOrder, limits: MeshLimits) -> MeshReport:
    """Take a GLB through its steps; `target` appears whole or not at all.

    Raises MeshError for whatever is wrong with the model.
    """
    # numbers that overflow are looked for where they would matter
    with np.errstate(all="ignore"):
        return _carry_out(order, limits)


def _carry_out(order: MeshOrder, limits: MeshLimits) -> MeshReport:
    model = Model.load(order.source, limits)
    check_scene(model, limits)
    before = extents(*bounds(model))
    cleaned: Cleaned | None = None
    unit: Unit = "m"
    for step in order.steps:
        match step:
            case Clean():
                cleaned = clean(model, step)
            case Normalise():
                normalise(model)
            case Rescale():
                rescale(model, step)
                if step.target_dimensions is not None:
                    unit = step.target_dimensions.unit
    after = extents(*bounds(model))
    part = part_of(order.target)
    faces = WRITERS[order.format](model, part)
    size = part.stat().st_size
    part.replace(order.target)
    return MeshReport(
        before=before,
        after=after,
        unit=unit,
        before_in_unit=before.in_unit(unit),
        after_in_unit=after.in_unit(unit),
        cleaned=cleaned,
        faces=faces,
        bytes=size,
    )


def _write_glb(model: Model, path: Path) -> int:
    model.save(path)
    return sum(len(model.faces(p)) for _, _, mesh in instances(model) for p in mesh.primitives)


WRITERS: dict[MeshFormat, Callable[[Model, Path], int]] = {
    "glb": _write_glb,
    "stl": write_stl,
    "obj": write_obj,
    "obj_zip": write_obj_zip,
    "3mf": write_3mf,
}
