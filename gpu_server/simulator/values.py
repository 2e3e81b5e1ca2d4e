"""What flows along the links between nodes."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""IMAGE: frames, rows, columns, 3 or 4 channels, 0..255."""
Mask = NDArray[np.float32]
"""MASK: frames, rows, columns, 0..1."""


@dataclass(frozen=True, slots=True)
class Model:
    """A MODEL, CLIP or VAE: which files it was put together from."""

    key: str


@dataclass(frozen=True, slots=True)
class Conditioning:
    """A CONDITIONING: what text it encodes, with what."""

    key: str


@dataclass(frozen=True, slots=True)
class LatentFrame:
    """One latent picture: noise described by `key`, laid over `base` with `strength`."""

    key: str = ""
    """Empty: no noise, as in an empty latent or an encoded picture."""
    base: "LatentFrame | Image | None" = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Latent:
    """A LATENT: frames of one size, measured in pixels of the decoded picture."""

    width: int
    height: int
    frames: tuple[LatentFrame, ...]


def key_of(*parts: object) -> str:
    """Hash what identifies a result."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()
