"""The graphs the suite runs: stock nodes only, in ComfyUI's API format."""

import itertools
import secrets
from typing import Any

Graph = dict[str, dict[str, Any]]

CHECKPOINT = "tiny-sd15.ckpt"
LORA = "tiny-sd15-lora.safetensors"

_colors = itertools.count(secrets.randbelow(8_000_000))


def fresh_prefix() -> str:
    """A filename prefix nobody used before, in a subfolder of its own."""
    return f"conformance/{secrets.token_hex(6)}/image"


def node(class_type: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(prefix: str | None = None, *, color: int | None = None, batch: int = 1) -> Graph:
    """EmptyImage to SaveImage, the cheapest run; a new colour each time, so never cached."""
    chosen = next(_colors) if color is None else color
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=batch, color=chosen),
        "2": node("SaveImage", images=["1", 0], filename_prefix=prefix or fresh_prefix()),
    }


def text_to_image(
    *,
    seed: int,
    steps: int = 2,
    text: str = "a red cat",
    size: int = 64,
    strength: float | None = 1.0,
    prefix: str | None = None,
) -> Graph:
    """Checkpoint, LoRA (none when `strength` is None), two prompts, sampler, VAE, file."""
    source = "4" if strength is None else "10"
    graph = {
        "4": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "6": node("CLIPTextEncode", clip=[source, 1], text=text),
        "7": node("CLIPTextEncode", clip=[source, 1], text="blurry"),
        "5": node("EmptyLatentImage", width=size, height=size, batch_size=1),
        "3": node(
            "KSampler",
            model=[source, 0],
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
            seed=seed,
            steps=steps,
            cfg=5.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=prefix or fresh_prefix()),
    }
    if strength is not None:
        graph["10"] = node(
            "LoraLoader",
            model=["4", 0],
            clip=["4", 1],
            lora_name=LORA,
            strength_model=strength,
            strength_clip=strength,
        )
    return graph


def long_run() -> Graph:
    """A sampler with so many steps that a test always ends it by an interrupt."""
    return text_to_image(seed=secrets.randbelow(2**31), steps=3000)


def failing(prefix: str | None = None) -> Graph:
    """Accepted by POST /prompt, fails in node 2: a file outside the output folder."""
    return picture(f"../../{prefix or fresh_prefix()}")
