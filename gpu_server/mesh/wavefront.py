"""Writes a scene as Wavefront OBJ, in millimetres and with glTF's axes, alone or with materials."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from gpu_server.mesh.gltf import Material, Primitive, TextureUse, item
from gpu_server.mesh.model import Floats, Model, Rows
from gpu_server.mesh.order import METRES
from gpu_server.mesh.place import carried_normals
from gpu_server.mesh.scene import instances, moved

_ROWS = 65_536
"""Rows written at a time."""
_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}


def write_obj(model: Model, path: Path) -> int:
    """Write the geometry with texture coordinates, normals and vertex colours; number of faces."""
    with path.open("wb") as file:
        return _write(model, file, materials=False)


def write_obj_zip(model: Model, path: Path) -> int:
    """Write `model.obj`, `model.mtl` and the textures they name; returns the number of faces."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=5) as archive:
        with archive.open("model.obj", "w", force_zip64=True) as file:
            total = _write(model, file, materials=True)
        files = {n: model.image(n) for n in range(len(model.document.images))}
        names = {n: f"textures/{n}.{_suffix(data)}" for n, data in files.items()}
        archive.writestr("model.mtl", "\n".join(_library(model, names)))
        for number, data in files.items():
            # pictures are packed already
            archive.writestr(names[number], data, compress_type=zipfile.ZIP_STORED)
    return total


def _suffix(data: bytes) -> str:
    return next((name for magic, name in _SUFFIXES.items() if data.startswith(magic)), "bin")


def _write(model: Model, file: IO[bytes], *, materials: bool) -> int:
    file.write(b"# millimetres, y up\n")
    if materials:
        file.write(b"mtllib model.mtl\n")
    total = 0
    # OBJ counts from one, and over the whole file
    points = uvs = normals = 1
    for part, (primitive, matrix) in enumerate(_drawn(model)):
        faces = model.faces(primitive)
        if np.linalg.det(matrix[:3, :3]) < 0:
            faces = faces[:, ::-1]
        file.write(f"o part_{part}\n".encode())
        if materials and primitive.material is not None:
            file.write(f"usemtl material_{primitive.material}\n".encode())
        columns = [faces + points]
        points += _vertices(file, model, primitive, matrix)
        uv, normal = (primitive.attributes.get(name) for name in ("TEXCOORD_0", "NORMAL"))
        if uv is not None:
            # OBJ counts a picture's rows from below
            rows = model.numbers(uv)[:, :2] * (1, -1) + (0, 1)
            _lines(file, "vt %.9g %.9g\n", rows)
            columns.append(faces + uvs)
            uvs += len(rows)
        if normal is not None:
            rows = carried_normals(model.numbers(normal), matrix)
            _lines(file, "vn %.9g %.9g %.9g\n", rows)
            columns.append(faces + normals)
            normals += len(rows)
        corner = "/".join(["%d"] * len(columns))
        if uv is None and normal is not None:
            corner = "%d//%d"
        _lines(
            file,
            f"f {corner} {corner} {corner}\n",
            np.stack(columns, axis=2).reshape(-1, 3 * len(columns)),
        )
        total += len(faces)
    return total


def _drawn(model: Model) -> Iterator[tuple[Primitive, Floats]]:
    for _, matrix, mesh in instances(model):
        for primitive in mesh.primitives:
            if len(model.faces(primitive)):
                yield primitive, matrix


def _vertices(file: IO[bytes], model: Model, primitive: Primitive, matrix: Floats) -> int:
    points = moved(model.points(primitive.attributes["POSITION"]), matrix) / METRES["mm"]
    colour = primitive.attributes.get("COLOR_0")
    if colour is None:
        _lines(file, "v %.9g %.9g %.9g\n", points)
    else:
        # not in the format's old description, but what every reader of coloured OBJ expects
        rows = np.hstack([points, model.numbers(colour)[:, :3]])
        _lines(file, "v %.9g %.9g %.9g %.6g %.6g %.6g\n", rows)
    return len(points)


def _lines(file: IO[bytes], line: str, rows: Rows) -> None:
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        file.write((line * len(some) % tuple(some.ravel().tolist())).encode())


def _library(model: Model, names: dict[int, str]) -> Iterator[str]:
    for number, material in enumerate(model.document.materials):
        metal = material.pbr_metallic_roughness
        red, green, blue, alpha = metal.base_color_factor
        yield f"newmtl material_{number}"
        yield f"Kd {red:.6g} {green:.6g} {blue:.6g}"
        yield f"d {alpha:.6g}"
        yield f"Pm {metal.metallic_factor:.6g}"
        yield f"Pr {metal.roughness_factor:.6g}"
        yield "Ke " + " ".join(f"{part:.6g}" for part in material.emissive_factor)
        for key, use in _maps(material):
            texture = item(model.document.textures, use.index, "texture")
            image = texture.image()
            if image is not None:
                item(model.document.images, image, "image")
                yield f"{key} {names[image]}"
        yield ""


def _maps(material: Material) -> Iterator[tuple[str, TextureUse]]:
    metal = material.pbr_metallic_roughness
    if metal.base_color_texture is not None:
        yield "map_Kd", metal.base_color_texture
    if metal.metallic_roughness_texture is not None:
        # glTF keeps both in one picture
        yield "map_Pr -imfchan g", metal.metallic_roughness_texture
        yield "map_Pm -imfchan b", metal.metallic_roughness_texture
    if material.normal_texture is not None:
        yield "norm", material.normal_texture
    if material.occlusion_texture is not None:
        yield "map_ao -imfchan r", material.occlusion_texture
    if material.emissive_texture is not None:
        yield "map_Ke", material.emissive_texture
