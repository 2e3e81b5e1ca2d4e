"""What a mirroring node shows keeps its shape and its outside, however accessors are shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.mesh import model as model_module
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import MeshLimits, MeshOrder, Rescale
from gpu_server.mesh.work import carry_out
from tests.unit.gpu_server.mesh import glb, outside

TWICE = Rescale(scale_factor=2)
MIRRORED: dict[str, Any] = {"scale": [-1, 1, 1]}


def doubled(model: glb.Model, folder: Path) -> Path:
    source = model.save(folder / "in.glb")
    order = MeshOrder(source=source, target=folder / "out.glb", steps=(TWICE,))
    carry_out(order, MeshLimits())
    return order.target


def primitives(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points and corners of every primitive, of which each must be a list of triangles."""
    document, blob = glb.unpack(path)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for mesh in document["meshes"]:
        for primitive in mesh["primitives"]:
            assert primitive["mode"] == 4
            points = glb.read(document, blob, primitive["attributes"]["POSITION"])
            found.append((points, points[glb.read(document, blob, primitive["indices"])[:, 0]]))
    return found


def upward(corners: np.ndarray) -> list[float]:
    """Twice the area of each triangle, positive where it looks along z."""
    a, b, c = (corners[n::3] for n in range(3))
    return np.cross(b - a, c - a)[:, 2].tolist()


def test_a_mirrored_mesh_without_indices_is_kept(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box(1, 2, 3)
    # in two parts of different length
    parts = [corners[faces[:8].ravel()] + 2, corners[faces[8:].ravel()] + 2]
    mesh = model.mesh(*({"attributes": {"POSITION": model.accessor(part)}} for part in parts))
    model.node(mesh=mesh, **MIRRORED)
    out = doubled(model, tmp_path)

    low, high = outside.bounds(out)
    assert low == pytest.approx([-5, 2, 1])
    assert high == pytest.approx([-3, 6, 7])
    assert outside.volume(out) == pytest.approx(8 * 6)
    assert [len(corners) for _, corners in primitives(out)] == [24, 12]


def test_a_strip_and_a_list_may_share_their_indices(tmp_path: Path) -> None:
    model = glb.Model()
    indices = model.accessor(np.arange(6), "uint16")
    ladder = [[x, y, 0] for x in range(3) for y in (1, 0)]
    listed = [[0, 0, 1], [1, 0, 1], [0, 1, 1], [2, 0, 1], [3, 0, 1], [2, 1, 1]]
    shared: list[dict[str, Any]] = [
        {"attributes": {"POSITION": model.accessor(ladder)}, "indices": indices, "mode": 5},
        {"attributes": {"POSITION": model.accessor(listed)}, "indices": indices},
    ]
    # a strip without indices, and another that is longer
    shared += [
        {"attributes": {"POSITION": model.accessor(ladder)}, "mode": 5},
        {"attributes": {"POSITION": model.accessor([*ladder, [3, 1, 0]])}, "mode": 5},
    ]
    mesh = model.mesh(*shared)
    model.node(mesh=mesh, **MIRRORED)
    out = doubled(model, tmp_path)

    drawn = [upward(corners) for _, corners in primitives(out)]
    # the ladder begins above, so its faces look along z
    assert drawn == [pytest.approx([4] * n) for n in (4, 2, 4, 5)]


def test_one_accessor_may_be_positions_and_normals(tmp_path: Path) -> None:
    model = glb.Model()
    ball = glb.sphere()
    points = model.accessor(ball["points"])
    primitive = {
        "attributes": {"POSITION": points, "NORMAL": points},
        "indices": model.accessor(ball["faces"].ravel(), "uint32"),
    }
    model.node(mesh=model.mesh(primitive), **MIRRORED)
    out = doubled(model, tmp_path)

    document, blob = glb.unpack(out)
    stored = document["meshes"][0]["primitives"][0]["attributes"]
    mirrored = ball["points"] * [-1, 1, 1]
    assert glb.read(document, blob, stored["POSITION"]) == pytest.approx(2 * mirrored, abs=1e-6)
    assert glb.read(document, blob, stored["NORMAL"]) == pytest.approx(mirrored, abs=1e-6)
    assert outside.volume(out) > 0


def test_mirrored_instances_share_what_is_alike(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box()
    primitive = {
        "attributes": {"POSITION": model.accessor(corners)},
        "indices": model.accessor(faces.ravel(), "uint16"),
    }
    mesh = model.mesh(primitive, primitive)
    for x in (-3, 3):
        model.node(mesh=mesh, translation=[x, 0, 0], **MIRRORED)
    document, _ = glb.unpack(doubled(model, tmp_path))
    # positions for each place, faces for both
    assert len(document["accessors"]) == 3


def test_a_mirrored_part_without_a_whole_triangle_does_no_harm(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box()
    mesh = model.mesh(
        {"attributes": {"POSITION": model.accessor(corners[faces.ravel()])}},
        {"attributes": {"POSITION": model.accessor(corners[:2])}},
    )
    model.node(mesh=mesh, **MIRRORED)
    document, blob = glb.unpack(doubled(model, tmp_path))
    solid, rest = document["meshes"][0]["primitives"]
    assert len(glb.read(document, blob, solid["indices"])) == 36
    assert "indices" not in rest
    stored = glb.read(document, blob, rest["attributes"]["POSITION"])
    assert stored == pytest.approx(corners[:2] * [-2, 2, 2])


def test_a_model_of_the_wrong_size_is_never_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = model_module.Model.add_positions

    def wrong(model: model_module.Model, points: model_module.Floats) -> int:
        return right(model, points * (1, 1, 1.001))

    monkeypatch.setattr(model_module.Model, "add_positions", wrong)
    with pytest.raises(MeshError, match="Internal check"):
        doubled(glb.rich(), tmp_path)
    assert not (tmp_path / "out.glb").exists()
