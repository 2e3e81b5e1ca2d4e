"""Thumbnails by the file they were made of and their width."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select

from gateway.db.engine import Database
from gateway.db.records import Row, micros, moment
from gateway.db.tables import thumbnails


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A small picture in storage, made of another file there."""

    source_key: str
    width: int
    """The longest side that was asked for; it may be shorter."""
    key: str
    media_type: str
    bytes: int
    sha256: str
    created_at: datetime

    @property
    def filename(self) -> str:
        """The last part of its key."""
        return self.key.rpartition("/")[2]


class ThumbnailRows:
    """Every thumbnail there is."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, thumbnail: Thumbnail) -> None:
        """Write one down. Raises AlreadyThere when there is one of that file and width."""
        row = {
            "source_key": thumbnail.source_key,
            "width": thumbnail.width,
            "key": thumbnail.key,
            "media_type": thumbnail.media_type,
            "bytes": thumbnail.bytes,
            "sha256": thumbnail.sha256,
            "created_at": micros(thumbnail.created_at),
        }
        await self._db.write(lambda writing: writing.execute(insert(thumbnails), row), single=True)

    async def get(self, source_key: str, width: int) -> Thumbnail | None:
        """The one of that file and width."""
        query = select(thumbnails).where(
            thumbnails.c.source_key == source_key, thumbnails.c.width == width
        )
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _thumbnail(row)

    async def of(self, source_keys: Collection[str]) -> Sequence[Thumbnail]:
        """All that were made of these files."""
        query = select(thumbnails).where(thumbnails.c.source_key.in_(list(source_keys)))
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [_thumbnail(row) for row in rows]

    async def remove(self, keys: Collection[str]) -> None:
        """Forget thumbnails by their own keys."""
        gone = delete(thumbnails).where(thumbnails.c.key.in_(list(keys)))
        await self._db.write(lambda writing: writing.execute(gone), single=True)


def _thumbnail(row: Row) -> Thumbnail:
    return Thumbnail(
        source_key=row["source_key"],
        width=row["width"],
        key=row["key"],
        media_type=row["media_type"],
        bytes=row["bytes"],
        sha256=row["sha256"],
        created_at=moment(row["created_at"]),
    )
