"""Refuses what must not be unpacked, by the document alone and the first bytes of textures."""

import io
import re
import warnings

from PIL import Image as Pillow

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.gltf import COMPONENTS, WIDTHS, Accessor, Document, item
from gpu_server.mesh.order import MeshLimits

REFUSED = {
    "EXT_mesh_gpu_instancing": "GPU instancing",
    "EXT_meshopt_compression": "meshopt compression",
    "KHR_draco_mesh_compression": "Draco compression",
    "KHR_meshopt_compression": "meshopt compression",
    "KHR_texture_basisu": "KTX2 textures",
}
"""They unpack to far more than the file is, or draw what the nodes do not show."""

_UNDERSTOOD = re.compile(
    r"KHR_materials_\w+|KHR_texture_transform|KHR_mesh_quantization|KHR_lights_punctual"
    r"|KHR_xmp_json_ld|EXT_texture_webp"
)
_SMALL, _FLOAT = (5120, 5121, 5122, 5123), 5126
_ATTRIBUTES = {
    "POSITION": (("VEC3",), (*_SMALL, _FLOAT)),
    "NORMAL": (("VEC3",), (5120, 5122, _FLOAT)),
    "TANGENT": (("VEC4",), (5120, 5122, _FLOAT)),
    "TEXCOORD": (("VEC2",), (*_SMALL, _FLOAT)),
    "COLOR": (("VEC3", "VEC4"), (5121, 5123, _FLOAT)),
}
"""Types and component types of each attribute, with those of KHR_mesh_quantization."""
_TEXTURES = ("PNG", "JPEG", "WEBP")


def understood(extension: str) -> bool:
    """Whether that extension refers to accessors and buffer views in no way of its own."""
    return _UNDERSTOOD.fullmatch(extension) is not None


def check(document: Document, blob: memoryview, limits: MeshLimits) -> None:
    """Raise a MeshError for what is unsupported, external, inconsistent or too large."""
    _counts(document, limits)
    _features(document)
    _slices(document, len(blob))
    _primitives(document)
    _textures(document, blob, limits)


def _counts(document: Document, limits: MeshLimits) -> None:
    primitives = sum(len(mesh.primitives) for mesh in document.meshes)
    counts = {
        "nodes": len(document.nodes),
        "references to nodes": sum(len(node.children) for node in document.nodes),
        "primitives": primitives,
        "accessors": len(document.accessors),
        "buffer views": len(document.buffer_views),
        "images": len(document.images),
        "textures": len(document.textures),
        "materials": len(document.materials),
    }
    for what, count in counts.items():
        if count > limits.items:
            raise MeshError(
                "mesh_too_large", f"The model has {count} {what}; at most {limits.items} may be."
            )


def _features(document: Document) -> None:
    for extension in (*document.extensions_required, *document.extensions_used):
        if extension in REFUSED:
            raise MeshError(
                "mesh_unsupported", f"{REFUSED[extension]} is not supported: export without it."
            )
    for extension in document.extensions_required:
        if not understood(extension):
            name = re.sub(r"\W", "?", extension)[:60]
            raise MeshError("mesh_unsupported", f"The model requires the extension {name}.")
    moving = document.skins or document.animations
    targets = any(p.targets for mesh in document.meshes for p in mesh.primitives)
    if moving or targets:
        raise MeshError(
            "mesh_unsupported",
            "Skins, animations and morph targets are not supported: export a still model.",
        )


def _slices(document: Document, size: int) -> None:
    """Check that everything lies within the file's own buffer."""
    if any(buffer.uri is not None for buffer in document.buffers) or any(
        image.uri is not None for image in document.images
    ):
        raise MeshError(
            "mesh_external", "Buffers and images by address are not followed: embed them."
        )
    if len(document.buffers) > 1:
        raise MeshError("mesh_external", "A GLB holds one buffer; this one refers to more.")
    # the chunk may be up to three bytes longer, never shorter
    if document.buffers and document.buffers[0].byte_length > size:
        raise MeshError("mesh_invalid", "The buffer is longer than the file.")
    for view in document.buffer_views:
        item(document.buffers, view.buffer, "buffer")
        if view.byte_offset + view.byte_length > size:
            raise MeshError("mesh_invalid", "A buffer view reaches behind the end of the file.")
    for accessor in document.accessors:
        _accessor(document, accessor)


def _accessor(document: Document, accessor: Accessor) -> None:
    if accessor.sparse is not None or accessor.buffer_view is None:
        raise MeshError(
            "mesh_unsupported", "Sparse accessors and such without data are not supported."
        )
    view = item(document.buffer_views, accessor.buffer_view, "buffer view")
    one = WIDTHS[accessor.type] * int(COMPONENTS[accessor.component_type][2])
    stride = view.byte_stride or one
    # rows that overlap would make a few bytes into a large array
    if stride < one:
        raise MeshError("mesh_invalid", "The rows of an accessor overlap.")
    if accessor.byte_offset + stride * (accessor.count - 1) + one > view.byte_length:
        raise MeshError("mesh_invalid", "An accessor reaches behind the end of its buffer view.")


def _primitives(document: Document) -> None:
    for mesh in document.meshes:
        for primitive in mesh.primitives:
            if primitive.material is not None:
                item(document.materials, primitive.material, "material")
            if primitive.indices is not None:
                indices = item(document.accessors, primitive.indices, "accessor")
                if indices.type != "SCALAR" or indices.component_type not in (5121, 5123, 5125):
                    raise MeshError("mesh_invalid", "The indices of a mesh are not whole numbers.")
            rows = {name: item(document.accessors, n, "accessor") for name, n in
                    primitive.attributes.items()}  # fmt: skip
            _attributes(rows)


def _attributes(rows: dict[str, Accessor]) -> None:
    if "POSITION" not in rows:
        raise MeshError("mesh_invalid", "A mesh has no positions.")
    for name, accessor in rows.items():
        if accessor.count != rows["POSITION"].count or accessor.type.startswith("MAT"):
            raise MeshError("mesh_invalid", "The attributes of a mesh differ in length.")
        kind = re.sub(r"_\d+$", "", name)
        types, components = _ATTRIBUTES.get(kind, (WIDTHS, COMPONENTS))
        if accessor.type not in types or accessor.component_type not in components:
            raise MeshError("mesh_invalid", f"The attribute {kind} of a mesh has a wrong type.")


def _textures(document: Document, blob: memoryview, limits: MeshLimits) -> None:
    for texture in document.textures:
        if (shown := texture.image()) is not None:
            item(document.images, shown, "image")
    pixels = 0
    for image in document.images:
        if image.buffer_view is None:
            raise MeshError("mesh_invalid", "An image of the model has no data.")
        view = item(document.buffer_views, image.buffer_view, "buffer view")
        data = blob[view.byte_offset : view.byte_offset + view.byte_length]
        try:
            # Pillow reads the header alone; the pixels stay packed
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Pillow.open(io.BytesIO(data), formats=_TEXTURES) as picture:
                    pixels += picture.width * picture.height
        except Pillow.DecompressionBombError:
            pixels = limits.texture_pixels + 1
        except (OSError, ValueError, SyntaxError):
            raise MeshError(
                "mesh_unsupported", "A texture is not a readable PNG, JPEG or WebP."
            ) from None
        if pixels > limits.texture_pixels:
            raise MeshError(
                "mesh_too_large",
                f"The textures have more than {limits.texture_pixels} pixels together.",
            )
