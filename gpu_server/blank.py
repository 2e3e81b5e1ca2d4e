"""Is anything on a picture? Asked of masks: a model that finds nothing draws a black one."""

import asyncio
import tempfile
from typing import IO

import httpx
from PIL import Image, UnidentifiedImageError

from gpu_server.comfy import ComfyClient, ComfyFile, ComfyUnavailable

_IN_MEMORY = 8 * 1024 * 1024
_MAX_PIXELS = 200_000_000


async def is_blank(comfy: ComfyClient, file: ComfyFile) -> bool:
    """Whether every pixel is black; what is no picture, or a huge one, is not.

    Raises ComfyUnavailable, RunFailed when ComfyUI lost the file.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as kept:
        try:
            async with comfy.view(file) as source:
                async for chunk in source.aiter_bytes():
                    # a large one goes to disk
                    await asyncio.to_thread(kept.write, chunk)
        except httpx.TransportError:
            raise ComfyUnavailable from None
        return await asyncio.to_thread(_all_black, kept)


def _all_black(kept: IO[bytes]) -> bool:
    kept.seek(0)
    try:
        with Image.open(kept) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                return False
            return picture.convert("L").getextrema() == (0, 0)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        return False
