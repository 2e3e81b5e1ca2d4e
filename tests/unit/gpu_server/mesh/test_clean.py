"""Cleaning: what must go goes, what is seen stays as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import Clean, Cleaned, MeshLimits, MeshOrder
from gpu_server.mesh.work import carry_out
from tests.unit.gpu_server.mesh import glb, outside


def cleaned(model: glb.Model, folder: Path, **options: Any) -> tuple[Cleaned, Path]:
    source = model.save(folder / "in.glb")
    order = MeshOrder(source=source, target=folder / "out.glb", steps=(Clean(**options),))
    report = carry_out(order, MeshLimits())
    assert report.cleaned is not None
    return report.cleaned, order.target


def ball(faces: np.ndarray, *, stray: int = 0) -> glb.Model:
    """A textured sphere of these faces, with a few vertices that nothing uses."""
    model, shape = glb.Model(), glb.sphere()
    points = np.vstack([shape["points"], np.full((stray, 3), 9.0)])
    uv = np.vstack([shape["uv"], np.zeros((stray, 2))])
    material = {"pbrMetallicRoughness": {"baseColorTexture": model.texture(glb.png(4, 4, 99))}}
    model.document["materials"].append(material)
    primitive = {
        "attributes": {"POSITION": model.accessor(points), "TEXCOORD_0": model.accessor(uv)},
        "indices": model.accessor(faces.ravel(), "uint32"),
        "material": 0,
    }
    model.node(mesh=model.mesh(primitive))
    return model


def primitive(path: Path) -> tuple[dict[str, Any], bytes, dict[str, Any]]:
    document, blob = glb.unpack(path)
    return document, blob, document["meshes"][0]["primitives"][0]


def test_duplicate_and_degenerate_faces_go(tmp_path: Path) -> None:
    good = glb.sphere()["faces"]
    turned = good[5][[1, 2, 0]]
    bad = [good[3], turned, [40, 40, 41], [40, 41, 40]]
    found, out = cleaned(ball(np.vstack([good, bad])), tmp_path)
    assert (found.duplicate_faces, found.degenerate_faces) == (2, 2)
    document, blob, drawn = primitive(out)
    indices = glb.read(document, blob, drawn["indices"]).reshape(-1, 3)
    used = np.unique(good)
    assert np.array_equal(used[indices], good)


def test_faces_looking_the_other_way_are_no_duplicates(tmp_path: Path) -> None:
    good = glb.sphere()["faces"]
    found, _ = cleaned(ball(np.vstack([good, good[7][::-1]])), tmp_path)
    assert found.duplicate_faces == 0


def test_vertices_on_one_line_make_no_face(tmp_path: Path) -> None:
    model = glb.Model()
    points = model.accessor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]])
    indices = model.accessor([0, 1, 2, 0, 1, 3], "uint8")
    model.node(mesh=model.mesh({"attributes": {"POSITION": points}, "indices": indices}))
    found, _ = cleaned(model, tmp_path)
    assert (found.degenerate_faces, found.stray_vertices) == (1, 1)


def test_stray_vertices_go_from_every_attribute(tmp_path: Path) -> None:
    faces = glb.sphere()["faces"]
    found, out = cleaned(ball(faces, stray=7), tmp_path)
    document, blob, drawn = primitive(out)
    points, uv = (
        glb.read(document, blob, drawn["attributes"][name]) for name in ("POSITION", "TEXCOORD_0")
    )
    indices = glb.read(document, blob, drawn["indices"])[:, 0]
    assert found.stray_vertices >= 7
    assert len(points) == len(uv) == len(np.unique(faces))
    assert points.max() <= 1
    shape = glb.sphere()
    assert np.array_equal(points[indices], shape["points"][faces.ravel()])
    assert np.array_equal(uv[indices], shape["uv"][faces.ravel()])


def test_a_small_hole_is_closed_and_the_seam_of_the_texture_is_not(tmp_path: Path) -> None:
    faces = glb.sphere()["faces"]
    around = (faces == 160).any(axis=1)
    assert around.sum() == 6
    found, out = cleaned(ball(faces[~around]), tmp_path, hole_perimeter=1)
    assert (found.holes_closed, found.holes_left) == (1, 0)
    document, _, drawn = primitive(out)
    assert document["accessors"][drawn["indices"]]["count"] // 3 == len(faces) - 2
    whole = outside.scene(out).to_mesh()
    whole.merge_vertices(merge_tex=True, merge_norm=True)
    assert whole.is_watertight
    assert whole.is_winding_consistent
    assert whole.volume > 0


def test_a_closed_hole_in_the_seam_leaves_all_texture_coordinates_alone(tmp_path: Path) -> None:
    faces = glb.sphere()["faces"]
    # the third row's first square touches the seam
    hole = np.isin(np.arange(len(faces)), np.flatnonzero((faces == 75).any(axis=1))[:1])
    found, out = cleaned(ball(faces[~hole]), tmp_path, hole_perimeter=1)
    assert found.holes_closed == 1
    document, blob, drawn = primitive(out)
    uv = glb.read(document, blob, drawn["attributes"]["TEXCOORD_0"])
    stored = {tuple(row) for row in glb.sphere()["uv"].tolist()}
    assert {tuple(row) for row in uv.tolist()} <= stored


def test_a_large_hole_stays_open(tmp_path: Path) -> None:
    faces = glb.sphere()["faces"]
    found, _ = cleaned(ball(faces[: len(faces) // 2]), tmp_path)
    assert (found.holes_closed, found.holes_left) == (0, 1)


def test_a_lonely_triangle_gets_no_back(tmp_path: Path) -> None:
    model = glb.Model()
    points = model.accessor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    model.node(mesh=model.mesh({"attributes": {"POSITION": points}}))
    found, _ = cleaned(model, tmp_path, hole_perimeter=10)
    assert (found.holes_closed, found.holes_left) == (0, 1)


def test_what_is_clean_keeps_all_its_bytes(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box()
    indices = model.accessor(faces.ravel(), "uint8")
    drawn = {"attributes": {"POSITION": model.accessor(corners)}, "indices": indices}
    model.node(mesh=model.mesh(drawn))
    found, out = cleaned(model, tmp_path)
    assert set(found.model_dump().values()) == {0}
    before, old = glb.unpack(tmp_path / "in.glb")
    after, new = glb.unpack(out)
    assert (after["meshes"], new) == (before["meshes"], old)


@pytest.mark.parametrize(("mode", "indices"), [(5, [0, 1, 2, 3]), (6, [1, 3, 2, 0])])
def test_strips_and_fans_show_the_same_faces_as_triangles(
    tmp_path: Path, mode: int, indices: list[int]
) -> None:
    model = glb.Model()
    points = model.accessor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    drawn = {"attributes": {"POSITION": points}, "indices": model.accessor(indices, "uint8")}
    model.node(mesh=model.mesh({**drawn, "mode": mode}))
    _, out = cleaned(model, tmp_path)
    document, _, kept = primitive(out)
    assert kept["mode"] == 4
    assert document["accessors"][kept["indices"]]["count"] == 6
    mesh = outside.scene(out).to_mesh()
    assert mesh.area == pytest.approx(1)
    assert np.allclose(mesh.face_normals, [0, 0, 1])


def test_a_mesh_of_only_bad_faces_goes_and_the_others_stay(tmp_path: Path) -> None:
    model = glb.Model()
    line = model.accessor([[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    model.node(mesh=model.mesh({"attributes": {"POSITION": line}}), name="gone")
    with pytest.raises(MeshError, match="mesh_empty"):
        cleaned(model, tmp_path)
    corners, faces = glb.box()
    indices = model.accessor(faces.ravel(), "uint8")
    drawn = {"attributes": {"POSITION": model.accessor(corners)}, "indices": indices}
    model.node(mesh=model.mesh(drawn, name="box"), name="kept")
    _, out = cleaned(model, tmp_path)
    document, _ = glb.unpack(out)
    assert [mesh["name"] for mesh in document["meshes"]] == ["box"]
    assert [node.get("mesh") for node in document["nodes"]] == [None, 0]
