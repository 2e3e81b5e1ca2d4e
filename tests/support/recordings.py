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


def object_info(version: str, *, models: bool = True) -> dict[str, Any]:
    """The recording of a version, with the bundled workflows' model files installed or without."""
    path = ROOT / "tests" / "data" / f"object_info_{version}.json"
    recorded: dict[str, Any] = json.loads(path.read_text())
    for (class_type, name), files in MODELS.items():
        recorded[class_type]["input"]["required"][name][0] = files if models else []
    return recorded


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
