"""Files for printing: true millimetres, upright, closed, with their pictures."""

import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from gpu_server.mesh.order import MeshFormat, MeshLimits, MeshOrder, Rescale, TargetDimensions
from gpu_server.mesh.work import carry_out
from tests.unit.gpu_server.mesh import glb, outside

HUNDRED_MM = Rescale(target_dimensions=TargetDimensions(x=100, unit="mm"))
SIZE = np.array([7.25, 2.25, 2.5]) / 7.25 * 100
UPRIGHT = SIZE[[0, 2, 1]]
CORE = "{http://schemas.microsoft.com/3dmanufacturing/core/2015/02}"


def exported(format_: MeshFormat, folder: Path) -> Path:
    target = folder / f"out.{format_}"
    source = glb.rich().save(folder / "in.glb")
    order = MeshOrder(source=source, target=target, steps=(HUNDRED_MM,), format=format_)
    report = carry_out(order, MeshLimits())
    assert report.faces == 552
    assert report.bytes == target.stat().st_size
    return target


def test_stl_stands_upright_on_its_bed_in_millimetres(tmp_path: Path) -> None:
    low, high = outside.bounds(exported("stl", tmp_path), "stl")
    assert low == pytest.approx(np.zeros(3), abs=1e-5)
    assert high == pytest.approx(UPRIGHT, rel=1e-6)


def three_mf(path: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {"[Content_Types].xml", "_rels/.rels"} <= set(archive.namelist())
        root = ET.fromstring(archive.read("3D/3dmodel.model"))
    assert root.attrib["unit"] == "millimeter"
    found: list[tuple[str, np.ndarray, np.ndarray]] = []
    for thing in root.iter(f"{CORE}object"):
        points = [[float(v.attrib[k]) for k in "xyz"] for v in thing.iter(f"{CORE}vertex")]
        faces = [
            [int(t.attrib[k]) for k in ("v1", "v2", "v3")] for t in thing.iter(f"{CORE}triangle")
        ]
        found.append((thing.attrib["name"], np.array(points), np.array(faces)))
    assert len(list(root.iter(f"{CORE}item"))) == len(found)
    return found


def test_3mf_holds_closed_solids_in_millimetres(tmp_path: Path) -> None:
    objects = three_mf(exported("3mf", tmp_path))
    points = np.vstack([points for _, points, _ in objects])
    assert points.min(axis=0) == pytest.approx(np.zeros(3), abs=1e-6)
    assert points.max(axis=0) == pytest.approx(UPRIGHT, rel=1e-6)
    assert {name for name, _, _ in objects} == {"left", "right", "middle"}
    for _, vertices, faces in objects:
        edges = {(a, b) for f in faces.tolist() for a, b in zip(f, f[1:] + f[:1], strict=True)}
        assert len(edges) == 3 * len(faces)
        assert all((b, a) in edges for a, b in edges)
        a, b, c = (vertices[faces[:, n]] for n in range(3))
        assert (a * np.cross(b, c)).sum() > 0


def test_a_name_cannot_break_out_of_the_3mf(tmp_path: Path) -> None:
    model = glb.Model()
    points = model.accessor([[0, 0, 0], [1, 0, 0], [0, 1, 0]])
    name = '"><evil/>\x01\x0b&\ufffe\uffff\ufffd\U0001f600'
    model.node(mesh=model.mesh({"attributes": {"POSITION": points}}), name=name)
    target = tmp_path / "out.3mf"
    order = MeshOrder(source=model.save(tmp_path / "in.glb"), target=target, format="3mf")
    carry_out(order, MeshLimits())
    assert three_mf(target)[0][0] == '"><evil/>&\ufffd\U0001f600'


def test_obj_has_texture_coordinates_normals_and_vertex_colours(tmp_path: Path) -> None:
    path = exported("obj", tmp_path)
    rows = [line.split() for line in path.read_text().splitlines()]
    points = np.array([[float(n) for n in row[1:4]] for row in rows if row[0] == "v"])
    assert np.ptp(points, axis=0) == pytest.approx(SIZE, rel=1e-6)
    assert sum(row[0] == "f" for row in rows) == 552
    assert sum(row[0] == "v" and len(row) == 7 for row in rows) == 16
    assert {"vt", "vn"} <= {row[0] for row in rows}
    low, high = outside.bounds(path, "obj")
    assert high - low == pytest.approx(SIZE, rel=1e-6)


def test_obj_zip_names_every_picture_it_brings(tmp_path: Path) -> None:
    path = exported("obj_zip", tmp_path)
    document, blob = glb.unpack(tmp_path / "in.glb")
    with zipfile.ZipFile(path) as archive:
        library = archive.read("model.mtl").decode()
        for number, image in enumerate(document["images"]):
            view: Any = document["bufferViews"][image["bufferView"]]
            name = f"textures/{number}.png"
            data = blob[view["byteOffset"] :][: view["byteLength"]]
            assert archive.read(name) == data
            assert name in library
        archive.extractall(tmp_path)
    assert "map_Kd textures/0.png" in library
    loaded = outside.scene(tmp_path / "model.obj", "obj")
    assert sum(len(mesh.faces) for mesh in loaded.geometry.values()) == 552


def test_webp_goes_before_what_stands_in_for_it(tmp_path: Path) -> None:
    model = glb.rich()
    extensions: dict[str, Any] = {
        "EXT_texture_webp": {"source": 1, "extras": {}},
        "SOME_other": {"kept": True},
    }
    model.document["textures"][0]["extensions"] = extensions
    source = model.save(tmp_path / "in.glb")
    target = tmp_path / "out.zip"
    carry_out(MeshOrder(source=source, target=target, format="obj_zip"), MeshLimits())
    with zipfile.ZipFile(target) as archive:
        assert "map_Kd textures/1.png" in archive.read("model.mtl").decode()
    carry_out(MeshOrder(source=source, target=tmp_path / "out.glb"), MeshLimits())
    document, _ = glb.unpack(tmp_path / "out.glb")
    assert document["textures"][0]["extensions"] == extensions
