"""ComfyUI's HTTP and websocket protocol on a CPU, without weights."""

COMFYUI_VERSION = "0.3.64"
"""The ComfyUI release whose behaviour is imitated."""
