"""What happens to a file between ComfyUI and its slot: metadata out, format, facts."""

from gpu_server.finish.body import Body
from gpu_server.finish.finishing import Finishing

__all__ = ["Body", "Finishing"]
