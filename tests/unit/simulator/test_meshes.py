"""GLB files: valid, closed, bounded, textured where asked, and honest about what made them."""

import json
import struct
from collections import Counter
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gpu_server.simulator import glb, solids
from gpu_server.simulator.values import key_of

from .client import Graph, Simulator
from .scenes import bundled, has_mark, plain, titled, uploaded

TYPES = {5126: np.dtype("<f4"), 5125: np.dtype("<u4")}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}


class Glb:
    """A GLB file, read back by the letter of the specification."""

    def __init__(self, content: bytes) -> None:
        magic, version, length = struct.unpack_from("<4sII", content)
        assert (magic, version, length) == (b"glTF", 2, len(content))
        size, kind = struct.unpack_from("<I4s", content, 12)
        assert (kind, size % 4) == (b"JSON", 0)
        self.json: dict[str, Any] = json.loads(content[20 : 20 + size])
        rest = 20 + size
        size, kind = struct.unpack_from("<I4s", content, rest)
        assert (kind, size % 4, rest + 8 + size) == (b"BIN\0", 0, len(content))
        self.binary = content[rest + 8 :]
        assert 0 <= size - self.json["buffers"][0]["byteLength"] < 4
        (self.primitive,) = self.json["meshes"][0]["primitives"]

    def view(self, index: int) -> bytes:
        view = self.json["bufferViews"][index]
        assert view["byteOffset"] % 4 == 0
        return self.binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]

    def array(self, index: int) -> NDArray[Any]:
        accessor = self.json["accessors"][index]
        flat = np.frombuffer(self.view(accessor["bufferView"]), TYPES[accessor["componentType"]])
        found = flat.reshape(accessor["count"], WIDTHS[accessor["type"]])
        if "min" in accessor:
            assert np.allclose(found.min(axis=0), accessor["min"])
            assert np.allclose(found.max(axis=0), accessor["max"])
        return found

    def attribute(self, name: str) -> NDArray[Any]:
        return self.array(self.primitive["attributes"][name])

    def triangles(self) -> NDArray[Any]:
        return self.array(self.primitive["indices"]).reshape(-1, 3)

    def texture(self, place: str) -> NDArray[np.uint8]:
        used = self.json["materials"][0]["pbrMetallicRoughness"][place]["index"]
        image = self.json["images"][self.json["textures"][used]["source"]]
        assert image["mimeType"] == "image/png"
        return np.asarray(Image.open(BytesIO(self.view(image["bufferView"]))))


def volume(points: NDArray[Any], triangles: NDArray[Any]) -> float:
    """Positive if the triangles turn counter-clockwise seen from outside."""
    first, second, third = (points[triangles[:, corner]].astype(float) for corner in range(3))
    return float((first * np.cross(second, third)).sum() / 6)


def untextured(**inputs: object) -> Graph:
    return bundled("model3d-hunyuan3d21", image="thing.png", **inputs)


def textured(**inputs: object) -> Graph:
    return bundled("model3d-trellis2", image="thing.png", **inputs)


def test_a_mesh_is_shown_under_3d_with_its_folder(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    ((shown,),) = [list(ui.items()) for ui in sim.run(untextured())["outputs"].values()]
    key, (file,) = shown
    assert key == "3d"
    assert (file["subfolder"], file["type"]) == ("3d", "output")
    assert file["filename"].endswith(".glb")


def test_an_untextured_body_is_closed_bounded_and_turned_outward(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    mesh = Glb(sim.output(untextured()))
    points, triangles = mesh.attribute("POSITION"), mesh.triangles()
    assert np.abs(points).max() == pytest.approx(0.5)
    edges = Counter(
        tuple(sorted((int(t[a]), int(t[b]))))
        for t in triangles
        for a, b in ((0, 1), (1, 2), (2, 0))
    )
    assert set(edges.values()) == {2}
    assert volume(points, triangles) > 0.05
    assert np.allclose(np.linalg.norm(mesh.attribute("NORMAL"), axis=1), 1, atol=1e-5)
    assert "images" not in mesh.json


def test_a_file_says_what_made_it(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    graph = untextured()
    asset = Glb(sim.output(graph)).json["asset"]
    assert asset["version"] == "2.0"
    assert "SIMULATED" in asset["generator"]
    assert asset["extras"]["engine"] == "simulator"
    assert json.loads(asset["extras"]["prompt"]) == graph


def test_a_textured_body_has_coordinates_and_pictures_with_the_mark(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    mesh = Glb(sim.output(textured(texture_size=256)))
    coordinates = mesh.attribute("TEXCOORD_0")
    assert coordinates.min() == 0
    assert coordinates.max() == 1
    colour = mesh.texture("baseColorTexture")
    assert colour.shape == (256, 256, 3)
    assert has_mark(colour)
    rough_and_metal = mesh.texture("metallicRoughnessTexture")
    assert not rough_and_metal[..., 0].any()
    assert rough_and_metal[..., 1].min() > rough_and_metal[..., 2].max() > 0
    assert volume(mesh.attribute("POSITION"), mesh.triangles()) > 0.05


@pytest.mark.parametrize("wanted", [100, 2000, 10_000])
def test_a_mesh_has_no_more_faces_than_asked_and_not_many_fewer(
    sim: Simulator, wanted: int
) -> None:
    uploaded(sim, thing=plain())
    faces = len(Glb(sim.output(textured(texture_size=64, target_face_count=wanted))).triangles())
    assert wanted / 2 < faces <= wanted


def test_each_seed_and_each_picture_gives_another_body(sim: Simulator) -> None:
    def points(**inputs: object) -> bytes:
        return Glb(sim.output(untextured(**inputs))).attribute("POSITION").tobytes()

    uploaded(sim, thing=plain())
    first, other_seed, again = points(seed=1), points(seed=2), points(seed=1)
    uploaded(sim, thing=np.roll(plain(), 40, axis=1))
    assert first == again
    assert len({first, other_seed, points(seed=1)}) == 3


def test_a_batch_is_a_file_each(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    graph = untextured()
    titled(graph, "Latent")["batch_size"] = 2
    (_, first), (_, second) = sim.outputs(graph)
    assert first != second


def test_a_texture_needs_coordinates(sim: Simulator) -> None:
    uploaded(sim, thing=plain())
    graph = textured(texture_size=64)
    titled(graph, "Apply Texture")["mesh"] = titled(graph, "Unwrap UV")["mesh"]
    assert "unwrap" in sim.failure(graph)["exception_message"]


@pytest.mark.parametrize("faces", [1, 500, solids.MOST_FACES, 10**9])
@pytest.mark.parametrize("unwrapped", [True, False])
def test_every_body_is_within_its_limits(faces: int, *, unwrapped: bool) -> None:
    for number in range(5):
        solid = solids.body(key_of(number), faces, unwrapped=unwrapped)
        assert len(solid.indices) <= max(48, min(faces, solids.MOST_FACES))
        assert volume(solid.positions, solid.indices) > 0.05
        assert np.isfinite(solid.normals).all()
        # Normals point away from the origin, which lies inside.
        assert ((solid.normals * solid.positions).sum(axis=1) > 0).mean() > 0.95
        Glb(glb.encode([solid], {}, {}))
