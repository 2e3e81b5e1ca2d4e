"""Workflows: a ComfyUI graph and its manifest, read from disk and checked.

This is the door of the package for both sides of the wire: the gateway reads defaults, limits and
licences here, the GPU service builds graphs from it. Nothing here does I/O beyond reading files.
"""

from gpu_server.graph_check import Graph
from gpu_server.workflow.bind import BoundGraph, ParamError
from gpu_server.workflow.graph import WorkflowError
from gpu_server.workflow.manifest import Limits, Manifest, ModelRequirement, Output
from gpu_server.workflow.pictures import Misfit, Size, Sizes, UnfitPicture, look_at, on_white
from gpu_server.workflow.surgery import fill
from gpu_server.workflow.workflow import (
    Workflow,
    check,
    content_digest,
    digest_of,
    load_workflows,
    make_workflow,
)

__all__ = [
    "BoundGraph",
    "Graph",
    "Limits",
    "Manifest",
    "Misfit",
    "ModelRequirement",
    "Output",
    "ParamError",
    "Size",
    "Sizes",
    "UnfitPicture",
    "Workflow",
    "WorkflowError",
    "check",
    "content_digest",
    "digest_of",
    "fill",
    "load_workflows",
    "look_at",
    "make_workflow",
    "on_white",
]
