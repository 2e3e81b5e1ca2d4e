"""The seam between jobs and the place where files lie.

Keys are `<prefix>/yyyy/mm/dd/<job_id>/<name>.<ext>`, made in one function. Contract: a file exists
under its key whole or not at all; `slot` may be issued again for the same key and a later PUT of
the same bytes changes nothing; `delete` of what is not there is no error.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

DEFAULT_MAX_BYTES = 2 * 1024**3
_KEY = re.compile(
    r"(?:[a-z0-9][a-z0-9_-]{0,63}/){1,3}\d{4}/\d{2}/\d{2}/[0-9a-f-]{36}/"
    r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\.[a-z0-9]{1,8}"
)


def is_key(text: str) -> bool:
    """Whether that is a key of ours."""
    return _KEY.fullmatch(text) is not None


class StorageError(Exception):
    """The store could not do it; foreign errors are translated inside it."""


class NoRoom(StorageError):
    """The store is full."""


class TooManyBytes(StorageError):
    """The file is larger than this store takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"more than {limit} bytes")
        self.limit = limit


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """A key under which something lies, and when it was written."""

    key: str
    written_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that is there, whole."""

    key: str
    bytes: int
    sha256: str | None
    """Hash of the stored bytes where the store computed or recorded one."""
    etag: str
    media_type: str
    md5: str | None = None
    """Hexadecimal, where the store says it of the stored bytes."""


class Storage(Protocol):
    """A place where files lie."""

    @property
    def is_remote(self) -> bool:
        """Whether its slots and links lead to a server that is not this gateway."""
        ...

    @property
    def wants_length(self) -> bool:
        """Whether a slot takes only bodies that state their length."""
        ...

    @property
    def wants_md5(self) -> bool:
        """Whether a slot compares the body with its `Content-MD5`."""
        ...

    def address(self, key: str) -> str:
        """Storage address shown to callers: `local://files/<key>`, `r2://bucket/key`, …."""
        ...

    def key_of(self, address: str) -> str | None:
        """The key that an address like that names, or a link; None where it is none of ours."""
        ...

    def slot(self, key: str, lifetime: timedelta, *, length: int | None = None) -> str:
        """An address that takes the file's bytes by PUT until it expires.

        `length`: a remote store is to take a body of exactly so many bytes.
        """
        ...

    def link(self, key: str, lifetime: timedelta, *, disposition: str | None = None) -> str:
        """An address that gives the file's bytes by GET, without a key, until it expires.

        `disposition`: the `Content-Disposition` a remote store is to answer with.
        """
        ...

    def path(self, key: str) -> Path | None:
        """Where the file is, or would be, on this machine's disk; None for a remote store."""
        ...

    async def write(self, key: str, media_type: str, chunks: AsyncIterator[bytes]) -> StoredFile:
        """Take a file in; it appears under its key once it is whole. Raises StorageError."""
        ...

    async def stat(self, key: str) -> StoredFile | None:
        """What lies under the key; None when nothing does. Raises StorageError."""
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The bytes `start..end` (end exclusive), in chunks. Raises StorageError, KeyError."""
        ...

    async def delete(self, key: str) -> None:
        """Remove the file. Raises StorageError."""
        ...

    def pages(self) -> AsyncIterator[Sequence[ListedFile]]:
        """Every key there is, a page at a time, in no order one may rely on.

        What is written or deleted meanwhile may be missing or named. Raises StorageError.
        """
        ...

    async def tidy(self, before: datetime) -> None:
        """Remove what uploads left behind that broke off before that time. Raises StorageError."""
        ...
