"""Florence-2: what a picture shows, in words and in boxes."""

import json
from typing import Any

import numpy as np

from gpu_server.simulator import boxes, captions, subjects
from gpu_server.simulator.editing import bounds
from gpu_server.simulator.nodes.segmentation import PRECISIONS, union
from gpu_server.simulator.nodes.table import Context, ModelFiles, node
from gpu_server.simulator.values import Box, Described, Image, Mask, key_of

_CAPTIONS = {"caption": 1, "detailed_caption": 2, "more_detailed_caption": 3}
"""Task → sentences."""
_TASKS = [
    "region_caption",
    "dense_region_caption",
    "region_proposal",
    *_CAPTIONS,
    "caption_to_phrase_grounding",
    "referring_expression_segmentation",
    "ocr",
    "ocr_with_region",
    "docvqa",
    "prompt_gen_tags",
    "prompt_gen_mixed_caption",
    "prompt_gen_analyze",
    "prompt_gen_mixed_caption_plus",
]
_TASKS_WITH_TEXT = {
    "referring_expression_segmentation",
    "caption_to_phrase_grounding",
    "docvqa",
}


@node(
    "DownloadAndLoadFlorence2Model",
    category="Florence2",
    module="custom_nodes.ComfyUI-Florence2",
    inputs={
        "model": (ModelFiles("LLM"),),
        "precision": PRECISIONS,
        "attention": (["flash_attention_2", "sdpa", "eager"], {"default": "sdpa"}),
    },
    optional={"lora": ("PEFTLORA",), "convert_to_safetensors": ("BOOLEAN", {"default": False})},
    outputs=("FL2MODEL",),
    output_names=("florence2_model",),
)
def load_florence2_model(
    _: Context,
    *,
    model: str,
    precision: str,
    attention: str,
    lora: object = None,
    convert_to_safetensors: bool = False,
) -> tuple[Described]:
    """Name a model; nothing is downloaded."""
    return (Described(key_of(model, precision, attention, lora, convert_to_safetensors)),)


@node(
    "Florence2Run",
    category="Florence2",
    module="custom_nodes.ComfyUI-Florence2",
    inputs={
        "image": ("IMAGE",),
        "florence2_model": ("FL2MODEL",),
        "text_input": ("STRING", {"default": "", "multiline": True}),
        "task": (_TASKS,),
        "fill_mask": ("BOOLEAN", {"default": True}),
    },
    optional={
        "keep_model_loaded": ("BOOLEAN", {"default": False}),
        "max_new_tokens": ("INT", {"default": 1024, "min": 1, "max": 4096}),
        "num_beams": ("INT", {"default": 3, "min": 1, "max": 64}),
        "do_sample": ("BOOLEAN", {"default": True}),
        "output_mask_select": ("STRING", {"default": ""}),
        "seed": ("INT", {"default": 1, "min": 1, "max": 18446744073709551615}),
    },
    outputs=("IMAGE", "MASK", "STRING", "JSON"),
    output_names=("image", "mask", "caption", "data"),
)
def florence2_run(
    _: Context,
    *,
    image: Image,
    text_input: str,
    task: str,
    fill_mask: bool,
    max_new_tokens: int = 1024,
    **_unused: object,
) -> tuple[Image, Mask, str, list[dict[str, Any]]]:
    """Find what a text names, or describe the picture by measuring it."""
    if text_input and task not in _TASKS_WITH_TEXT:
        raise ValueError(f"the task {task} takes no text")
    masks: list[Mask] = []
    words: list[str] = []
    data: list[dict[str, Any]] = []
    for frame in image:
        found = subjects.named(frame, text_input) if task in _TASKS_WITH_TEXT else []
        placed = [list(box) for mask in found if (box := bounds(mask)) is not None]
        masks.append(union(found if fill_mask else [], frame))
        data.append({"bboxes": placed, "labels": [text_input] * len(placed)})
        if task in _TASKS_WITH_TEXT:
            words.append(f"{captions.MARK} {text_input}")
        else:
            words.append(captions.describe(frame, _CAPTIONS.get(task, 1), max_new_tokens))
    return image, np.stack(masks), "\n".join(words), data


@node(
    "Florence2toCoordinates",
    display_name="Florence2 Coordinates",
    category="SAM2",
    module="custom_nodes.ComfyUI-segment-anything-2",
    inputs={
        "data": ("JSON",),
        "index": ("STRING", {"default": "0"}),
        "batch": ("BOOLEAN", {"default": False}),
    },
    outputs=("STRING", "BBOX"),
    output_names=("center_coordinates", "bboxes"),
)
def florence2_to_coordinates(
    _: Context, *, data: list[dict[str, Any]], index: str, batch: bool
) -> tuple[str, list[Box]]:
    """Take boxes out of what was found, those of the first picture or of all; `""` means each."""
    wanted = [int(number) for number in index.split(",") if number.strip()]
    taken: list[Box] = []
    for found in data if batch else data[:1]:
        known = boxes.read(found["bboxes"])
        taken += [known[n] for n in wanted if n < len(known)] if wanted else known
    centres = [
        {"x": (left + right) // 2, "y": (top + bottom) // 2} for left, top, right, bottom in taken
    ]
    return json.dumps(centres), taken
