"""Pictures of a run under way, as ComfyUI frames them on its websocket (pure)."""

import json
import struct
from dataclasses import dataclass
from typing import Any, Literal, cast

MAX_BYTES = 72_000
"""Largest picture passed on: with base64 and its frame an event stays below 100 kB."""

_PLAIN, _WITH_METADATA = 1, 4
PictureType = Literal["image/jpeg", "image/png"]
_FORMATS: dict[int, PictureType] = {1: "image/jpeg", 2: "image/png"}

FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
"""As a socket's first message it has ComfyUI say whose picture each one is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One preview."""

    run_id: str | None
    """None: of whatever runs now; an older ComfyUI does not say."""
    media_type: PictureType
    data: bytes


def parse(frame: bytes) -> Picture | None:
    """Read a binary message; None for what is no picture, or too large to pass on."""
    try:
        event, length = struct.unpack_from(">II", frame)
        if event == _PLAIN:
            # the second word is the format here
            picture = Picture(run_id=None, media_type=_FORMATS[length], data=frame[8:])
        elif event == _WITH_METADATA:
            described = cast("dict[str, Any]", json.loads(frame[8 : 8 + length]))
            media_type = described["image_type"]
            if media_type not in _FORMATS.values():
                return None
            run_id = str(described["prompt_id"])
            picture = Picture(run_id=run_id, media_type=media_type, data=frame[8 + length :])
        else:
            return None
    except (struct.error, ValueError, KeyError, TypeError):
        return None
    return picture if 0 < len(picture.data) <= MAX_BYTES else None
