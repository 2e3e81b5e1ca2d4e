"""What happens to a file between ComfyUI and its slot: metadata out, format, facts."""

from gpu_server.finish.body import Body
from gpu_server.finish.finishing import Finishing, NotPrepared, tidied

__all__ = ["Body", "Finishing", "NotPrepared", "tidied"]
