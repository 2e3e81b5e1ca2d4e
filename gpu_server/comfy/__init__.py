"""The client of one ComfyUI; its public names."""

from gpu_server.comfy.client import ComfyClient
from gpu_server.comfy.failures import ComfyUnavailable, RunCancelled, RunFailed
from gpu_server.comfy.preview import Picture
from gpu_server.comfy.progress import Stepped
from gpu_server.comfy.run import ComfyFile, Finished, Produced, RunEvent, Started
from gpu_server.comfy.watch import Patience
from gpu_server.graph_check import Graph

__all__ = [
    "ComfyClient",
    "ComfyFile",
    "ComfyUnavailable",
    "Finished",
    "Graph",
    "Patience",
    "Picture",
    "Produced",
    "RunCancelled",
    "RunEvent",
    "RunFailed",
    "Started",
    "Stepped",
]
