"""Loaders: models as names, pictures from input/."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps, ImageSequence

from gpu_server.simulator.folders import Folders
from gpu_server.simulator.nodes.table import Context, InputImages, ModelFiles, node
from gpu_server.simulator.values import Image, Mask, Model, key_of

_STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
_DEVICE = (["default", "cpu"], {"advanced": True})


@node(
    "CheckpointLoaderSimple",
    display_name="Load Checkpoint",
    category="loaders",
    inputs={"ckpt_name": (ModelFiles("checkpoints"),)},
    outputs=("MODEL", "CLIP", "VAE"),
)
def checkpoint_loader(_: Context, *, ckpt_name: str) -> tuple[Model, Model, Model]:
    """Name the three models of a checkpoint."""
    model, clip, vae = (Model(key_of(part, ckpt_name)) for part in ("model", "clip", "vae"))
    return model, clip, vae


@node(
    "UNETLoader",
    display_name="Load Diffusion Model",
    category="advanced/loaders",
    inputs={
        "unet_name": (ModelFiles("diffusion_models"),),
        "weight_dtype": (["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"],),
    },
    outputs=("MODEL",),
)
def unet_loader(_: Context, *, unet_name: str, weight_dtype: str) -> tuple[Model]:
    """Name a diffusion model."""
    return (Model(key_of("model", unet_name, weight_dtype)),)


@node(
    "CLIPLoader",
    display_name="Load CLIP",
    category="advanced/loaders",
    inputs={
        "clip_name": (ModelFiles("text_encoders"),),
        "type": (
            [
                "stable_diffusion",
                "stable_cascade",
                "sd3",
                "stable_audio",
                "mochi",
                "ltxv",
                "pixart",
                "cosmos",
                "lumina2",
                "wan",
                "hidream",
                "chroma",
                "ace",
                "omnigen2",
                "qwen_image",
                "hunyuan_image",
                "flux2",
                "ideogram4",
            ],
        ),
    },
    optional={"device": _DEVICE},
    outputs=("CLIP",),
)
def clip_loader(
    _: Context,
    *,
    clip_name: str,
    type: str,  # noqa: A002 - ComfyUI's name
    device: str = "default",
) -> tuple[Model]:
    """Name a text encoder."""
    return (Model(key_of("clip", clip_name, type, device)),)


@node(
    "DualCLIPLoader",
    category="advanced/loaders",
    inputs={
        "clip_name1": (ModelFiles("text_encoders"),),
        "clip_name2": (ModelFiles("text_encoders"),),
        "type": (["sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image"],),
    },
    optional={"device": _DEVICE},
    outputs=("CLIP",),
)
def dual_clip_loader(
    _: Context,
    *,
    clip_name1: str,
    clip_name2: str,
    type: str,  # noqa: A002 - ComfyUI's name
    device: str = "default",
) -> tuple[Model]:
    """Name a pair of text encoders."""
    return (Model(key_of("clip", clip_name1, clip_name2, type, device)),)


@node(
    "VAELoader",
    display_name="Load VAE",
    category="loaders",
    inputs={"vae_name": (ModelFiles("vae", also=("pixel_space",)),)},
    outputs=("VAE",),
)
def vae_loader(_: Context, *, vae_name: str) -> tuple[Model]:
    """Name a VAE."""
    return (Model(key_of("vae", vae_name)),)


def _with_lora(model: Model, lora_name: str, strength: float) -> Model:
    # ComfyUI leaves a model alone at strength 0, so the picture stays the same there.
    if strength == 0:
        return model
    return replace(model, key=key_of(model.key, lora_name, strength))


@node(
    "LoraLoader",
    display_name="Load LoRA",
    category="loaders",
    inputs={
        "model": ("MODEL",),
        "clip": ("CLIP",),
        "lora_name": (ModelFiles("loras"),),
        "strength_model": ("FLOAT", _STRENGTH),
        "strength_clip": ("FLOAT", _STRENGTH),
    },
    outputs=("MODEL", "CLIP"),
)
def lora_loader(
    _: Context,
    *,
    model: Model,
    clip: Model,
    lora_name: str,
    strength_model: float,
    strength_clip: float,
) -> tuple[Model, Model]:
    """Add a LoRA to model and text encoder."""
    return (
        _with_lora(model, lora_name, strength_model),
        _with_lora(clip, lora_name, strength_clip),
    )


@node(
    "LoraLoaderModelOnly",
    category="loaders",
    inputs={
        "model": ("MODEL",),
        "lora_name": (ModelFiles("loras"),),
        "strength_model": ("FLOAT", _STRENGTH),
    },
    outputs=("MODEL",),
)
def lora_loader_model_only(
    _: Context, *, model: Model, lora_name: str, strength_model: float
) -> tuple[Model]:
    """Add a LoRA to the model alone."""
    return (_with_lora(model, lora_name, strength_model),)


def _existing(folders: Folders, image: Any) -> str | None:  # noqa: ANN401 - whatever the graph holds
    return None if folders.input_file(image) else f"Invalid image file: {image}"


def _content(folders: Folders, inputs: Mapping[str, Any]) -> str:
    path = folders.input_file(inputs["image"])
    if path is None:
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found(context: Context, image: str) -> Path:
    path = context.folders.input_file(image)
    if path is None:
        raise FileNotFoundError(f"No such input file: {image}")
    return path


@node(
    "LoadImage",
    display_name="Load Image",
    category="image",
    inputs={"image": (InputImages(), {"image_upload": True})},
    outputs=("IMAGE", "MASK"),
    checks={"image": _existing},
    fingerprint=_content,
)
def load_image(context: Context, *, image: str) -> tuple[Image, Mask]:
    """Read every frame of a picture; transparency becomes the mask."""
    frames: list[Image] = []
    masks: list[Mask] = []
    with Pillow.open(_found(context, image)) as opened:
        for raw in ImageSequence.Iterator(opened):
            frame = ImageOps.exif_transpose(raw)
            rgb = np.asarray(frame.convert("RGB"))
            # Frames of another size cannot share a batch; ComfyUI skips them too.
            if frames and rgb.shape != frames[0].shape:
                continue
            frames.append(rgb)
            masks.append(_transparency(frame))
            if opened.format == "MPO":
                break  # behind it lie small copies, or the other eye's picture
    return np.stack(frames), np.stack(masks)


def _transparency(frame: Pillow.Image) -> Mask:
    if not frame.has_transparency_data:
        return np.zeros((64, 64), np.float32)
    alpha = np.asarray(frame.convert("RGBA").getchannel("A"), np.float32)
    return np.float32(1) - alpha / np.float32(255)


@node(
    "LoadImageMask",
    display_name="Load Image (as Mask)",
    category="mask",
    inputs={
        "image": (InputImages(), {"image_upload": True}),
        "channel": (["alpha", "red", "green", "blue"],),
    },
    outputs=("MASK",),
    checks={"image": _existing},
    fingerprint=_content,
)
def load_image_mask(context: Context, *, image: str, channel: str) -> tuple[Mask]:
    """Read one channel of a picture as a mask; alpha is turned round."""
    with Pillow.open(_found(context, image)) as opened:
        frame = ImageOps.exif_transpose(opened).convert("RGBA")
    values = np.asarray(frame.getchannel(channel[0].upper()), np.float32) / np.float32(255)
    return ((np.float32(1) - values if channel == "alpha" else values)[None],)
