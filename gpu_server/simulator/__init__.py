"""ComfyUI's HTTP and websocket protocol on a CPU, without weights."""

from importlib.metadata import PackageNotFoundError, version

COMFYUI_VERSION = "0.3.64"
"""The ComfyUI release whose behaviour is imitated."""


def simulator_version() -> str:
    """Return the installed version of this project, or `dev` in a bare checkout."""
    try:
        return version("genmedia-gateway")
    except PackageNotFoundError:
        return "dev"
