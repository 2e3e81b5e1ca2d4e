"""What lies in a folder of stored files: the files, and records whose files are gone."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gateway.storage.base import ListedFile

PAGE = 500
_RECORD = ".json"


def record_path(path: Path) -> Path:
    """Where the record of a file lies."""
    return path.with_name(f".{path.name}{_RECORD}")


def listed(root: Path) -> Iterator[tuple[ListedFile, ...]]:
    """Every key below `root`, folder by folder. Raises OSError."""
    page: list[ListedFile] = []
    for folder, below, names in os.walk(root, onerror=_raise_unless_gone):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in sorted({_file_of(name) for name in names}):
            found = _listed(root, Path(folder) / name)
            if found is not None:
                page.append(found)
            if len(page) >= PAGE:
                yield tuple(page)
                page = []
    if page:
        yield tuple(page)


def _file_of(name: str) -> str:
    if name.startswith(".") and name.endswith(_RECORD):
        return name[1 : -len(_RECORD)]
    return name


def _listed(root: Path, path: Path) -> ListedFile | None:
    written = [_written_at(path), _written_at(record_path(path))]
    known = [at for at in written if at is not None]
    if not known:
        return None
    at = datetime.fromtimestamp(max(known), UTC)
    return ListedFile(key=path.relative_to(root).as_posix(), written_at=at)


def _written_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
