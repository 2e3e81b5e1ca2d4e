"""What a hostile file is: how it is made, and what it gets by each way in."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

TAKEN = "taken"
KIND, DAMAGED, MOVES, LARGE = "wrong_kind", "unreadable_image", "animated_image", "too_large"
PAGE = "unreadable_input"

Kind = Literal["image", "video", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileFile:
    """One file, and what it has to get."""

    name: str
    make: Callable[[], bytes]
    why: str
    call: str
    """Code where it comes inside a call as a `data:` URI, or TAKEN."""
    fetch: str
    """Code where the GPU service fetches it."""
    media: str
    """Code of `POST /api/media/upload`."""
    file: str
    """Code of `POST /api/files`."""
    reads: Kind = "image"
    """What the parameter it is sent as takes."""

    def content(self) -> bytes:
        """Its bytes, made once."""
        return _content(self.make)


@cache
def _content(make: Callable[[], bytes]) -> bytes:
    return make()


def all_alike(name: str, make: Callable[[], bytes], code: str, why: str) -> HostileFile:
    return got(name, make, why, code, code, code, code)


def got(
    name: str, make: Callable[[], bytes], why: str, *codes: str, reads: Kind = "image"
) -> HostileFile:
    """Those of call, fetch, media and file."""
    call, fetch, media, file = codes
    return HostileFile(
        name=name, make=make, why=why, call=call, fetch=fetch, media=media, file=file, reads=reads
    )


def none_of_ours(name: str, make: Callable[[], bytes], why: str) -> HostileFile:
    return all_alike(name, make, KIND, why)


def text(name: str, make: Callable[[], bytes], why: str) -> HostileFile:
    return got(name, make, why, KIND, PAGE, KIND, KIND)
