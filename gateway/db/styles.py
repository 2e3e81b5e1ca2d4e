"""The styles: the bundled ones, unless a row says otherwise, and those added.

A bundled style that was removed is a row without prompt: see `gateway.styles` for why.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from sqlalchemy import delete, insert, select, update

from gateway.clock import Clock, SystemClock
from gateway.db.engine import AlreadyThere, Database, Transaction
from gateway.db.pictures import picture_columns, to_picture
from gateway.db.records import Row, micros, moment, storable
from gateway.db.tables import styles
from gateway.errors import Conflict, NotFound
from gateway.pictures import Picture
from gateway.styles import BUNDLED, Style

T = TypeVar("T")
_REMOVED = ""
"""The prompt of a bundled style that is not wanted: no other style's is empty."""
_NO_PICTURE: Mapping[str, None] = dict.fromkeys(
    ("image_key", "image_type", "image_bytes", "image_sha256")
)


class Styles:
    """Every style, by its id."""

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or SystemClock()

    async def get(self, style_id: str) -> Style | None:
        """The style of that id."""
        query = select(styles).where(styles.c.id == style_id)
        row = await self._db.read(lambda reading: reading.row(query))
        return _style(style_id, row)

    async def list(
        self, cursor: str | None = None, limit: int = 50
    ) -> tuple[tuple[Style, ...], str | None]:
        """One page in order of their ids, and the cursor of the next one: the last id."""
        named = select(styles.c.id, (styles.c.prompt == _REMOVED).label("removed"))

        async def work(reading: Transaction) -> list[Style]:
            rows = await reading.rows(named)
            removed = {row["id"] for row in rows if row["removed"]}
            # sorted here: the databases do not agree on the order of texts
            every = sorted({*BUNDLED, *(row["id"] for row in rows)} - removed)
            wanted = [style_id for style_id in every if style_id > (cursor or "")][: limit + 1]
            found = await reading.rows(select(styles).where(styles.c.id.in_(wanted)))
            changed = {row["id"]: row for row in found}
            page = [_style(style_id, changed.get(style_id)) for style_id in wanted]
            # one may have been removed between the two reads
            return [style for style in page if style is not None]

        page = await self._db.read(work)
        return tuple(page[:limit]), page[limit - 1].id if len(page) > limit else None

    async def add(self, style_id: str, texts: Mapping[str, str], image: Picture | None) -> Style:
        """Write a style; `texts` are its name and prompt. Raises Conflict when the id is taken."""
        now = micros(self._clock.now())
        row: dict[str, Any] = {
            "id": style_id,
            **{name: storable(text) for name, text in texts.items()},
            **(picture_columns(image) if image is not None else _NO_PICTURE),
            "created_at": now,
            "updated_at": now,
        }

        async def work(writing: Transaction) -> None:
            mine = styles.c.id == style_id
            known = await writing.row(select(styles).where(mine).with_for_update())
            if _style(style_id, known) is not None:
                raise taken
            if known is None:
                await writing.execute(insert(styles), row)
            else:
                await writing.execute(update(styles).where(mine).values(**row))

        taken = Conflict(f"There is a style {style_id!r} already: change it by PUT.")
        try:
            await self._db.write(work)
        except AlreadyThere:
            # another call with this id was quicker
            raise taken from None
        return _of_row(row)

    async def change(
        self, style_id: str, texts: Mapping[str, str], image: Picture | None
    ) -> tuple[Style, Picture | None]:
        """Change what is given; the style as it is then, and the picture it no longer has.

        Raises NotFound.
        """
        values: dict[str, Any] = {name: storable(text) for name, text in texts.items()}
        if image is not None:
            values |= picture_columns(image)
        return await self._change(style_id, values)

    async def remove_picture(self, style_id: str) -> Picture:
        """Leave a style without picture; the one it had. Raises NotFound."""
        _, replaced = await self._change(style_id, dict(_NO_PICTURE))
        if replaced is None:
            raise NotFound(f"The style {style_id!r} has no picture.")
        return replaced

    async def remove(self, style_id: str) -> Picture | None:
        """Remove a style; the picture it had. Raises NotFound."""

        async def work(writing: Transaction) -> Picture | None:
            mine = styles.c.id == style_id
            row = await writing.row(select(styles).where(mine).with_for_update())
            style = _style(style_id, row)
            if style is None:
                raise unknown_style()
            if style_id not in BUNDLED:
                await writing.execute(delete(styles).where(mine))
                return style.image
            left = {"name": style.name, "prompt": _REMOVED, **_NO_PICTURE}
            await self._put(writing, style_id, row, left)
            return style.image

        return await self._written(work)

    async def _change(
        self, style_id: str, values: Mapping[str, Any]
    ) -> tuple[Style, Picture | None]:
        async def work(writing: Transaction) -> tuple[Row, Picture | None]:
            mine = styles.c.id == style_id
            # locked: of two changes at once each must know which picture it replaced
            before = await writing.row(select(styles).where(mine).with_for_update())
            style = _style(style_id, before)
            if style is None:
                raise unknown_style()
            kept = {"name": style.name, "prompt": style.prompt, **_NO_PICTURE}
            if before is not None:
                kept = {name: before[name] for name in kept}
            row = await self._put(writing, style_id, before, {**kept, **values})
            return row, style.image if "image_key" in values else None

        row, replaced = await self._written(work)
        return _of_row(row), replaced

    async def _put(
        self, writing: Transaction, style_id: str, before: Row | None, values: Mapping[str, Any]
    ) -> Row:
        """Write the row of a style that is known to be there, perhaps only as a bundled one."""
        now = micros(self._clock.now())
        row: dict[str, Any] = {"id": style_id, "created_at": now, "updated_at": now, **values}
        if before is None:
            await writing.execute(insert(styles), row)
            return row
        row["created_at"] = before["created_at"]
        await writing.execute(update(styles).where(styles.c.id == style_id).values(**row))
        return row

    async def _written(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        try:
            return await self._db.write(work)
        except AlreadyThere:
            # another call gave a bundled one its row; rows of those are never deleted
            return await self._db.write(work)


def unknown_style() -> NotFound:
    """Make the error for an id that is no style's."""
    return NotFound("There is no style with that id; GET /api/styles lists them.")


def _style(style_id: str, row: Row | None) -> Style | None:
    """The style of an id from its row, if it has one."""
    if row is None:
        return BUNDLED.get(style_id)
    return None if row["prompt"] == _REMOVED else _of_row(row)


def _of_row(row: Row) -> Style:
    return Style(
        id=row["id"],
        name=row["name"],
        prompt=row["prompt"],
        image=to_picture(row),
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
    )
