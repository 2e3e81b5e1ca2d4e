"""The templates: prompts to be used again."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, insert, select, tuple_, update

from gateway.clock import Clock, SystemClock
from gateway.db.cursors import cursor_after, read_cursor
from gateway.db.engine import Database, Transaction
from gateway.db.pictures import picture_columns, to_picture
from gateway.db.records import Row, micros, moment, storable
from gateway.db.tables import templates
from gateway.errors import NotFound
from gateway.job import new_job_id
from gateway.pictures import Picture
from gateway.templates import Template


class Templates:
    """Every template, by its id."""

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or SystemClock()

    async def add(self, texts: Mapping[str, str], image: Picture) -> Template:
        """Write a template; `texts` are its name, prompt and trigger keyword."""
        now = micros(self._clock.now())
        row = {
            "id": new_job_id(),
            **{name: storable(text) for name, text in texts.items()},
            **picture_columns(image),
            "created_at": now,
            "updated_at": now,
        }
        await self._db.write(lambda writing: writing.execute(insert(templates), row))
        return _template(row)

    async def get(self, template_id: str) -> Template | None:
        """The template of that id."""
        query = select(templates).where(templates.c.id == template_id)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _template(row)

    async def list(
        self, cursor: str | None = None, limit: int = 50
    ) -> tuple[tuple[Template, ...], str | None]:
        """One page, newest first, and the cursor of the next one.

        Raises InvalidParameters when the cursor is none of ours.
        """
        query = select(templates)
        if cursor is not None:
            place = tuple_(*read_cursor(cursor))
            query = query.where(tuple_(templates.c.created_at, templates.c.id) < place)
        query = query.order_by(templates.c.created_at.desc(), templates.c.id.desc())
        rows = await self._db.read(lambda reading: reading.rows(query.limit(limit + 1)))
        page = rows[:limit]
        more = len(rows) > limit
        following = cursor_after(page[-1]["created_at"], page[-1]["id"]) if more else None
        return tuple(_template(row) for row in page), following

    async def change(
        self, template_id: str, texts: Mapping[str, str], image: Picture | None
    ) -> tuple[Template, Picture | None]:
        """Change what is given; the template as it is then, and the picture it no longer has.

        Raises NotFound.
        """
        values: dict[str, Any] = {name: storable(text) for name, text in texts.items()}
        if image is not None:
            values |= picture_columns(image)
        values["updated_at"] = micros(self._clock.now())

        async def work(writing: Transaction) -> tuple[Row, Picture | None]:
            mine = templates.c.id == template_id
            # locked: of two changes at once each must know which picture it replaced
            before = await writing.row(select(templates).where(mine).with_for_update())
            if before is None:
                raise unknown_template()
            await writing.execute(update(templates).where(mine).values(**values))
            return {**before, **values}, to_picture(before) if image is not None else None

        row, replaced = await self._db.write(work)
        return _template(row), replaced

    async def remove(self, template_id: str) -> Picture:
        """Remove a template; the picture it had. Raises NotFound."""
        statement = delete(templates).where(templates.c.id == template_id).returning(templates)
        row = await self._db.write(lambda writing: writing.row(statement))
        if row is None:
            raise unknown_template()
        return _template(row).image


def unknown_template() -> NotFound:
    """Make the error for an id that is no template's."""
    return NotFound("There is no template with that id; GET /api/templates lists them.")


def _template(row: Row) -> Template:
    image = to_picture(row)
    if image is None:
        raise RuntimeError(f"template {row['id']} has no picture")
    return Template(
        id=row["id"],
        name=row["name"],
        prompt=row["prompt"],
        trigger_keyword=row["trigger_keyword"],
        image=image,
        created_at=moment(row["created_at"]),
        updated_at=moment(row["updated_at"]),
    )
