"""Recorded `/object_info` answers, cut to the classes the bundled workflows use."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from gpu_server.workflow import Workflow, load_workflows, make_workflow

ROOT = Path(__file__).parents[2]
VERSIONS = ("0.3.64", "0.33.0")
MODELS = {
    ("CheckpointLoaderSimple", "ckpt_name"): ["sd15.safetensors"],
    ("LoraLoader", "lora_name"): ["ink.safetensors", "style.safetensors"],
    ("UNETLoader", "unet_name"): ["flux1-dev.safetensors", "z_image_turbo_bf16.safetensors"],
    ("CLIPLoader", "clip_name"): ["qwen_3_4b.safetensors"],
    ("DualCLIPLoader", "clip_name1"): ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    ("DualCLIPLoader", "clip_name2"): ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    ("VAELoader", "vae_name"): ["ae.safetensors"],
}


PACKS = (
    "DownloadAndLoadFlorence2Model",
    "DownloadAndLoadSAM2Model",
    "Florence2Run",
    "Florence2toCoordinates",
    "GrowMaskWithBlur",
    "Sam2Segmentation",
)
"""Classes of custom packs, recorded together with 0.33.0."""


def object_info(version: str, *, models: bool = True, packs: bool = True) -> dict[str, Any]:
    """The recording of a version, with a few model files installed or without any."""
    data = ROOT / "tests" / "data"
    recorded: dict[str, Any] = json.loads((data / f"object_info_{version}.json").read_text())
    recorded |= json.loads((data / f"more_nodes_{version}.json").read_text())
    if not packs:
        recorded = {name: known for name, known in recorded.items() if name not in PACKS}
    for (class_type, name), files in MODELS.items():
        recorded[class_type]["input"]["required"][name][0] = list(files) if models else []
    return recorded


def install(info: dict[str, Any], workflow: Workflow) -> None:
    """Put the model files a workflow names into the lists that offer them."""
    names = {model.name for model in workflow.models}
    for node in workflow.graph.values():
        declared = info.get(node["class_type"], {"input": {}})["input"]
        for section in ("required", "optional"):
            for key, raw in declared.get(section, {}).items():
                value = node["inputs"].get(key)
                if isinstance(value, str) and value in names:
                    # The newer way to write a combo keeps the files among its options.
                    listed = raw[0] if isinstance(raw[0], list) else raw[1]["options"]
                    listed.append(value)


@cache
def bundled() -> Mapping[str, Workflow]:
    """The workflows that come with the project."""
    return load_workflows(ROOT / "workflows")


def files(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A bundled workflow's graph and manifest, to be changed by a test."""
    graph = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    manifest = yaml.safe_load((ROOT / "workflows" / f"{name}.yaml").read_text())
    return graph, manifest


def made(graph: Any, manifest: Any) -> Workflow:
    """A workflow of a test's own."""
    return make_workflow("test", graph, manifest, digest="0" * 64)


@cache
def installed(name: str, version: str = "0.33.0") -> dict[str, Any]:
    """A recording in which a bundled workflow's own model files are installed."""
    info = object_info(version)
    install(info, bundled()[name])
    return info
