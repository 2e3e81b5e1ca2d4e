"""The simulator's files: input, output, temp, and which model files it claims to have."""

import shutil
from collections.abc import Callable
from pathlib import Path

INSTALLED: dict[str, tuple[str, ...]] = {
    "checkpoints": (
        "hunyuan_3d_v2.1.safetensors",
        "sam3.1_multiplex_fp16.safetensors",
        "sd_xl_base_1.0.safetensors",
        "sdpose_wholebody_fp16.safetensors",
        "tiny-sd15.ckpt",
        "v1-5-pruned-emaonly-fp16.safetensors",
    ),
    "loras": (
        "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        "demo-ink.safetensors",
        "demo-style.safetensors",
        "tiny-sd15-lora.safetensors",
    ),
    "vae": (
        "ae.safetensors",
        "flux2-vae.safetensors",
        "qwen_image_vae.safetensors",
        "trellis_2_shape_vae_bf16.safetensors",
        "trellis_2_texture_vae_bf16.safetensors",
        "wan2.2_vae.safetensors",
        "wan_2.1_vae.safetensors",
    ),
    "text_encoders": (
        "clip_l.safetensors",
        "qwen3vl_4b_fp8_scaled.safetensors",
        "qwen_2.5_vl_7b_fp8_scaled.safetensors",
        "qwen_3_4b.safetensors",
        "qwen_3_8b_fp8mixed.safetensors",
        "t5xxl_fp16.safetensors",
        "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "diffusion_models": (
        "flux-2-klein-4b-fp8.safetensors",
        "flux-2-klein-9b-fp8.safetensors",
        "flux1-dev.safetensors",
        "qwen_image_edit_2511_fp8mixed.safetensors",
        "trellis_2_int8_convrot.safetensors",
        "wan2.1_i2v_480p_14B_fp16.safetensors",
        "wan2.1_i2v_480p_14B_fp8_scaled.safetensors",
        "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
        "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
        "wan2.2_ti2v_5B_fp16.safetensors",
        "z_image_turbo_bf16.safetensors",
    ),
    "clip_vision": ("clip_vision_h.safetensors", "dino_v3_L_naf_fp32.safetensors"),
    "model_patches": ("Z-Image-Turbo-Fun-Controlnet-Union.safetensors",),
    "upscale_models": ("RealESRGAN_x4plus.safetensors",),
    "background_removal": ("birefnet.safetensors",),
    "geometry_estimation": ("depth_anything_3_mono_large.safetensors",),
    "LLM": (
        "microsoft/Florence-2-base",
        "microsoft/Florence-2-base-ft",
        "microsoft/Florence-2-large",
        "microsoft/Florence-2-large-ft",
    ),
    "sam2": (
        "sam2.1_hiera_base_plus.safetensors",
        "sam2.1_hiera_large.safetensors",
        "sam2.1_hiera_small.safetensors",
        "sam2.1_hiera_tiny.safetensors",
    ),
}
"""Names only: nothing is ever read from these files."""

FOLDERS = (
    "checkpoints",
    "configs",
    "loras",
    "vae",
    "text_encoders",
    "diffusion_models",
    "clip_vision",
    "style_models",
    "embeddings",
    "diffusers",
    "vae_approx",
    "controlnet",
    "gligen",
    "upscale_models",
    "custom_nodes",
    "hypernetworks",
    "photomaker",
    "classifiers",
    "model_patches",
    "audio_encoders",
    "background_removal",
    "geometry_estimation",
)
MODEL_SUFFIXES = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
_TYPES = ("input", "output", "temp")


class Folders:
    """Paths below the simulator's directory, and the model lists built from it."""

    def __init__(self, root: Path, hidden: Callable[[], tuple[str, ...]]) -> None:
        self.root = root.resolve()
        self._hidden = hidden
        for kind in _TYPES:
            self.directory(kind).mkdir(parents=True, exist_ok=True)

    def wipe_temp(self) -> None:
        """Empty temp/, as ComfyUI does at its start and exit."""
        shutil.rmtree(self.directory("temp"), ignore_errors=True)
        self.directory("temp").mkdir(parents=True, exist_ok=True)

    def directory(self, kind: str) -> Path:
        """Return the folder of `input`, `output` or `temp`; `KeyError` for anything else."""
        if kind not in _TYPES:
            raise KeyError(kind)
        return self.root / kind

    def within(self, kind: str, relative: str) -> Path | None:
        """Return a path below a folder, or None when it would lie outside."""
        folder = self.directory(kind)
        path = (folder / relative).resolve()
        return path if path.is_relative_to(folder) else None

    def input_file(self, name: str) -> Path | None:
        """Resolve what LoadImage takes: `a.png`, `sub/a.png`, `a.png [output]`."""
        plain, kind = annotated(name)
        path = self.within(kind or "input", plain)
        return path if path is not None and path.is_file() else None

    def input_images(self) -> list[str]:
        """List the pictures lying directly in input/."""
        return sorted(
            path.name
            for path in self.directory("input").iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )

    def model_files(self, folder: str) -> list[str]:
        """List the model files of a folder: the built-in names and what was dropped in."""
        base = self.root / "models" / folder
        found = {
            path.relative_to(base).as_posix()
            for path in base.rglob("*")
            if path.suffix.lower() in MODEL_SUFFIXES and path.is_file()
        }
        return sorted(found.union(INSTALLED.get(folder, ())).difference(self._hidden()))

    def model_path(self, folder: str, name: str) -> Path | None:
        """Return a dropped-in model file, or None (built-in names have no file)."""
        base = (self.root / "models" / folder).resolve()
        path = (base / name).resolve()
        return path if path.is_relative_to(base) and path.is_file() else None


def annotated(name: str) -> tuple[str, str | None]:
    """Split `a.png [output]` into name and folder type; None when no type is given."""
    for kind in _TYPES:
        suffix = f"[{kind}]"
        if name.endswith(suffix):
            return name.removesuffix(suffix)[:-1], kind
    return name, None
