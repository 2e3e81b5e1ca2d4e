"""Workflows: a ComfyUI graph and its manifest, read from disk and checked.

This is the door of the package for both sides of the wire: the gateway reads defaults, limits and
licences here, the GPU service builds graphs from it. Nothing here does I/O beyond reading files.
"""

from gpu_server.graph_check import Graph
from gpu_server.workflow.bind import BoundGraph, ParamError
from gpu_server.workflow.graph import WorkflowError
from gpu_server.workflow.manifest import Limits, Manifest, ModelRequirement, Output
from gpu_server.workflow.surgery import fill
from gpu_server.workflow.workflow import (
    Workflow,
    check,
    digest_of,
    load_workflows,
    make_workflow,
)

__all__ = [
    "BoundGraph",
    "Graph",
    "Limits",
    "Manifest",
    "ModelRequirement",
    "Output",
    "ParamError",
    "Workflow",
    "WorkflowError",
    "check",
    "digest_of",
    "fill",
    "load_workflows",
    "make_workflow",
]
