"""Meshes: treated, textured, and written as GLB files."""

from dataclasses import replace

import numpy as np

from gpu_server.simulator import glb, pictures, png
from gpu_server.simulator.nodes.files import PNG_INPUTS, listed, place, told
from gpu_server.simulator.nodes.table import Context, Shown, Spec, choice, dynamic, node
from gpu_server.simulator.solids import body
from gpu_server.simulator.values import Image, Mesh, Voxels, key_of

_MODULE = "comfy_extras.nodes_mesh_postprocess"
_MESH: Spec = ("MESH", {})
_UNIQUE_ID = {"unique_id": "UNIQUE_ID"}
_OFF: Spec = ("BOOLEAN", {"advanced": True, "default": False})
_FILES_3D = ("GLB", "GLTF", "OBJ", "FBX", "STL", "USDZ", "PLY", "SPLAT", "SPZ", "KSPLAT")
_SAVED = ",".join(
    [
        "MESH",
        *(f"FILE_3D_{kind}" for kind in _FILES_3D),
        *("FILE_3D_SPLAT_ANY", "FILE_3D_POINT_CLOUD_ANY", "FILE_3D"),
    ]
)
_METAL, _ROUGH = 0.1, 0.8
_SIGN_MODES = {
    "udf": {
        "qef": _OFF,
        "drop_inverted_components": _OFF,
        "drop_enclosed_components": _OFF,
    },
    "sdf": {
        "qef": ("BOOLEAN", {"default": True}),
        "manifold": ("BOOLEAN", {"default": False}),
    },
}
_PLACEMENT_MODES = {
    "midpoint": {},
    "qem": {
        "line_quadric_weight": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1}),
        "feature_edge_quadric_weight": (
            "FLOAT",
            {"default": 0.0, "min": 0.0, "max": 1000.0, "step": 1.0},
        ),
        "feature_edge_min_dihedral_deg": (
            "FLOAT",
            {"default": 30.0, "min": 0.0, "max": 180.0, "step": 1.0},
        ),
        "clamp_v_to_edge": ("BOOLEAN", {"default": True}),
    },
}


@node(
    "RemeshMesh",
    display_name="Remesh Mesh (Narrow-Band DC)",
    category="3d/mesh",
    module=_MODULE,
    v3=True,
    inputs={
        "mesh": _MESH,
        "resolution": ("INT", {"default": 512, "min": 32, "max": 2048}),
        "sign_mode": dynamic(_SIGN_MODES),
        "band": ("FLOAT", {"advanced": True, "default": 1.0, "min": 0.5, "max": 4.0, "step": 0.1}),
        "project_back": (
            "FLOAT",
            {"advanced": True, "default": 0.0, "min": 0.0, "max": 1.0, "step": 0.05},
        ),
        "fix_poles": _OFF,
        "smooth_iters": ("INT", {"default": 0, "min": 0, "max": 20}),
        "drop_small_components": (
            "FLOAT",
            {"advanced": True, "default": 0.01, "min": 0.0, "max": 0.5, "step": 0.005},
        ),
        "precluster_max_verts": (
            "INT",
            {"advanced": True, "default": 20000000, "min": 0, "max": 100000000},
        ),
    },
    hidden=_UNIQUE_ID,
    outputs=("MESH",),
    output_names=("mesh",),
)
def remesh_mesh(
    _: Context,
    *,
    mesh: Mesh,
    resolution: int,
    **_unused: object,
) -> tuple[Mesh]:
    """Divide the surface anew: as fine as the grid, or as fine as bodies get here."""
    return (replace(mesh, faces=min(mesh.faces, resolution * resolution)),)


@node(
    "DecimateMesh",
    display_name="Decimate Mesh",
    category="3d/mesh",
    module=_MODULE,
    v3=True,
    inputs={
        "mesh": _MESH,
        "target_face_count": ("INT", {"default": 200000, "min": 0, "max": 50000000}),
        "placement_mode": dynamic(_PLACEMENT_MODES),
    },
    hidden=_UNIQUE_ID,
    outputs=("MESH",),
    output_names=("mesh",),
)
def decimate_mesh(
    _: Context,
    *,
    mesh: Mesh,
    target_face_count: int,
    **_unused: object,
) -> tuple[Mesh]:
    """Keep at most so many faces; 0 keeps them all."""
    return (replace(mesh, faces=min(mesh.faces, target_face_count or mesh.faces)),)


@node(
    "MeshSmoothNormals",
    display_name="Smooth Mesh Normals",
    category="3d/mesh",
    module=_MODULE,
    v3=True,
    inputs={
        "mesh": _MESH,
        "crease_angle": ("FLOAT", {"default": 180.0, "min": 0.0, "max": 180.0, "step": 1.0}),
    },
    outputs=("MESH",),
    output_names=("mesh",),
)
def mesh_smooth_normals(
    _: Context,
    *,
    mesh: Mesh,
    **_unused: object,
) -> tuple[Mesh]:
    """Leave the normals as they are: smooth."""
    return (mesh,)


@node(
    "UnwrapMesh",
    display_name="Unwrap Mesh UVs",
    category="3d/texturing",
    module=_MODULE,
    v3=True,
    inputs={
        "mesh": _MESH,
        "segmenter": choice(["pec", "adaptive"], default="pec"),
        "resolution": ("INT", {"default": 1024, "min": 0, "max": 8192, "step": 256}),
        "padding": ("INT", {"default": 1, "min": 0, "max": 16}),
        "weld_distance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.0001}),
    },
    hidden=_UNIQUE_ID,
    outputs=("MESH",),
    output_names=("mesh",),
)
def unwrap_mesh(
    _: Context,
    *,
    mesh: Mesh,
    **_unused: object,
) -> tuple[Mesh]:
    """Give the surface texture coordinates."""
    return (replace(mesh, unwrapped=True),)


@node(
    "BakeTextureFromVoxel",
    display_name="Bake Texture From Voxel",
    category="3d/texturing",
    module=_MODULE,
    v3=True,
    inputs={
        "mesh": _MESH,
        "voxel_colors": ("VOXEL", {}),
        "texture_size": ("INT", {"default": 2048, "min": 64, "max": 8192}),
    },
    optional={"reference_mesh": _MESH},
    outputs=("IMAGE", "IMAGE", "IMAGE"),
    output_names=("base_color", "metallic", "roughness"),
)
def bake_texture_from_voxel(
    _: Context,
    *,
    mesh: Mesh,
    voxel_colors: Voxels,
    texture_size: int,
    reference_mesh: Mesh | None = None,
) -> tuple[Image, Image, Image]:
    """Draw a texture, with the mark on it, and a plain surface."""
    of = mesh if reference_mesh is None else reference_mesh
    key = key_of(of.keys, voxel_colors.keys)
    base_color = pictures.marked(pictures.draw(key, texture_size, texture_size))[None]
    shape = (1, texture_size, texture_size, 3)
    metallic, roughness = (
        np.full(shape, round(level * 255), np.uint8) for level in (_METAL, _ROUGH)
    )
    return base_color, metallic, roughness


@node(
    "ApplyTextureToMesh",
    display_name="Apply Texture to Mesh",
    category="3d/texturing",
    module=_MODULE,
    v3=True,
    inputs={"mesh": _MESH, "base_color": ("IMAGE", {})},
    optional={
        "metallic": ("IMAGE", {}),
        "roughness": ("IMAGE", {}),
        "occlusion": ("IMAGE", {}),
        "normal_map": ("IMAGE", {}),
    },
    outputs=("MESH",),
    output_names=("mesh",),
)
def apply_texture_to_mesh(
    _: Context,
    *,
    mesh: Mesh,
    base_color: Image,
    metallic: Image | None = None,
    roughness: Image | None = None,
    occlusion: Image | None = None,
    normal_map: Image | None = None,
) -> tuple[Mesh]:
    """Put textures onto a mesh that was unwrapped."""
    if not mesh.unwrapped:
        raise ValueError("the mesh has no texture coordinates: unwrap it first")
    if occlusion is not None or normal_map is not None:
        raise NotImplementedError("the simulator writes no occlusion and no normal maps")
    return (
        replace(
            mesh,
            base_color=base_color[0, ..., :3],
            metallic=None if metallic is None else metallic[0],
            roughness=None if roughness is None else roughness[0],
        ),
    )


def _textures(mesh: Mesh) -> dict[str, bytes]:
    if mesh.base_color is None:
        return {}
    textures = {"baseColorTexture": png.encode(mesh.base_color, {"engine": "simulator"})}
    given = [image for image in (mesh.metallic, mesh.roughness) if image is not None]
    if given:
        packed = np.zeros((*given[0].shape[:2], 3), np.uint8)
        # glTF keeps roughness in green and metalness in blue of one picture.
        packed[..., 1] = 255 if mesh.roughness is None else mesh.roughness[..., 0]
        packed[..., 2] = 0 if mesh.metallic is None else mesh.metallic[..., 0]
        textures["metallicRoughnessTexture"] = png.encode(packed, {"engine": "simulator"})
    return textures


@node(
    "SaveGLB",
    display_name="Save 3D Model",
    category="3d",
    module="comfy_extras.nodes_save_3d",
    v3=True,
    inputs={
        "mesh": (_SAVED, {}),
        "filename_prefix": ("STRING", {"default": "3d/ComfyUI", "multiline": False}),
    },
    hidden=PNG_INPUTS,
    output_node=True,
)
def save_glb(context: Context, *, mesh: Mesh, filename_prefix: str) -> Shown:
    """Write each body as a GLB file into output/."""
    folder, stem, counter = place(context, "output", filename_prefix, (0, 0))
    textures = _textures(mesh)
    saved: list[dict[str, str]] = []
    for index, key in enumerate(mesh.keys):
        path = folder / f"{stem}_{counter + index:05}_.glb"
        solid = body(key, mesh.faces, unwrapped=mesh.unwrapped)
        glb.write(path, [solid], textures, told(context))
        saved.append(listed(context, path, "output"))
    return Shown(ui={"3d": saved})
