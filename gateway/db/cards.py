"""The cards of generated media: which job each of a caller's own ids stands for."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import insert, select, update

from gateway.db.engine import AlreadyThere, Database, Transaction
from gateway.db.records import Row, micros, moment, storable
from gateway.db.tables import cards
from gateway.errors import Conflict

_TRIES = 3

CardMedia = Literal["image", "video"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a caller calls the media that a job makes."""

    caller: str
    id: str
    """Any text of the caller's."""
    job_id: str
    """The latest job that was asked for under this id."""
    media_type: CardMedia
    created_at: datetime
    """When that job was made."""


class Cards:
    """Every card; it goes with its job."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(self, card: Card) -> None:
        """Let the card stand for its job, unless it stands for a later one already.

        So a call that is repeated with its Idempotency-Key takes nothing back. Raises Conflict
        where the job has just been deleted.
        """
        for _ in range(_TRIES):
            try:
                await self._db.write(lambda writing: _put(writing, card))
            except AlreadyThere:
                # another call with this id was quicker, or the job is gone
                continue
            return
        raise Conflict("The job of this card has just been deleted: send the request again.")

    async def get(self, caller: str, card_id: str) -> Card | None:
        """The caller's card of that id."""
        query = select(cards).where(cards.c.caller == caller, cards.c.id == storable(card_id))
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _card(row)


async def _put(writing: Transaction, card: Card) -> None:
    mine = (cards.c.caller == card.caller, cards.c.id == card.id)
    values: dict[str, Any] = {
        "job_id": card.job_id,
        "media_type": card.media_type,
        "created_at": micros(card.created_at),
    }
    newer = update(cards).where(*mine, cards.c.created_at <= values["created_at"]).values(**values)
    if await writing.matched(newer):
        return
    if await writing.row(select(cards.c.job_id).where(*mine)) is None:
        row = {"caller": card.caller, "id": card.id, **values}
        await writing.execute(insert(cards), row)


def _card(row: Row) -> Card:
    return Card(
        caller=row["caller"],
        id=row["id"],
        job_id=row["job_id"],
        media_type=row["media_type"],
        created_at=moment(row["created_at"]),
    )
