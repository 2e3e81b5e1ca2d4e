"""Who drives which run: replicas, their heartbeat, and runs changing hands."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    Select,
    and_,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from gateway.db.engine import Database, Transaction
from gateway.db.records import micros
from gateway.db.runs import OPEN
from gateway.db.tables import replicas, runs

UNDER_WAY = [state for state in OPEN if state != "waiting"]


class OwnerRows:
    """The replicas table and the owner column of runs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def enter(self, replica: str, now: datetime, *, alone: bool) -> None:
        """Announce this replica; `alone` = no other one can be alive."""

        async def work(writing: Transaction) -> None:
            if alone:
                await writing.execute(delete(replicas))
            await writing.execute(insert(replicas), {"id": replica, "seen": micros(now)})

        await self._db.write(work)

    async def beat(self, replica: str, now: datetime) -> None:
        """Say that this replica is alive."""

        async def work(writing: Transaction) -> None:
            beat = update(replicas).where(replicas.c.id == replica).values(seen=micros(now))
            if await writing.matched(beat) == 0:
                # taken for dead meanwhile: its runs have gone with a new epoch, new ones may come
                await writing.execute(insert(replicas), {"id": replica, "seen": micros(now)})

        await self._db.write(work)

    async def leave(self, replica: str) -> None:
        """Give every open run back at once; no death is counted for any."""

        async def work(writing: Transaction) -> None:
            await writing.execute(
                update(runs)
                .where(runs.c.owner == replica, runs.c.state.in_(OPEN))
                .values(owner=None)
            )
            await writing.execute(delete(replicas).where(replicas.c.id == replica))

        await self._db.write(work)

    async def take_over(
        self, replica: str, *, dead_since: datetime, room: int, room_of: Callable[[str], int]
    ) -> Sequence[RowMapping]:
        """Make runs of dead owners, and unowned ones, this replica's: id, job, state, caller.

        A replica not seen since `dead_since` is dead, and so is one without a row. Runs under way
        are taken whatever the room: capacity bounds them. Of waiting ones as many as there is room,
        and for each caller as many as `room_of` says. An owner that died while it collected a run's
        files has that counted against the run.
        """
        alive = select(replicas.c.id).where(replicas.c.seen > micros(dead_since))
        free = or_(
            runs.c.owner.is_(None), and_(runs.c.owner != replica, not_(runs.c.owner.in_(alive)))
        )
        waiting = _backlog(free, room)
        under_way = select(runs.c.id).where(runs.c.state.in_(UNDER_WAY), free)
        collecting = and_(runs.c.state == "produced", runs.c.owner.is_not(None))

        async def work(writing: Transaction) -> Sequence[RowMapping]:
            ids: list[str] = [row["id"] for row in await writing.rows(under_way)]
            if room > 0:
                ids += [
                    row["id"]
                    for row in await writing.rows(waiting)
                    if row["place"] <= room_of(row["caller"])
                ]
            if not ids:
                return []
            mine = and_(runs.c.id.in_(ids), runs.c.state.in_(OPEN), free)
            await writing.execute(
                update(runs).where(mine, collecting).values(deaths=runs.c.deaths + 1)
            )
            return await writing.rows(
                update(runs)
                .where(mine)
                .values(owner=replica, epoch=runs.c.epoch + 1)
                .returning(runs.c.id, runs.c.job_id, runs.c.state, runs.c.caller)
            )

        return await self._db.write(work)

    async def unowned(self) -> int:
        """How many open runs nobody owns."""
        query = (
            select(func.count().label("n"))
            .select_from(runs)
            .where(runs.c.state.in_(OPEN), runs.c.owner.is_(None))
        )
        row = await self._db.read(lambda reading: reading.row(query))
        return 0 if row is None else int(row["n"])

    async def under_way(self, replica: str) -> Sequence[str]:
        """Runs of this replica that have a place."""
        query = select(runs.c.id).where(runs.c.owner == replica, runs.c.state.in_(UNDER_WAY))
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [row["id"] for row in rows]


def _backlog(free: ColumnElement[bool], room: int) -> Select[Any, Any, Any]:
    """Waiting runs that are free, every caller's first before anybody's second."""
    place = func.row_number().over(
        partition_by=runs.c.caller,
        order_by=(runs.c.priority.desc(), runs.c.created_at, runs.c.id),
    )
    backlog = (
        select(runs.c.id, runs.c.caller, place.label("place"))
        .where(runs.c.state == "waiting", free)
        .subquery()
    )
    return (
        select(backlog.c.id, backlog.c.caller, backlog.c.place)
        .order_by(backlog.c.place, backlog.c.id)
        .limit(max(0, room))
    )
