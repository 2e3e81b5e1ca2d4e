"""Text nodes: prompts as seen by an encoder, words about a picture, and words on their own."""

import json
from dataclasses import replace

import numpy as np

from gpu_server.simulator import captions
from gpu_server.simulator.nodes.files import PNG_INPUTS, listed, place
from gpu_server.simulator.nodes.table import Context, Shown, choice, dynamic, node
from gpu_server.simulator.values import Conditioning, Image, Latent, Model, key_of

_FORMATS = ["txt", "csv", "md", "json"]
_SEED = {"default": 0, "min": 0, "max": 18446744073709551615}
_TEMPERATURE = {"default": 0.7, "min": 0.01, "max": 2.0, "step": 0.000001}
_SHARE = {"min": 0.0, "max": 1.0, "step": 0.01}
_PENALTY = {"min": 0.0, "max": 5.0, "step": 0.01}
_SENTENCES = 3


@node(
    "CLIPTextEncode",
    display_name="CLIP Text Encode (Prompt)",
    category="conditioning",
    inputs={"text": ("STRING", {"multiline": True, "dynamicPrompts": True}), "clip": ("CLIP",)},
    outputs=("CONDITIONING",),
)
def clip_text_encode(_: Context, *, text: str, clip: Model) -> tuple[Conditioning]:
    """Describe a text as seen by a text encoder."""
    return (Conditioning(key_of(clip.key, text), text),)


@node(
    "ConditioningZeroOut",
    category="advanced/conditioning",
    inputs={"conditioning": ("CONDITIONING",)},
    outputs=("CONDITIONING",),
)
def conditioning_zero_out(_: Context, *, conditioning: Conditioning) -> tuple[Conditioning]:
    """Forget what a conditioning says."""
    return (Conditioning(key_of("zero", bool(conditioning.key))),)


@node(
    "FluxGuidance",
    category="advanced/conditioning/flux",
    module="comfy_extras.nodes_flux",
    v3=True,
    inputs={
        "conditioning": ("CONDITIONING", {}),
        "guidance": ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1}),
    },
    outputs=("CONDITIONING",),
)
def flux_guidance(
    _: Context, *, conditioning: Conditioning, guidance: float
) -> tuple[Conditioning]:
    """Attach a guidance strength."""
    return (replace(conditioning, key=key_of(conditioning.key, "guidance", guidance)),)


@node(
    "ReferenceLatent",
    category="advanced/conditioning/edit_models",
    module="comfy_extras.nodes_edit_model",
    v3=True,
    inputs={"conditioning": ("CONDITIONING", {})},
    optional={"latent": ("LATENT", {})},
    outputs=("CONDITIONING",),
)
def reference_latent(
    _: Context, *, conditioning: Conditioning, latent: Latent | None = None
) -> tuple[Conditioning]:
    """Attach an encoded picture to take over from."""
    if latent is None:
        return (conditioning,)
    pictures = [frame.base for frame in latent.frames if isinstance(frame.base, np.ndarray)]
    return (_with_references(conditioning, pictures),)


def _with_references(conditioning: Conditioning, pictures: list[Image]) -> Conditioning:
    references = (*conditioning.references, *pictures)
    key = key_of(conditioning.key, "references", *pictures)
    return replace(conditioning, key=key, references=references)


@node(
    "TextEncodeQwenImageEditPlus",
    category="advanced/conditioning",
    module="comfy_extras.nodes_qwen",
    v3=True,
    inputs={
        "clip": ("CLIP", {}),
        "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True}),
    },
    optional={"vae": ("VAE", {}), **{f"image{n}": ("IMAGE", {}) for n in (1, 2, 3)}},
    outputs=("CONDITIONING",),
)
def text_encode_qwen_image_edit_plus(
    _: Context,
    *,
    clip: Model,
    prompt: str,
    vae: Model | None = None,
    image1: Image | None = None,
    image2: Image | None = None,
    image3: Image | None = None,
) -> tuple[Conditioning]:
    """Describe a text together with the pictures it speaks of."""
    encoded = Conditioning(key_of(clip, prompt, vae), prompt)
    given = [image[0, ..., :3] for image in (image1, image2, image3) if image is not None]
    return (_with_references(encoded, given),)


@node(
    "TextGenerate",
    display_name="Generate Text",
    category="text",
    module="comfy_extras.nodes_textgen",
    v3=True,
    inputs={
        "clip": ("CLIP", {}),
        "prompt": ("STRING", {"default": "", "multiline": True, "dynamicPrompts": True}),
        "max_length": ("INT", {"default": 512, "min": 1, "max": 32768}),
        "sampling_mode": dynamic(
            {
                "on": {
                    "temperature": ("FLOAT", _TEMPERATURE),
                    "top_k": ("INT", {"default": 64, "min": 0, "max": 1000}),
                    "top_p": ("FLOAT", {"default": 0.95, **_SHARE}),
                    "min_p": ("FLOAT", {"default": 0.05, **_SHARE}),
                    "repetition_penalty": ("FLOAT", {"default": 1.05, **_PENALTY}),
                    "seed": ("INT", _SEED),
                },
                "off": {},
            }
        ),
    },
    optional={
        "image": ("IMAGE", {}),
        "video": ("IMAGE", {}),
        "audio": ("AUDIO", {}),
        "thinking": ("BOOLEAN", {"default": False}),
        "use_default_template": ("BOOLEAN", {"advanced": True, "default": True}),
    },
    outputs=("STRING",),
    output_names=("generated_text",),
)
def text_generate(
    _: Context,
    *,
    prompt: str,
    max_length: int,
    image: Image | None = None,
    video: Image | None = None,
    **_unused: object,
) -> tuple[str]:
    """Describe the picture by measuring it; without one, repeat what was asked.

    There is no model to sample from, so how to sample changes nothing.
    """
    seen = image if image is not None else video
    if seen is None:
        words = f"Nothing was inferred from: {prompt}".split()[:max_length]
        return (" ".join([captions.MARK, *words]),)
    return (captions.describe(seen[0], _SENTENCES, max_length),)


@node(
    "StringConcatenate",
    display_name="Concatenate",
    category="utils/string",
    module="comfy_extras.nodes_string",
    v3=True,
    inputs={
        "string_a": ("STRING", {"multiline": True}),
        "string_b": ("STRING", {"multiline": True}),
        "delimiter": ("STRING", {"multiline": False, "default": ""}),
    },
    outputs=("STRING",),
)
def string_concatenate(_: Context, *, string_a: str, string_b: str, delimiter: str) -> tuple[str]:
    """Join two texts."""
    return (delimiter.join((string_a, string_b)),)


@node(
    "PreviewAny",
    display_name="Preview Any",
    category="utils",
    module="comfy_extras.nodes_preview_any",
    inputs={"source": ("*", {})},
    output_node=True,
)
def preview_any(_: Context, *, source: object = None) -> Shown:
    """Show any value as text."""
    return Shown(ui={"text": [_text(source)]})


def _text(source: object) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, int | float | bool):
        return str(source)
    if source is None:
        return "None"
    try:
        return json.dumps(source)
    except TypeError:
        return str(source)


@node(
    "SaveText",
    display_name="Save Text",
    category="text",
    module="comfy_extras.nodes_text",
    v3=True,
    inputs={
        "text": ("STRING", {"forceInput": True, "multiline": False}),
        "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
        "format": choice(_FORMATS, default="txt"),
    },
    hidden=PNG_INPUTS,
    outputs=("STRING",),
    output_names=("text",),
    output_node=True,
)
def save_text(
    context: Context,
    *,
    text: str,
    filename_prefix: str,
    format: str,  # noqa: A002 - ComfyUI's name
) -> Shown:
    """Write a text into output/ and show it."""
    if format not in _FORMATS:
        raise ValueError(f"unknown format {format}")
    folder, stem, counter = place(context, "output", filename_prefix, (0, 0))
    path = folder / f"{stem}_{counter:05}_.{format}"
    path.write_text(text)
    ui = {"text": [text], "files": [listed(context, path, "output")]}
    return Shown(ui=ui, values=(text,))
