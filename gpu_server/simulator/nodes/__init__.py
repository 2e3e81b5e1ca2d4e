"""Node classes: one table, filled by these modules."""

from gpu_server.simulator.nodes import images, loaders, masks, sampling, saving
from gpu_server.simulator.nodes.table import NODE_CLASSES, NodeClass, Shown

__all__ = ["NODE_CLASSES", "NodeClass", "Shown", "images", "loaders", "masks", "sampling", "saving"]
