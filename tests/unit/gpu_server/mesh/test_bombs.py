"""Files that are broken or promise far more than they hold are refused before any work."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import Clean, MeshLimits, MeshOrder, Normalise
from gpu_server.mesh.work import carry_out
from tests.unit.gpu_server.mesh import glb

Damage = Callable[[dict[str, Any]], object]


def refused(data: bytes, folder: Path, limits: MeshLimits | None = None) -> str:
    source = folder / "in.glb"
    source.write_bytes(data)
    order = MeshOrder(source=source, target=folder / "out.glb", steps=(Clean(), Normalise()))
    with pytest.raises(MeshError) as caught:
        carry_out(order, limits or MeshLimits())
    assert not order.target.exists()
    return caught.value.code


def damaged(damage: Damage) -> bytes:
    document, blob = glb.unpack(glb.rich().bytes())
    damage(document)
    return glb.pack(document, blob)


def required(name: str) -> Damage:
    def damage(document: dict[str, Any]) -> None:
        document["extensionsUsed"] = document["extensionsRequired"] = [name]

    return damage


def cycle(document: dict[str, Any]) -> None:
    document["nodes"][0]["children"] = [2]


def chain(document: dict[str, Any]) -> None:
    first = len(document["nodes"])
    document["nodes"] += [{"children": [first + n + 1]} for n in range(500)] + [{"mesh": 0}]
    document["scenes"][0]["nodes"].append(first)


def many_instances(document: dict[str, Any]) -> None:
    nodes = [{"mesh": 0} for _ in range(10_000)]
    document["scenes"][0]["nodes"] += range(len(document["nodes"]), len(document["nodes"]) + 10_000)
    document["nodes"] += nodes


def doubling(document: dict[str, Any]) -> None:
    """Thirty levels that refer twice to the next: a thousand million leaves."""
    first = len(document["nodes"])
    document["nodes"] += [{"children": [first + n + 1] * 2} for n in range(30)] + [{"mesh": 0}]
    document["scenes"][0]["nodes"].append(first)


def attribute(name: str, **changed: Any) -> Damage:
    """Change the accessor of an attribute, to rows that are no longer than its own."""

    def damage(document: dict[str, Any]) -> None:
        primitives = [mesh["primitives"][0] for mesh in document["meshes"]]
        number = next(p["attributes"][name] for p in primitives if name in p["attributes"])
        document["accessors"][number].update(changed)

    return damage


def webp(source: object) -> Damage:
    def damage(document: dict[str, Any]) -> None:
        document["textures"][0]["extensions"] = {"EXT_texture_webp": {"source": source}}

    return damage


BROKEN: list[tuple[str, Damage]] = [
    ("mesh_external", lambda d: d["buffers"][0].update(uri="https://example.com/a.bin")),
    ("mesh_external", lambda d: d["buffers"][0].update(uri="../../etc/passwd")),
    ("mesh_external", lambda d: d["images"][0].update(uri="file:/etc/passwd")),
    ("mesh_external", lambda d: d["buffers"].append({"byteLength": 4})),
    ("mesh_invalid", lambda d: d["buffers"][0].update(byteLength=10**9)),
    ("mesh_invalid", lambda d: d["bufferViews"][5].update(byteLength=2**40)),
    ("mesh_invalid", lambda d: d["bufferViews"][5].update(byteOffset=-4)),
    ("mesh_invalid", lambda d: d["accessors"][0].update(count=10**9)),
    ("mesh_invalid", lambda d: d["accessors"][0].update(byteOffset=2**62)),
    ("mesh_invalid", lambda d: d["accessors"][0].update(count=0)),
    ("mesh_invalid", lambda d: d["accessors"][0].update(componentType=5130)),
    ("mesh_invalid", lambda d: d["accessors"][0].update(type="VEC2")),
    ("mesh_invalid", lambda d: d["bufferViews"][5].update(byteStride=4)),
    ("mesh_invalid", lambda d: d["accessors"][3].update(count=3)),
    ("mesh_unsupported", lambda d: d["accessors"][0].pop("bufferView")),
    ("mesh_unsupported", lambda d: d["accessors"][0].update(sparse={"count": 10**9})),
    ("mesh_invalid", lambda d: d["meshes"][0]["primitives"][0].update(indices=9999)),
    ("mesh_invalid", lambda d: d["meshes"][0]["primitives"][0].update(indices=0)),
    ("mesh_invalid", lambda d: d["meshes"][0]["primitives"][0].update(mode=7)),
    ("mesh_invalid", lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("POSITION")),
    ("mesh_invalid", lambda d: d["meshes"][1]["primitives"][0].update(indices=5)),
    ("mesh_invalid", lambda d: d.update(scene=4)),
    ("mesh_invalid", lambda d: d["scenes"][0].update(nodes=[77])),
    ("mesh_invalid", lambda d: d["nodes"][0].update(mesh=77)),
    ("mesh_invalid", lambda d: d["nodes"][0].update(translation=[1, 2])),
    ("mesh_invalid", lambda d: d["nodes"][1].update(rotation=[0, 0, 0, 0])),
    (
        "mesh_not_finite",
        lambda d: (
            d["nodes"][2].update(scale=[1e308] * 3, translation=[1e308] * 3)
            or d["nodes"][0].update(scale=[1e308] * 3)
        ),
    ),
    ("mesh_invalid", lambda d: d.update(nodes="many")),
    ("mesh_invalid", lambda d: d["asset"].update(version="1.0")),
    ("mesh_invalid", lambda d: d["images"][0].pop("bufferView")),
    ("mesh_unsupported", lambda d: d["images"][0].update(bufferView=5)),
    ("mesh_unsupported", required("KHR_draco_mesh_compression")),
    ("mesh_unsupported", required("EXT_meshopt_compression")),
    ("mesh_unsupported", required("KHR_texture_basisu")),
    ("mesh_unsupported", required("EXT_mesh_gpu_instancing")),
    ("mesh_unsupported", required("SOME_future_thing")),
    ("mesh_unsupported", lambda d: d.update(skins=[{"joints": [0]}])),
    ("mesh_unsupported", lambda d: d.update(animations=[{}])),
    ("mesh_unsupported", lambda d: d["meshes"][0]["primitives"][0].update(targets=[{}])),
    *(("mesh_invalid", attribute("COLOR_0", type=t)) for t in ("SCALAR", "VEC2")),
    *(("mesh_invalid", attribute("NORMAL", type=t)) for t in ("SCALAR", "VEC2")),
    *(("mesh_invalid", attribute("TANGENT", type=t)) for t in ("SCALAR", "VEC2", "VEC3")),
    ("mesh_invalid", attribute("TEXCOORD_1", type="SCALAR")),
    ("mesh_invalid", attribute("POSITION", componentType=5125)),
    ("mesh_invalid", attribute("NORMAL", componentType=5121)),
    ("mesh_invalid", attribute("TANGENT", componentType=5123)),
    ("mesh_invalid", attribute("TEXCOORD_0", componentType=5125)),
    ("mesh_invalid", attribute("COLOR_0", componentType=5120)),
    *(("mesh_invalid", webp(source)) for source in (-1, 5, True, "0")),
    ("mesh_invalid", lambda d: d["textures"][0].update(source=5)),
    ("mesh_invalid", lambda d: d["nodes"][0].update(name="\ud800")),
    ("mesh_invalid", lambda d: d["nodes"][3].update(extras={"a": ["\udfff"]})),
    ("mesh_invalid", lambda d: d["nodes"][3].update(extras={"\udc00": 1})),
    ("mesh_invalid", cycle),
    ("mesh_invalid", doubling),
    ("mesh_too_large", chain),
    ("mesh_too_large", many_instances),
    ("mesh_too_large", lambda d: d["nodes"].extend([{}] * 20_001)),
]


@pytest.mark.parametrize(("code", "damage"), BROKEN)
def test_a_document_that_lies_is_refused(tmp_path: Path, code: str, damage: Damage) -> None:
    assert refused(damaged(damage), tmp_path) == code


def test_a_picture_of_enormous_size_is_refused_by_its_header(tmp_path: Path) -> None:
    small = glb.png(1, 1, 0)
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + small[24:29]
    bomb = small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]
    model = glb.rich()
    model.texture(bomb)
    assert refused(model.bytes(), tmp_path) == "mesh_too_large"


@pytest.mark.parametrize(
    "limits",
    [
        MeshLimits(file_bytes=1000),
        MeshLimits(json_bytes=1000),
        MeshLimits(vertices=100),
        MeshLimits(faces=100),
        MeshLimits(texture_pixels=100),
        MeshLimits(items=3),
        MeshLimits(depth=1),
    ],
    ids=str,
)
def test_each_limit_holds(tmp_path: Path, limits: MeshLimits) -> None:
    assert refused(glb.rich().bytes(), tmp_path, limits) == "mesh_too_large"


def raw(text: bytes) -> bytes:
    chunk = struct.pack("<II", len(text), 0x4E4F534A) + text
    return struct.pack("<III", 0x46546C67, 2, 12 + len(chunk)) + chunk


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"solid not a glb",
        b"glTF",
        raw(b"[" * 100_000),
        raw(b'{"asset": NaN}'),
        raw(b'{"asset": {"version": "2.0"}, "scene": ' + b"9" * 10_000 + b"}"),
        raw(b"[]"),
        raw(b"\xff\xfe{}"),
        glb.rich().bytes()[:-100],
        struct.pack("<IIIII", 0x46546C67, 2, 28, 2**31, 0x4E4F534A) + b"{}      ",
        json.dumps({"asset": {"version": "2.0"}}).encode(),
    ],
    ids=range(11),
)
def test_what_is_no_glb_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    assert refused(data, tmp_path) == "mesh_invalid"


def test_extras_nested_beyond_reason_are_refused(tmp_path: Path) -> None:
    deep: Any = {}
    for _ in range(600):
        deep = {"a": deep}
    assert refused(damaged(lambda d: d["nodes"][3].update(extras=deep)), tmp_path) == "mesh_invalid"


RICH = glb.rich().bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_ends_in_anything_but_a_result_or_a_mesh_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    document, blob = glb.unpack(RICH)
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = document
        while isinstance(at, dict | list) and at:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
                junk = st.sampled_from(
                    [None, -1, 0, 1, 3, 10**6, 1.5, 1e300, "x", True, [], {}, [0], [{}]]
                )
                at[key] = data.draw(junk)
                break
            at = at[key]
    source = folder / "in.glb"
    source.write_bytes(glb.pack(document, blob))
    order = MeshOrder(source=source, target=folder / "out.glb", steps=(Clean(), Normalise()))
    try:
        carry_out(order, MeshLimits())
    except MeshError as error:
        said = error.message
    else:
        said = ""
    assert str(folder) not in said
