"""More loaders and patches: each changes what its model is described by."""

from dataclasses import replace

from gpu_server.simulator.nodes.table import Context, ModelFiles, node
from gpu_server.simulator.values import Control, Described, Image, Mask, Model, key_of

_CFG = {"min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
_PERCENT = {"min": 0.0, "max": 1.0, "step": 0.001}


@node(
    "ImageOnlyCheckpointLoader",
    display_name="Load Checkpoint Image Only (img2vid model)",
    category="loaders/video_models",
    module="comfy_extras.nodes_video_model",
    inputs={"ckpt_name": (ModelFiles("checkpoints"),)},
    outputs=("MODEL", "CLIP_VISION", "VAE"),
)
def image_only_checkpoint_loader(_: Context, *, ckpt_name: str) -> tuple[Model, Described, Model]:
    """Name the three models of a checkpoint that sees pictures instead of texts."""
    model, seeing, vae = (key_of(part, ckpt_name) for part in ("model", "clip_vision", "vae"))
    return Model(model), Described(seeing), Model(vae)


@node(
    "CLIPVisionLoader",
    display_name="Load CLIP Vision",
    category="loaders",
    inputs={"clip_name": (ModelFiles("clip_vision"),)},
    outputs=("CLIP_VISION",),
)
def clip_vision_loader(_: Context, *, clip_name: str) -> tuple[Described]:
    """Name a model that sees pictures."""
    return (Described(key_of("clip_vision", clip_name)),)


@node(
    "CLIPVisionEncode",
    display_name="CLIP Vision Encode",
    category="conditioning",
    inputs={
        "clip_vision": ("CLIP_VISION",),
        "image": ("IMAGE",),
        "crop": (["center", "none"],),
    },
    outputs=("CLIP_VISION_OUTPUT",),
)
def clip_vision_encode(
    _: Context, *, clip_vision: Described, image: Image, crop: str
) -> tuple[Described]:
    """Describe a picture by its pixels."""
    return (Described(key_of(clip_vision, image, crop)),)


@node(
    "ModelPatchLoader",
    display_name="Load Model Patch",
    category="advanced/loaders",
    module="comfy_extras.nodes_model_patch",
    inputs={"name": (ModelFiles("model_patches"),)},
    outputs=("MODEL_PATCH",),
)
def model_patch_loader(_: Context, *, name: str) -> tuple[Described]:
    """Name a patch."""
    return (Described(key_of("model_patch", name)),)


@node(
    "QwenImageDiffsynthControlnet",
    display_name="Apply Qwen Image DiffSynth ControlNet",
    category="advanced/loaders/qwen",
    module="comfy_extras.nodes_model_patch",
    inputs={
        "model": ("MODEL",),
        "model_patch": ("MODEL_PATCH",),
        "vae": ("VAE",),
        "image": ("IMAGE",),
        "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
    },
    optional={"mask": ("MASK",)},
    outputs=("MODEL",),
)
def qwen_image_diffsynth_controlnet(
    _: Context,
    *,
    model: Model,
    model_patch: Described,
    vae: Model,
    image: Image,
    strength: float,
    mask: Mask | None = None,
) -> tuple[Model]:
    """Make a model follow a control image."""
    key = key_of(model.key, model_patch, vae, image, strength, mask)
    return (Model(key, Control(image[0, ..., :3], strength)),)


def _patched(model: Model, *how: object) -> tuple[Model]:
    return (replace(model, key=key_of(model.key, *how)),)


@node(
    "ModelSamplingAuraFlow",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    inputs={
        "model": ("MODEL",),
        "shift": ("FLOAT", {"default": 1.73, "min": 0.0, "max": 100.0, "step": 0.01}),
    },
    outputs=("MODEL",),
)
def model_sampling_aura_flow(_: Context, *, model: Model, shift: float) -> tuple[Model]:
    """Shift the noise schedule."""
    return _patched(model, "aura_flow", shift)


@node(
    "ModelSamplingSD3",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    inputs={
        "model": ("MODEL",),
        "shift": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.01}),
    },
    outputs=("MODEL",),
)
def model_sampling_sd3(_: Context, *, model: Model, shift: float) -> tuple[Model]:
    """Shift the noise schedule."""
    return _patched(model, "sd3", shift)


@node(
    "RescaleCFG",
    category="advanced/model",
    module="comfy_extras.nodes_model_advanced",
    inputs={
        "model": ("MODEL",),
        "multiplier": ("FLOAT", {"default": 0.7, "min": 0.0, "max": 1.0, "step": 0.01}),
    },
    outputs=("MODEL",),
)
def rescale_cfg(_: Context, *, model: Model, multiplier: float) -> tuple[Model]:
    """Rescale the guidance."""
    return _patched(model, "rescale", multiplier)


@node(
    "CFGNorm",
    category="advanced/guidance",
    module="comfy_extras.nodes_cfg",
    v3=True,
    experimental=True,
    inputs={
        "model": ("MODEL", {}),
        "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01}),
    },
    optional={"pre_cfg": ("BOOLEAN", {"default": False})},
    outputs=("MODEL",),
    output_names=("patched_model",),
)
def cfg_norm(_: Context, *, model: Model, strength: float, pre_cfg: bool = False) -> tuple[Model]:
    """Bound the guidance."""
    return _patched(model, "norm", strength, pre_cfg)


@node(
    "CFGOverride",
    display_name="CFG Override",
    category="model/sampling/guiders",
    module="comfy_extras.nodes_custom_sampler",
    v3=True,
    inputs={
        "model": ("MODEL", {}),
        "cfg": ("FLOAT", {"default": 1.0, **_CFG}),
        "start_percent": ("FLOAT", {"default": 0.0, **_PERCENT}),
        "end_percent": ("FLOAT", {"default": 1.0, **_PERCENT}),
    },
    outputs=("MODEL",),
)
def cfg_override(
    _: Context, *, model: Model, cfg: float, start_percent: float, end_percent: float
) -> tuple[Model]:
    """Take another guidance during some of the steps."""
    return _patched(model, "override", cfg, start_percent, end_percent)
