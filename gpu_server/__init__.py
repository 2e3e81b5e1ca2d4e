"""The GPU service: workflows, run on the ComfyUI beside it."""

__version__ = "0.1.0"
"""Version of the project; `pyproject.toml` reads it from here."""
