"""The registry of LoRAs that `model_id` names."""

from typing import Any

from sqlalchemy import insert, select

from gateway.clock import Clock, SystemClock
from gateway.db.engine import AlreadyThere, Database, Transaction
from gateway.db.records import Row, micros, moment, storable
from gateway.db.tables import trained_models
from gateway.errors import Conflict
from gateway.job import TrainedModel


class TrainedModels:
    """Every model registered, by number."""

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or SystemClock()

    async def add(
        self, name: str, lora: str, trigger_word: str | None, base_model: str
    ) -> TrainedModel:
        """Register a LoRA. Raises Conflict when the name is taken."""
        values: dict[str, Any] = {
            "name": storable(name),
            "lora": storable(lora),
            "trigger_word": None if trigger_word is None else storable(trigger_word),
            "base_model": storable(base_model),
            "created_at": micros(self._clock.now()),
        }

        async def work(writing: Transaction) -> int:
            statement = insert(trained_models).values(**values).returning(trained_models.c.id)
            row = await writing.row(statement)
            if row is None:
                raise RuntimeError("the database returned no id for the row it inserted")
            return int(row["id"])

        try:
            number = await self._db.write(work)
        except AlreadyThere:
            raise Conflict(
                f"A model named {name!r} is registered already: choose another name."
            ) from None
        return _model({"id": number, **values})

    async def get(self, number: int) -> TrainedModel | None:
        """The model of that number."""
        query = select(trained_models).where(trained_models.c.id == number)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _model(row)

    async def list(
        self, cursor: int | None = None, limit: int = 50
    ) -> tuple[tuple[TrainedModel, ...], int | None]:
        """One page, newest first, and the cursor of the next one (None on the last)."""
        query = select(trained_models).order_by(trained_models.c.id.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(trained_models.c.id < cursor)
        rows = await self._db.read(lambda reading: reading.rows(query))
        page = tuple(_model(row) for row in rows[:limit])
        return page, page[-1].id if len(rows) > limit else None


def _model(row: Row) -> TrainedModel:
    return TrainedModel(
        id=row["id"],
        name=row["name"],
        lora=row["lora"],
        trigger_word=row["trigger_word"],
        base_model=row["base_model"],
        created_at=moment(row["created_at"]),
    )
