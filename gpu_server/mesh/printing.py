"""Writes a scene for slicers, STL and 3MF: in millimetres, z up, its least corner at the origin."""

import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from gpu_server.mesh.model import Floats, Ints, Model
from gpu_server.mesh.order import METRES
from gpu_server.mesh.scene import bounds, instances, moved
from gpu_server.mesh.surface import same

_ROWS = 65_536
"""Rows written at a time."""
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPES = f"""<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="{_PACKAGE}/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>
</Types>"""
_RELATIONS = f"""<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="{_PACKAGE}/relationships">
<Relationship Target="/3D/3dmodel.model" Id="rel0"
 Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>
</Relationships>"""
_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<model unit="millimeter" xml:lang="en-US"
 xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02">
<resources>
"""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to write: the opposite of its production Char."""
_STL_ROW = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def write_stl(model: Model, path: Path) -> int:
    """Write binary STL; returns the number of faces."""
    total = 0
    with path.open("wb") as file:
        file.write(b"millimetres, z up".ljust(80, b" ") + struct.pack("<I", 0))
        for _, points, faces in _parts(model):
            for start in range(0, len(faces), _ROWS):
                corners = points[faces[start : start + _ROWS]]
                normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
                length = np.linalg.norm(normals, axis=1, keepdims=True)
                rows: NDArray[Any] = np.zeros(len(corners), dtype=_STL_ROW)
                rows["normal"] = normals / np.where(length > 0, length, 1)
                rows["corners"] = corners
                file.write(rows.tobytes())
            total += len(faces)
        file.seek(80)
        file.write(struct.pack("<I", total))
    return total


def write_3mf(model: Model, path: Path) -> int:
    """Write 3MF, one object for each mesh that is shown; returns the number of faces."""
    total = number = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=5) as archive:
        archive.writestr("[Content_Types].xml", _TYPES)
        archive.writestr("_rels/.rels", _RELATIONS)
        with archive.open("3D/3dmodel.model", "w", force_zip64=True) as file:
            file.write(_HEAD.encode())
            for number, (name, points, faces) in enumerate(_parts(model), start=1):
                _object(file, number, name, points, faces)
                total += len(faces)
            items = "".join(f'<item objectid="{n}"/>\n' for n in range(1, number + 1))
            file.write(f"</resources>\n<build>\n{items}</build>\n</model>\n".encode())
    return total


def _object(file: IO[bytes], number: int, name: str, points: Floats, faces: Ints) -> None:
    head = f'<object id="{number}" name={quoteattr(name)} type="model"><mesh>\n<vertices>\n'
    file.write(_NOT_XML.sub("", head).encode())
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        text = '<vertex x="%.9g" y="%.9g" z="%.9g"/>\n' * len(rows)
        file.write((text % tuple(rows.ravel().tolist())).encode())
    file.write(b"</vertices>\n<triangles>\n")
    for start in range(0, len(faces), _ROWS):
        rows = faces[start : start + _ROWS]
        text = '<triangle v1="%d" v2="%d" v3="%d"/>\n' * len(rows)
        file.write((text % tuple(rows.ravel().tolist())).encode())
    file.write(b"</triangles>\n</mesh></object>\n")


def _parts(model: Model) -> Iterator[tuple[str, Floats, Ints]]:
    """Each mesh that is shown: name, places on the print bed, faces of three different places."""
    low, high = bounds(model)
    # the least corner once y has become z
    corner = np.array([low[0], -high[2], low[1]])
    for index, matrix, mesh in instances(model):
        mirrored = np.linalg.det(matrix[:3, :3]) < 0
        corners: list[Floats] = []
        for primitive in mesh.primitives:
            faces = model.faces(primitive)
            faces = faces[:, ::-1] if mirrored else faces
            points = moved(model.points(primitive.attributes["POSITION"]), matrix)
            corners.append(points[faces.ravel()])
        flat = np.concatenate(corners)
        upright = np.stack([flat[:, 0], -flat[:, 2], flat[:, 1]], axis=1) - corner
        # slicers find a solid by shared vertices: seams of textures must not look like cuts
        places, first = same((upright / METRES["mm"]).astype("<f4"))
        faces = places.reshape(-1, 3)
        whole = (faces != np.roll(faces, 1, axis=1)).all(axis=1)
        if whole.any():
            name = model.document.nodes[index].name or mesh.name or f"part {index}"
            yield name, (upright / METRES["mm"])[first], faces[whole]
