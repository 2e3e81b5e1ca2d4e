"""What flows along the links between nodes."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""IMAGE: frames, rows, columns, 3 or 4 channels, 0..255."""
Mask = NDArray[np.float32]
"""MASK: frames, rows, columns, 0..1."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""


@dataclass(frozen=True, slots=True)
class Described:
    """A value without content of its own: only how it was made tells it from another."""

    key: str


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """A picture that a model is made to follow, and how closely."""

    image: Image
    strength: float


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A MODEL, CLIP or VAE: which files it was put together from."""

    key: str
    control: Control | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """A CONDITIONING: what text it encodes, with what, and the pictures that go with it."""

    key: str
    text: str = ""
    references: tuple[Image, ...] = ()
    """Pictures to take over from: rows, columns, RGB."""
    start: Image | None = None
    """The first frame of a video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigmas:
    """A schedule: how many steps, and how much of the noise it begins with."""

    key: str
    steps: int
    strength: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Guider:
    """What a sampler follows."""

    key: str
    model: Model
    positive: Conditioning


@dataclass(frozen=True, slots=True, eq=False)
class LatentFrame:
    """One latent picture: noise described by `key`, laid over `base` with `strength`."""

    key: str = ""
    """Empty: no noise, as in an empty latent or an encoded picture."""
    base: "LatentFrame | Image | None" = None
    strength: float = 1.0
    mask: Mask | None = None
    """Where the noise lies; absent: everywhere."""
    references: tuple[Image, ...] = ()
    control: Control | None = None
    start: Image | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """A LATENT: frames of one size, measured in pixels of the decoded picture."""

    width: int
    height: int
    frames: tuple[LatentFrame, ...]
    length: int = 1
    """Frames of video that each of these decodes to."""
    mask: Mask | None = None
    """Where sampling may change something; absent: everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Video:
    """A VIDEO: frames and their rate."""

    images: Image
    fps: float
    bit_depth: int


@dataclass(frozen=True, slots=True)
class Voxels:
    """A VOXEL: one body for each key."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """A MESH: one body for each key, and what lies on them."""

    keys: tuple[str, ...]
    faces: int
    """Most faces a body may have."""
    unwrapped: bool = False
    base_color: Image | None = None
    """Rows, columns, RGB."""
    metallic: Image | None = None
    roughness: Image | None = None


def key_of(*parts: object) -> str:
    """Hash what identifies a result; pictures count with their pixels."""
    return hashlib.sha256(json.dumps(parts, default=_identity).encode()).hexdigest()


def _identity(part: Any) -> Any:  # noqa: ANN401 - whatever a node is given
    if isinstance(part, np.ndarray):
        content = np.ascontiguousarray(part)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType] - of any element type
        return [list(content.shape), hashlib.sha256(content.data).hexdigest()]
    return getattr(part, "key", None) or str(part)
