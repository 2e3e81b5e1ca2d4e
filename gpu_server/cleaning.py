"""Removes a run's files from ComfyUI's folders: ComfyUI itself offers no way to do it."""

import asyncio
import logging
import shutil
from pathlib import Path

_log = logging.getLogger(__name__)

_FOLDERS = ("output", "input")


class Cleaner:
    """Knows where a run's files lie: in `jobs/<run id>` of ComfyUI's output and input folders."""

    def __init__(self, comfyui_path: Path | None) -> None:
        self._root = comfyui_path

    @property
    def trouble(self) -> str | None:
        """Why nothing is cleaned, for `/health`."""
        if self._root is None:
            return "COMFYUI_PATH is not set: finished runs' files stay in ComfyUI's folders."
        missing = [name for name in _FOLDERS if not (self._root / name).is_dir()]
        if missing:
            return f"COMFYUI_PATH has no folder {missing[0]}: finished runs' files stay."
        return None

    async def clean(self, run_id: str) -> None:
        """Remove the files of one run."""
        if self._root is not None:
            await asyncio.to_thread(self._remove, self._root, run_id)

    def _remove(self, root: Path, run_id: str) -> None:
        for name in _FOLDERS:
            folder = root / name / "jobs" / run_id
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("%s could not be removed: %s", folder, error.strerror)
