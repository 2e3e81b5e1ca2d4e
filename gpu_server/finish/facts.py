"""What is known of a file beside its bytes."""

import errno
from dataclasses import dataclass

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Errors of a disk, not of the file; not EIO, which FFmpeg says of files that break off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a file shows; None where it does not apply or was not to be found out."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    faces: int | None = None


class Unreadable(Exception):
    """A file is not what it seems; in words for a caller."""


class NotConvertible(Exception):
    """A picture can't become what was asked for; in words for a caller."""
