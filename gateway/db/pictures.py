"""The picture columns that templates and styles share."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import select, union_all

from gateway.db.engine import Database
from gateway.db.records import Row, storable
from gateway.db.tables import styles, templates
from gateway.pictures import STYLES_PATH, TEMPLATES_PATH, Picture, item_of

_TABLES = {TEMPLATES_PATH: templates, STYLES_PATH: styles}


def picture_columns(picture: Picture) -> dict[str, Any]:
    """A picture as it is stored."""
    return {
        "image_key": picture.key,
        "image_type": picture.media_type,
        "image_bytes": picture.bytes,
        "image_sha256": picture.sha256,
    }


def to_picture(row: Row) -> Picture | None:
    """The picture of a row."""
    if row["image_key"] is None:
        return None
    return Picture(
        key=row["image_key"],
        media_type=row["image_type"],
        bytes=row["image_bytes"],
        sha256=row["image_sha256"],
    )


class PictureRows:
    """Pictures looked up by what is not their item."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def at(self, path: str, /) -> Picture | None:
        """The picture served at a path; None where there is none."""
        named = item_of(path)
        if named is None:
            return None
        table = _TABLES[named[0]]
        query = select(table).where(table.c.id == storable(named[1]))
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else to_picture(row)

    async def among(self, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys that an item has as its picture."""
        named = list(keys)
        query = union_all(
            *(
                select(table.c.image_key).where(table.c.image_key.in_(named))
                for table in _TABLES.values()
            )
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return frozenset(row["image_key"] for row in rows)
