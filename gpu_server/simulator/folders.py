"""The simulator's files: input, output, temp, and which model files it claims to have."""

import shutil
from collections.abc import Callable
from pathlib import Path

INSTALLED: dict[str, tuple[str, ...]] = {
    "checkpoints": (
        "sd_xl_base_1.0.safetensors",
        "tiny-sd15.ckpt",
        "v1-5-pruned-emaonly-fp16.safetensors",
    ),
    "loras": ("demo-ink.safetensors", "demo-style.safetensors", "tiny-sd15-lora.safetensors"),
    "vae": ("ae.safetensors",),
    "text_encoders": ("clip_l.safetensors", "qwen_3_4b.safetensors", "t5xxl_fp16.safetensors"),
    "diffusion_models": ("flux1-dev.safetensors", "z_image_turbo_bf16.safetensors"),
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
