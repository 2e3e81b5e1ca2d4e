"""Node classes: one table, filled by these modules."""

from gpu_server.simulator.nodes import (
    compositing,
    florence2,
    guides,
    images,
    latents,
    loaders,
    masks,
    meshes,
    models,
    sampling,
    saving,
    scaling,
    segmentation,
    shapes,
    text,
    video,
)
from gpu_server.simulator.nodes.table import NODE_CLASSES, NodeClass, Shown

__all__ = [
    "NODE_CLASSES",
    "NodeClass",
    "Shown",
    "compositing",
    "florence2",
    "guides",
    "images",
    "latents",
    "loaders",
    "masks",
    "meshes",
    "models",
    "sampling",
    "saving",
    "scaling",
    "segmentation",
    "shapes",
    "text",
    "video",
]
