"""Where output nodes put their files, and how they tell of them."""

import json
import time
from pathlib import Path
from typing import Any

from gpu_server.simulator.nodes.table import Context

PNG_INPUTS = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
"""Hidden inputs of nodes that write the graph into what they save."""


def _expanded(prefix: str, width: int, height: int) -> str:
    if "%" not in prefix:
        return prefix
    now = time.localtime()
    names = {"width": str(width), "height": str(height), "year": str(now.tm_year)}
    fields = ("month", now.tm_mon), ("day", now.tm_mday), ("hour", now.tm_hour)
    for name, value in (*fields, ("minute", now.tm_min), ("second", now.tm_sec)):
        names[name] = f"{value:02}"
    for name, text in names.items():
        prefix = prefix.replace(f"%{name}%", text)
    return prefix


def _next_counter(folder: Path, stem: str) -> int:
    highest = 0
    for path in folder.iterdir():
        if path.name.startswith(f"{stem}_"):
            digits = path.name[len(stem) + 1 :].split("_")[0]
            highest = max(highest, int(digits) if digits.isdecimal() else 0)
    return highest + 1


def place(context: Context, kind: str, prefix: str, size: tuple[int, int]) -> tuple[Path, str, int]:
    """Return the folder a prefix leads to, the files' stem, and the next free counter."""
    target = context.folders.within(kind, _expanded(prefix, *size))
    base = context.folders.directory(kind)
    if target is None or target == base:
        message = "**** ERROR: Saving image outside the output folder is not allowed."
        raise Exception(message)  # noqa: TRY002 - ComfyUI reports this very type
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent, target.name, _next_counter(target.parent, target.name)


def listed(context: Context, path: Path, kind: str) -> dict[str, Any]:
    """Return what a node's `ui` output says about a file."""
    subfolder = path.parent.relative_to(context.folders.directory(kind)).as_posix()
    return {
        "filename": path.name,
        "subfolder": "" if subfolder == "." else subfolder,
        "type": kind,
    }


def told(context: Context) -> dict[str, str]:
    """Return the texts that go into a saved file: the graph, what came with it, and the engine."""
    texts = {"prompt": json.dumps(context.graph)}
    texts |= {key: json.dumps(value) for key, value in context.extra_pnginfo.items()}
    return texts | {"engine": "simulator"}
