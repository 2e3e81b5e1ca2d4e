"""Latents of bodies, for the two models that make them; results are described by keys."""

from gpu_server.simulator.nodes.table import Context, choice, node
from gpu_server.simulator.solids import MOST_FACES
from gpu_server.simulator.values import (
    Conditioning,
    Described,
    Image,
    Latent,
    LatentFrame,
    Mesh,
    Model,
    Voxels,
    key_of,
)

_BATCH = ("INT", {"default": 1, "min": 1, "max": 4096})
_PREVIEW_SIDE = 512
"""A latent of a body has no size in pixels: this is the size of its previews."""
_HUNYUAN, _TRELLIS = "comfy_extras.nodes_hunyuan3d", "comfy_extras.nodes_trellis2"
_PAIR = ("positive", "negative")
_STAGE = ("CONDITIONING", "CONDITIONING", "LATENT")


def _empty(batch_size: int) -> Latent:
    return Latent(_PREVIEW_SIDE, _PREVIEW_SIDE, (LatentFrame(),) * batch_size)


def _pair(key: str) -> tuple[Conditioning, Conditioning]:
    positive, negative = (Conditioning(key_of(side, key)) for side in _PAIR)
    return positive, negative


def _staged(
    positive: Conditioning, negative: Conditioning, *parts: object, batch_size: int
) -> tuple[Conditioning, Conditioning, Latent]:
    """Prepare a further sampler: what came before counts, the latent is blank."""
    prepared = [Conditioning(key_of(one.key, *parts)) for one in (positive, negative)]
    return prepared[0], prepared[1], _empty(batch_size)


def _decoded(samples: Latent, *parts: object) -> Voxels:
    return Voxels(tuple(key_of(frame.key, *parts) for frame in samples.frames))


@node(
    "EmptyLatentHunyuan3Dv2",
    category="latent/3d",
    module=_HUNYUAN,
    v3=True,
    inputs={
        "resolution": ("INT", {"default": 3072, "min": 1, "max": 8192}),
        "batch_size": _BATCH,
    },
    outputs=("LATENT",),
)
def empty_latent_hunyuan3d(
    _: Context,
    *,
    batch_size: int,
    **_unused: object,
) -> tuple[Latent]:
    """Make blank latents of bodies."""
    return (_empty(batch_size),)


@node(
    "Hunyuan3Dv2Conditioning",
    category="conditioning/video_models",
    module=_HUNYUAN,
    v3=True,
    inputs={"clip_vision_output": ("CLIP_VISION_OUTPUT", {})},
    outputs=("CONDITIONING", "CONDITIONING"),
    output_names=_PAIR,
)
def hunyuan3d_conditioning(
    _: Context, *, clip_vision_output: Described
) -> tuple[Conditioning, Conditioning]:
    """Follow a picture."""
    return _pair(clip_vision_output.key)


@node(
    "VAEDecodeHunyuan3D",
    category="latent/3d",
    module=_HUNYUAN,
    v3=True,
    inputs={
        "samples": ("LATENT", {}),
        "vae": ("VAE", {}),
        "num_chunks": (
            "INT",
            {"advanced": True, "default": 8000, "min": 1000, "max": 500000},
        ),
        "octree_resolution": ("INT", {"advanced": True, "default": 256, "min": 16, "max": 512}),
    },
    outputs=("VOXEL",),
)
def vae_decode_hunyuan3d(
    _: Context,
    *,
    samples: Latent,
    vae: Model,
    octree_resolution: int,
    **_unused: object,
) -> tuple[Voxels]:
    """Describe each latent's body."""
    return (_decoded(samples, vae, octree_resolution),)


@node(
    "VoxelToMesh",
    display_name="Voxel to Mesh",
    category="3d",
    module=_HUNYUAN,
    v3=True,
    inputs={
        "voxel": ("VOXEL", {}),
        "algorithm": choice(["surface net", "basic"]),
        "threshold": ("FLOAT", {"default": 0.6, "min": -1.0, "max": 1.0, "step": 0.01}),
    },
    outputs=("MESH",),
)
def voxel_to_mesh(_: Context, *, voxel: Voxels, algorithm: str, threshold: float) -> tuple[Mesh]:
    """Give each body a surface."""
    keys = tuple(key_of(key, algorithm, threshold) for key in voxel.keys)
    return (Mesh(keys=keys, faces=MOST_FACES),)


@node(
    "Trellis2Conditioning",
    category="model/conditioning/trellis2",
    module=_TRELLIS,
    v3=True,
    inputs={"clip_vision_model": ("CLIP_VISION", {}), "image": ("IMAGE", {})},
    outputs=("CONDITIONING", "CONDITIONING"),
    output_names=_PAIR,
)
def trellis2_conditioning(
    _: Context, *, clip_vision_model: Described, image: Image
) -> tuple[Conditioning, Conditioning]:
    """Follow a picture."""
    return _pair(key_of(clip_vision_model, image))


@node(
    "EmptyTrellis2LatentStructure",
    category="model/latent/trellis",
    module=_TRELLIS,
    v3=True,
    inputs={"batch_size": _BATCH},
    outputs=("LATENT",),
)
def empty_trellis2_latent_structure(_: Context, *, batch_size: int) -> tuple[Latent]:
    """Make blank latents of bodies."""
    return (_empty(batch_size),)


@node(
    "VaeDecodeStructureTrellis2",
    category="model/latent/trellis",
    module=_TRELLIS,
    v3=True,
    inputs={
        "samples": ("LATENT", {}),
        "vae": ("VAE", {}),
        "resolution": choice(["32", "64"], default="32"),
    },
    outputs=("VOXEL",),
    output_names=("voxel",),
)
def vae_decode_structure_trellis2(
    _: Context, *, samples: Latent, vae: Model, resolution: str
) -> tuple[Voxels]:
    """Describe each latent's rough body."""
    return (_decoded(samples, vae, resolution),)


@node(
    "Trellis2ShapeStage",
    category="model/conditioning/trellis2",
    module=_TRELLIS,
    v3=True,
    inputs={
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "voxel": ("VOXEL", {}),
    },
    outputs=_STAGE,
    output_names=(*_PAIR, "LATENT"),
)
def trellis2_shape_stage(
    _: Context, *, positive: Conditioning, negative: Conditioning, voxel: Voxels
) -> tuple[Conditioning, Conditioning, Latent]:
    """Prepare the sampling of the shape."""
    return _staged(positive, negative, voxel.keys, batch_size=len(voxel.keys))


@node(
    "Trellis2UpsampleStage",
    display_name="Trellis2 Upsample Stage",
    category="model/conditioning/trellis2",
    module=_TRELLIS,
    v3=True,
    inputs={
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "shape_latent": ("LATENT", {}),
        "vae": ("VAE", {}),
        "target_resolution": ("INT", {"default": 1024, "min": 1024, "max": 2048, "step": 128}),
    },
    outputs=_STAGE,
    output_names=(*_PAIR, "LATENT"),
)
def trellis2_upsample_stage(
    _: Context,
    *,
    positive: Conditioning,
    negative: Conditioning,
    shape_latent: Latent,
    vae: Model,
    target_resolution: int,
) -> tuple[Conditioning, Conditioning, Latent]:
    """Prepare the sampling of a finer shape."""
    before = [frame.key for frame in shape_latent.frames]
    return _staged(positive, negative, before, vae, target_resolution, batch_size=len(before))


@node(
    "Trellis2TextureStage",
    category="model/conditioning/trellis2",
    module=_TRELLIS,
    v3=True,
    inputs={
        "positive": ("CONDITIONING", {}),
        "negative": ("CONDITIONING", {}),
        "shape_latent": ("LATENT", {}),
    },
    outputs=_STAGE,
    output_names=(*_PAIR, "LATENT"),
)
def trellis2_texture_stage(
    _: Context, *, positive: Conditioning, negative: Conditioning, shape_latent: Latent
) -> tuple[Conditioning, Conditioning, Latent]:
    """Prepare the sampling of colours."""
    before = [frame.key for frame in shape_latent.frames]
    return _staged(positive, negative, "texture", before, batch_size=len(before))


@node(
    "VaeDecodeShapeTrellis",
    category="model/latent/trellis",
    module=_TRELLIS,
    v3=True,
    inputs={"samples": ("LATENT", {}), "vae": ("VAE", {})},
    outputs=("MESH", "SHAPE_SUBDIVIDES"),
    output_names=("mesh", "shape_subdivides"),
)
def vae_decode_shape_trellis(_: Context, *, samples: Latent, vae: Model) -> tuple[Mesh, Described]:
    """Describe each latent's body, and how it was divided."""
    keys = _decoded(samples, vae).keys
    return Mesh(keys=keys, faces=MOST_FACES), Described(key_of("divided", keys))


@node(
    "VaeDecodeTextureTrellis",
    category="model/latent/trellis",
    module=_TRELLIS,
    v3=True,
    inputs={
        "samples": ("LATENT", {}),
        "vae": ("VAE", {}),
        "shape_subdivides": ("SHAPE_SUBDIVIDES", {}),
    },
    outputs=("VOXEL",),
    output_names=("voxel_colors",),
)
def vae_decode_texture_trellis(
    _: Context, *, samples: Latent, vae: Model, shape_subdivides: Described
) -> tuple[Voxels]:
    """Describe the colours of each body."""
    return (_decoded(samples, vae, shape_subdivides),)
