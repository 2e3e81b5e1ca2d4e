"""What is known of a graph's nodes: by ComfyUI's own word where there is one, else by their names.

`ObjectInfo` is the part of `/object_info` that a graph's classes need; None = no GPU service said.
"""

from collections.abc import Mapping
from typing import Any, Literal

from gpu_server.workflow import Graph
from gpu_server.workflow.file_inputs import LOADERS, Upload
from gpu_server.workflow.graph import is_link
from gpu_server.workflow.node_specs import WIDGET_TYPES, InputSpec, ObjectInfo, node_spec

OutputKind = Literal["image", "video", "audio", "model", "text", "file"]

SEEDS = frozenset({"seed", "noise_seed"})
_NO_VALUES = frozenset({"upload", "audioUI", "choose file to upload", "control_after_generate"})
"""Widgets of the editor that some versions export along."""
_SAVES = ("Save", "VHS_VideoCombine", "PreviewAny")
_SHOWS = ("Preview", "MaskPreview", "ImageCompare", "LossGraph")
"""Output nodes whose pictures are for the editor alone."""
_KINDS: tuple[tuple[str, OutputKind], ...] = (
    ("video", "video"),
    ("webm", "video"),
    ("audio", "audio"),
    ("glb", "model"),
    ("3d", "model"),
    ("model", "model"),
    ("splat", "model"),
    ("pointcloud", "model"),
    ("text", "text"),
    ("string", "text"),
    ("previewany", "text"),
    ("image", "image"),
    ("webp", "image"),
    ("png", "image"),
    ("svg", "image"),
    ("mask", "image"),
)


def input_of(info: ObjectInfo | None, node: Mapping[str, Any], name: str) -> InputSpec | None:
    """Look up what a node's class says of an input; None where nobody said."""
    spec = node_spec(info, node["class_type"], node["inputs"]) if info else None
    return spec.inputs.get(name) if spec else None


def widgets(info: ObjectInfo | None, node: Mapping[str, Any]) -> list[str]:
    """List the inputs of a node that hold a value, not a link."""
    spec = node_spec(info, node["class_type"], node["inputs"]) if info else None
    found: list[str] = []
    for name, value in node["inputs"].items():
        declared = spec.inputs.get(name) if spec else None
        if is_link(value) or (spec is None and name in _NO_VALUES):
            continue
        if spec is None or (declared is not None and declared.type in WIDGET_TYPES):
            found.append(name)
    return found


def upload_kind(info: ObjectInfo | None, node: Mapping[str, Any], name: str) -> Upload | None:
    """Tell what kind of file such an input takes; None for one that cannot be sent."""
    known = LOADERS.get(node["class_type"])
    if known is not None and known[0] == name:
        return known[1]
    spec = input_of(info, node, name)
    if spec is None:
        return None
    options = spec.options
    outputs = node_spec(info or {}, node["class_type"], node["inputs"])
    if options.get("image_upload"):
        only_mask = outputs is not None and outputs.outputs[:1] == ("MASK",)
        return "mask" if only_mask else "image"
    if options.get("video_upload"):
        return "video"
    return "audio" if options.get("audio_upload") else None


def is_output(info: ObjectInfo | None, node: Mapping[str, Any]) -> bool:
    """Tell whether a node keeps what it makes: those that show it in the editor do not count."""
    class_type = str(node["class_type"])
    if class_type.startswith(_SHOWS) and class_type != "PreviewAny":
        return False
    spec = node_spec(info, class_type, node["inputs"]) if info else None
    if spec is not None:
        return spec.output_node
    return class_type.startswith(_SAVES)


def output_kind(graph: Graph, info: ObjectInfo | None, node_id: str) -> OutputKind:
    """Tell what kind of thing an output node makes, by its name, else by what it takes."""
    node = graph[node_id]
    class_type = str(node["class_type"]).lower()
    for part, kind in _KINDS:
        if part in class_type:
            return kind
    spec = node_spec(info, node["class_type"], node["inputs"]) if info else None
    taken = {s.type for s in spec.inputs.values() if s.is_socket} if spec else set[str]()
    if {"IMAGE", "MASK"} & taken:
        return "image"
    if "VIDEO" in taken:
        return "video"
    return "audio" if "AUDIO" in taken else "file"
