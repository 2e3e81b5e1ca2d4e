"""The seam between jobs and the place where files lie.

Keys are `<prefix>/yyyy/mm/dd/<job_id>/<name>.<ext>`, made in one function. Contract: a file exists
under its key whole or not at all; `slot` may be issued again for the same key and a later PUT of
the same bytes changes nothing; `delete` of what is not there is no error.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol


class StorageError(Exception):
    """The store could not do it; foreign errors are translated inside it."""


class NoRoom(StorageError):
    """The store is full."""


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


class Storage(Protocol):
    """A place where files lie."""

    def address(self, key: str) -> str:
        """Storage address shown to callers: `local://files/<key>`, `r2://bucket/key`, …."""
        ...

    def slot(self, key: str, lifetime: timedelta) -> str:
        """An address that takes the file's bytes by PUT until it expires."""
        ...

    def link(self, key: str, lifetime: timedelta) -> str:
        """An address that gives the file's bytes by GET, without a key, until it expires."""
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
