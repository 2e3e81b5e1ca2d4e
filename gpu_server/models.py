"""Which model files ComfyUI lists, and whether it looks into MODELS_PATH."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from gpu_server.workflow.manifest import ModelFolder
from gpu_server.workflow.node_specs import ObjectInfo, node_spec

_LISTED_BY: dict[ModelFolder, tuple[str, str]] = {
    "checkpoints": ("CheckpointLoaderSimple", "ckpt_name"),
    "loras": ("LoraLoader", "lora_name"),
}
"""The node input whose choices are the files of a folder."""


def installed(object_info: ObjectInfo) -> dict[str, list[str]]:
    """List the model files that callers may choose, by folder."""
    found: dict[str, list[str]] = {}
    for folder, (class_type, name) in _LISTED_BY.items():
        spec = node_spec(object_info, class_type)
        entry = spec.inputs.get(name) if spec else None
        found[folder] = [str(c) for c in (entry.choices if entry else None) or ()]
    return found


async def models_path_trouble(
    models_path: Path, object_info: Callable[[], Awaitable[ObjectInfo]]
) -> str | None:
    """Put a file into MODELS_PATH and see whether ComfyUI lists it; None = it does.

    `object_info` must ask ComfyUI anew. The answer is a sentence for the operator.
    """
    folder = models_path / "loras"
    probe = folder / f"probe-{secrets.token_hex(6)}.safetensors"
    try:
        await asyncio.to_thread(_touch, probe)
    except OSError as error:
        return f"MODELS_PATH {models_path} can't be written ({error.strerror})."
    try:
        listed = installed(await object_info())["loras"]
    finally:
        await asyncio.to_thread(probe.unlink, missing_ok=True)
    if probe.name in listed:
        return None
    return (
        f"ComfyUI does not list the files in MODELS_PATH: add to its extra_model_paths.yaml "
        f"'genmedia: {{base_path: {models_path}, checkpoints: checkpoints, loras: loras}}' "
        "and restart it."
    )


def _touch(probe: Path) -> None:
    probe.parent.mkdir(exist_ok=True)
    probe.touch(exist_ok=False)
