"""Clean, normalise and rescale: sizes are right, and everything else is still there."""

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import (
    Clean,
    MeshLimits,
    MeshOrder,
    MeshReport,
    Normalise,
    Rescale,
    TargetDimensions,
)
from gpu_server.mesh.work import carry_out
from tests.unit.gpu_server.mesh import glb, outside

HUNDRED_MM = Rescale(target_dimensions=TargetDimensions(x=100, unit="mm"))


def worked(model: glb.Model, folder: Path, *steps: Any, **more: Any) -> tuple[MeshReport, Path]:
    source = model.save(folder / "in.glb")
    order = MeshOrder(source=source, target=folder / "out.glb", steps=steps, **more)
    return carry_out(order, MeshLimits()), order.target


def images(path: Path) -> list[str]:
    document, blob = glb.unpack(path)
    found: list[str] = []
    for image in document["images"]:
        view = document["bufferViews"][image["bufferView"]]
        data = blob[view["byteOffset"] :][: view["byteLength"]]
        found.append(hashlib.sha256(data).hexdigest())
    return found


def test_a_model_is_cleaned_normalised_and_made_100_mm_long(tmp_path: Path) -> None:
    report, out = worked(glb.rich(), tmp_path, Clean(), Normalise(), HUNDRED_MM)

    assert report.before_in_unit.x == pytest.approx(7250, rel=1e-6)
    assert report.after.x == pytest.approx(0.1, rel=1e-6)
    assert report.after_in_unit.x == pytest.approx(100, rel=1e-6)
    assert report.after_in_unit.y == pytest.approx(100 * 2.25 / 7.25, rel=1e-6)
    low, high = outside.bounds(out)
    assert high - low == pytest.approx(np.array([7.25, 2.25, 2.5]) / 72.5, rel=1e-6)
    assert low + high == pytest.approx(np.zeros(3), abs=1e-7)


def test_every_map_factor_sampler_and_extension_is_still_there(tmp_path: Path) -> None:
    model = glb.rich()
    _, out = worked(model, tmp_path, Clean(), Normalise(), HUNDRED_MM)

    before, _ = glb.unpack(tmp_path / "in.glb")
    after, _ = glb.unpack(out)
    for key in ("asset", "materials", "textures", "samplers", "extensionsUsed"):
        assert after[key] == before[key]
    assert images(out) == images(tmp_path / "in.glb")
    assert [node.get("name") for node in after["nodes"]] == ["left", "right", "pair", "middle"]
    assert after["nodes"][2]["children"] == [0, 1]
    assert after["nodes"][3]["extras"] == {"kept": True}


def test_uvs_colours_and_tangents_keep_their_bytes(tmp_path: Path) -> None:
    _, out = worked(glb.rich(), tmp_path, Normalise(), HUNDRED_MM)

    before, old = glb.unpack(tmp_path / "in.glb")
    after, new = glb.unpack(out)
    meshes = {
        node["name"]: after["meshes"][node["mesh"]] for node in after["nodes"] if "mesh" in node
    }
    ball, cube = before["meshes"]
    for mesh, was in ((meshes["middle"], ball), (meshes["left"], cube), (meshes["right"], cube)):
        for primitive, source in zip(mesh["primitives"], was["primitives"], strict=True):
            for name in source["attributes"].keys() - {"POSITION"}:
                kept = glb.read(after, new, primitive["attributes"][name])
                stored = glb.read(before, old, source["attributes"][name])
                assert kept.tobytes() == stored.tobytes(), name
            assert primitive.get("material") == source.get("material")
    assert "COLOR_0" in meshes["right"]["primitives"][0]["attributes"]


def test_positions_hold_the_true_size_for_readers_that_ignore_nodes(tmp_path: Path) -> None:
    _, out = worked(glb.rich(), tmp_path, Normalise(), HUNDRED_MM)

    document, blob = glb.unpack(out)
    rows = [p["attributes"]["POSITION"] for m in document["meshes"] for p in m["primitives"]]
    points = np.concatenate([glb.read(document, blob, n) for n in rows])
    assert np.ptp(points[:, 0]) == pytest.approx(0.1, rel=1e-6)
    for n in rows:
        accessor, stored = document["accessors"][n], glb.read(document, blob, n)
        assert accessor["min"] == stored.min(axis=0).tolist()
        assert accessor["max"] == stored.max(axis=0).tolist()


def test_a_mesh_shared_by_two_nodes_stands_in_both_places(tmp_path: Path) -> None:
    _, out = worked(glb.rich(), tmp_path, Rescale(scale_factor=2))

    parts = outside.parts(out)
    assert parts["left"][0] == pytest.approx([-6.5, -1, -1])
    assert parts["left"][1] == pytest.approx([-5.5, 1, 3])
    # turned by a quarter about z, after y was doubled
    assert parts["right"][0] == pytest.approx([4, 1.5, -1])
    assert parts["right"][1] == pytest.approx([8, 2.5, 3])


def test_normals_follow_a_stretch(tmp_path: Path) -> None:
    model = glb.Model()
    ball = glb.sphere()
    attributes = {
        "POSITION": model.accessor(ball["points"]),
        "NORMAL": model.accessor(ball["normals"]),
    }
    indices = model.accessor(ball["faces"].ravel(), "uint32")
    model.node(
        mesh=model.mesh({"attributes": attributes, "indices": indices}), rotation=[1, 0, 0, 0]
    )
    target = TargetDimensions(x=4, y=2, unit="m", mode="stretch")
    report, out = worked(model, tmp_path, Rescale(target_dimensions=target))

    assert (report.after.x, report.after.y, report.after.z) == pytest.approx((4, 2, 2), rel=1e-6)
    document, blob = glb.unpack(out)
    stored = document["meshes"][0]["primitives"][0]["attributes"]
    points, normals = (glb.read(document, blob, stored[n]) for n in ("POSITION", "NORMAL"))
    # the gradient of (x/2)² + y² + z²
    expected = points * [0.25, 1, 1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert normals == pytest.approx(expected, abs=1e-5)


def test_a_mirrored_node_still_faces_outwards(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box()
    primitive = {
        "attributes": {"POSITION": model.accessor(corners)},
        "indices": model.accessor(faces.ravel(), "uint16"),
    }
    model.node(mesh=model.mesh(primitive), scale=[-1, 1, 1])
    for format_ in ("glb", "stl"):
        _, out = worked(model, tmp_path, Normalise(), format=format_)
        assert outside.volume(out, format_) > 0


def test_what_lies_far_from_the_origin_is_as_exact(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box(1, 0.25, 0.125)
    primitive = {
        "attributes": {"POSITION": model.accessor(corners)},
        "indices": model.accessor(faces.ravel(), "uint16"),
    }
    model.node(mesh=model.mesh(primitive), translation=[50_000, -7, 3])
    _, out = worked(model, tmp_path, Rescale(scale_factor=0.1 / 3))

    low, high = outside.bounds(out)
    assert high - low == pytest.approx(np.array([1, 0.25, 0.125]) / 30, rel=1e-6)
    assert (low + high) / 2 == pytest.approx(np.array([50_000, -7, 3]) / 30, rel=1e-9)


def boxed(x: float, y: float, z: float, at: list[float]) -> glb.Model:
    model = glb.Model()
    corners, faces = glb.box(x, y, z)
    primitive = {
        "attributes": {"POSITION": model.accessor(corners)},
        "indices": model.accessor(faces.ravel(), "uint16"),
    }
    model.node(mesh=model.mesh(primitive), translation=at)
    return model


SIDE = st.floats(0.001, 1000)
WANTED = st.one_of(st.none(), SIDE)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(SIDE, SIDE, SIDE),
    at=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    wanted=st.tuples(WANTED, WANTED, WANTED).filter(any),
    unit=st.sampled_from(["mm", "cm", "m", "in", "ft"]),
    mode=st.sampled_from(["fit", "stretch"]),
)
def test_target_dimensions_are_met(  # noqa: PLR0917  # hypothesis draws them by name
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[float, float, float],
    at: list[float],
    wanted: tuple[float | None, float | None, float | None],
    unit: Any,
    mode: Any,
) -> None:
    folder = tmp_path_factory.mktemp("mesh")
    x, y, z = wanted
    target = TargetDimensions(x=x, y=y, z=z, unit=unit, mode=mode)
    report, out = worked(boxed(*size, at), folder, Rescale(target_dimensions=target))

    low, high = outside.bounds(out)
    metres = {"mm": 0.001, "cm": 0.01, "m": 1, "in": 0.0254, "ft": 0.3048}[unit]
    got = (high - low) / metres
    told = report.after_in_unit
    assert (told.x, told.y, told.z) == pytest.approx(got, rel=1e-6)
    if mode == "stretch":
        kept = [old / metres if new is None else new for old, new in zip(size, wanted, strict=True)]
        assert got == pytest.approx(kept, rel=1e-6)
    else:
        ratios = [new / have for new, have in zip(wanted, got, strict=True) if new is not None]
        assert min(ratios) == pytest.approx(1, rel=1e-6)
        assert got / got[0] == pytest.approx(np.array(size) / size[0], rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(1e-4, 1e4), size=st.tuples(SIDE, SIDE, SIDE))
def test_a_factor_multiplies_every_side(
    tmp_path_factory: pytest.TempPathFactory, factor: float, size: tuple[float, float, float]
) -> None:
    folder = tmp_path_factory.mktemp("mesh")
    _, out = worked(boxed(*size, [0, 0, 0]), folder, Rescale(scale_factor=factor))
    low, high = outside.bounds(out)
    assert high - low == pytest.approx(np.array(size) * factor, rel=1e-6)


@pytest.mark.parametrize("mode", ["fit", "stretch"])
def test_an_axis_without_size_cannot_be_given_one(tmp_path: Path, mode: Any) -> None:
    target = TargetDimensions(y=10, unit="mm", mode=mode)
    with pytest.raises(MeshError, match=r"mesh_flat.*along y"):
        worked(boxed(1, 0, 1, [0, 0, 0]), tmp_path, Rescale(target_dimensions=target))


def test_a_flat_model_can_be_scaled_along_its_other_axes(tmp_path: Path) -> None:
    target = TargetDimensions(x=10, unit="mm")
    report, _ = worked(boxed(1, 0, 1, [0, 0, 0]), tmp_path, Rescale(target_dimensions=target))
    assert (report.after.x, report.after.y) == (pytest.approx(0.01, rel=1e-6), 0)


def test_a_model_that_is_one_point_has_no_size(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="mesh_flat"):
        worked(boxed(0, 0, 0, [1, 2, 3]), tmp_path, Normalise())


def test_a_size_no_number_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="mesh_out_of_range"):
        worked(boxed(1000, 1, 1, [0, 0, 0]), tmp_path, Rescale(scale_factor=1e9))
    assert not (tmp_path / "out.glb").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_vertices_that_are_nowhere_are_refused(tmp_path: Path, bad: float) -> None:
    model = glb.Model()
    points = model.accessor(np.array([[0, 0, 0], [1, 0, 0], [0, bad, 0]]))
    del model.document["accessors"][points]["min"], model.document["accessors"][points]["max"]
    model.node(mesh=model.mesh({"attributes": {"POSITION": points}}))
    with pytest.raises(MeshError, match="mesh_not_finite"):
        worked(model, tmp_path, Normalise())


def test_a_model_without_triangles_is_empty(tmp_path: Path) -> None:
    model = glb.Model()
    points = model.accessor(glb.box()[0])
    model.node(mesh=model.mesh({"attributes": {"POSITION": points}, "mode": 0}))
    with pytest.raises(MeshError, match="mesh_empty"):
        worked(model, tmp_path, Normalise())
    with pytest.raises(MeshError, match="mesh_empty"):
        worked(glb.Model(), tmp_path)


def test_quantised_positions_are_understood(tmp_path: Path) -> None:
    model = glb.Model()
    corners, faces = glb.box(2, 1, 0.5)
    stored = model.accessor(np.round(corners * 32767), "int16", normalized=True)
    # rows of six bytes must be padded to eight
    view = model.document["accessors"][stored]["bufferView"]
    padded = np.pad(np.round(corners * 32767).astype("<i2"), ((0, 0), (0, 1)))
    model.document["accessors"][stored]["bufferView"] = model.view(padded.tobytes(), byteStride=8)
    assert view != model.document["accessors"][stored]["bufferView"]
    model.document["extensionsUsed"] = ["KHR_mesh_quantization"]
    model.document["extensionsRequired"] = ["KHR_mesh_quantization"]
    primitive = {
        "attributes": {"POSITION": stored},
        "indices": model.accessor(faces.ravel(), "uint8"),
    }
    model.node(mesh=model.mesh(primitive))
    report, out = worked(model, tmp_path, Normalise())
    assert report.before.x == pytest.approx(2, rel=1e-4)
    low, high = outside.bounds(out)
    assert (high - low)[0] == pytest.approx(1, rel=1e-6)
