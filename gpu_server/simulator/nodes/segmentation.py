"""Nodes that find things in pictures. Masks never carry the simulator's mark."""

import numpy as np

from gpu_server.simulator import boxes, subjects
from gpu_server.simulator.editing import bounds
from gpu_server.simulator.nodes.table import Context, ModelFiles, choice, node
from gpu_server.simulator.values import Conditioning, Described, Image, Mask, key_of

PRECISIONS = (["fp16", "bf16", "fp32"], {"default": "fp16"})
_SOCKET = {"forceInput": True}


def union(masks: list[Mask], picture: Image) -> Mask:
    """Put masks of a picture together; none make a black one."""
    empty = np.zeros(picture.shape[:2], np.float32)
    return np.maximum.reduce([empty, *masks])


@node(
    "LoadBackgroundRemovalModel",
    display_name="Load Background Removal Model",
    category="model/loaders",
    module="comfy_extras.nodes_bg_removal",
    v3=True,
    inputs={"bg_removal_name": choice(ModelFiles("background_removal"))},
    outputs=("BACKGROUND_REMOVAL",),
    output_names=("bg_model",),
)
def load_background_removal_model(_: Context, *, bg_removal_name: str) -> tuple[Described]:
    """Name a model."""
    return (Described(key_of("background_removal", bg_removal_name)),)


@node(
    "RemoveBackground",
    display_name="Remove Background",
    category="image/background removal",
    module="comfy_extras.nodes_bg_removal",
    v3=True,
    inputs={"bg_removal_model": ("BACKGROUND_REMOVAL", {}), "image": ("IMAGE", {})},
    outputs=("MASK",),
    output_names=("mask",),
)
def remove_background(_: Context, *, bg_removal_model: Described, image: Image) -> tuple[Mask]:
    """Tell the subject from the background by its difference from the border."""
    if not bg_removal_model.key:
        raise ValueError("the model is empty")
    return (np.stack([subjects.foreground(frame) for frame in image]),)


@node(
    "SAM3_Detect",
    display_name="SAM3 Detect",
    category="image/detection",
    module="comfy_extras.nodes_sam3",
    v3=True,
    inputs={
        "model": ("MODEL", {}),
        "image": ("IMAGE", {}),
        "threshold": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
        "refine_iterations": ("INT", {"default": 2, "min": 0, "max": 5}),
        "individual_masks": ("BOOLEAN", {"default": False}),
    },
    optional={
        "conditioning": ("CONDITIONING", {}),
        "bboxes": ("BOUNDING_BOX", {"socketless": True, "forceInput": True}),
        "positive_coords": ("STRING", {"forceInput": True, "multiline": False}),
        "negative_coords": ("STRING", {"forceInput": True, "multiline": False}),
    },
    outputs=("MASK", "BOUNDING_BOX"),
    output_names=("masks", "bboxes"),
)
def sam3_detect(
    _: Context,
    *,
    image: Image,
    individual_masks: bool,
    conditioning: Conditioning | None = None,
    bboxes: object = None,
    positive_coords: str | None = None,
    negative_coords: str | None = None,
    **_unused: object,
) -> tuple[Mask, list[list[dict[str, int]]]]:
    """Find what is named, lies within a box or under a point; nothing found is all black."""
    masks: list[Mask] = []
    placed: list[list[dict[str, int]]] = []
    for frame in image:
        found = [] if conditioning is None else subjects.named(frame, conditioning.text)
        found += [subjects.inside(frame, box) for box in boxes.read(bboxes)]
        found += [subjects.inside(frame, box) for box in boxes.around(frame, positive_coords)]
        without = union(
            [subjects.inside(frame, b) for b in boxes.around(frame, negative_coords)], frame
        )
        found = [mask * (1 - without) for mask in found]
        masks += found if individual_masks and found else [union(found, frame)]
        placed.append([boxes.as_dict(box) for mask in found if (box := bounds(mask)) is not None])
    return np.stack(masks), placed


@node(
    "DownloadAndLoadSAM2Model",
    display_name="(Down)Load SAM2Model",
    category="SAM2",
    module="custom_nodes.ComfyUI-segment-anything-2",
    inputs={
        "model": (ModelFiles("sam2"),),
        "segmentor": (["single_image", "video", "automaskgenerator"],),
        "device": (["cuda", "cpu", "mps"],),
        "precision": PRECISIONS,
    },
    outputs=("SAM2MODEL",),
    output_names=("sam2_model",),
)
def load_sam2_model(
    _: Context, *, model: str, segmentor: str, device: str, precision: str
) -> tuple[Described]:
    """Name a model; nothing is downloaded."""
    return (Described(key_of(model, segmentor, device, precision)),)


@node(
    "Sam2Segmentation",
    category="SAM2",
    module="custom_nodes.ComfyUI-segment-anything-2",
    inputs={
        "sam2_model": ("SAM2MODEL",),
        "image": ("IMAGE",),
        "keep_model_loaded": ("BOOLEAN", {"default": True}),
    },
    optional={
        "coordinates_positive": ("STRING", _SOCKET),
        "coordinates_negative": ("STRING", _SOCKET),
        "bboxes": ("BBOX",),
        "individual_objects": ("BOOLEAN", {"default": False}),
        "mask": ("MASK",),
    },
    outputs=("MASK",),
    output_names=("mask",),
)
def sam2_segmentation(
    _: Context,
    *,
    image: Image,
    coordinates_positive: str | None = None,
    coordinates_negative: str | None = None,
    bboxes: object = None,
    mask: Mask | None = None,
    **_unused: object,
) -> tuple[Mask]:
    """Find the subject within each box and under each point."""
    masks: list[Mask] = []
    for index, frame in enumerate(image):
        given = [*boxes.read(bboxes), *boxes.around(frame, coordinates_positive)]
        found = [subjects.inside(frame, box) for box in given]
        if mask is not None:
            found.append(mask[index % len(mask)])
        without = [subjects.inside(frame, box) for box in boxes.around(frame, coordinates_negative)]
        masks.append(union(found, frame) * (1 - union(without, frame)))
    return (np.stack(masks),)
