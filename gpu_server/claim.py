"""The proof that this process alone works on the journal, which is known to be sound."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from gpu_server import journal

_PATIENCE_S = 5
"""A predecessor that was told to stop lets go within that time."""
_AGAIN_S = 0.1


class ClaimError(Exception):
    """Why the service can't start, in one sentence for the operator."""


@contextmanager
def claimed(journal_path: Path) -> Generator[None]:
    """Hold the journal for this process; the kernel gives it back however the process ends.

    Two processes would connect to ComfyUI under the same clientId, and one of them would hear
    nothing. Raises ClaimError.
    """
    lock_path = journal_path.with_suffix(".lock")
    try:
        journal_path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ClaimError(_unusable(journal_path, error.strerror)) from None
    try:
        _lock(file, journal_path)
        try:
            journal.check(journal_path)
        except (OSError, sqlite3.Error) as error:
            raise ClaimError(_unusable(journal_path, error)) from None
        yield
    finally:
        os.close(file)


def _lock(file: int, journal_path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ClaimError(
                    f"Another GPU service works with {journal_path}: "
                    "stop it, or give this one another WORKSPACE."
                ) from None
            time.sleep(_AGAIN_S)
        except OSError as error:
            raise ClaimError(_unusable(journal_path, error.strerror)) from None
        else:
            return


def _unusable(journal_path: Path, why: object) -> str:
    return f"The journal {journal_path} can't be used ({why}): repair, move or remove it."
