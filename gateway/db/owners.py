"""Who drives which run: replicas, their heartbeat, and runs changing hands."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Executable,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from gateway.db.engine import Database, Dialect, Transaction
from gateway.db.records import micros
from gateway.db.runs import OPEN
from gateway.db.tables import replicas, runs

UNDER_WAY = [state for state in OPEN if state != "waiting"]
_SECOND = 1_000_000
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a replica finds when it says that it is alive."""

    silent_s: float | None
    """How long it had not said so; None: it was not written down any more."""
    next_death_s: float | None
    """When the next of the others is dead unless it beats before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Callers a replica takes no waiting runs of."""

    callers: Sequence[str]
    below_ordinary: Sequence[str]
    """None below ordinary priority."""


class Statements:
    """The SQL of ownership, made once: to build it takes longer than to carry it out.

    `clock` = what says who is alive, in microseconds.
    """

    def __init__(self, clock: ColumnElement[int]) -> None:
        me = replicas.c.id == bindparam("me")
        living = replicas.c.seen > clock - bindparam("lease", type_=BigInteger)
        self.forget = delete(replicas).where(not_(living))
        backends = bindparam("backends", type_=JSON)
        self.appear = insert(replicas).values(id=bindparam("me"), seen=clock, backends=backends)
        self.seen = update(replicas).where(me).values(seen=clock)
        self.living = select(replicas.c.id, replicas.c.backends).where(living)
        self.silent = select((clock - replicas.c.seen).label("silent")).where(me)
        self.youngest = select((func.min(replicas.c.seen) - clock).label("age")).where(
            not_(me), living
        )
        others = not_(runs.c.owner.in_(select(replicas.c.id).where(living)))
        free = or_(runs.c.owner.is_(None), and_(runs.c.owner != bindparam("me"), others))
        self.under_way = select(runs.c.id, runs.c.backend).where(runs.c.state.in_(UNDER_WAY), free)
        # of callers with room alone: most of a long backlog is of those that have none
        wanted = and_(runs.c.state == "waiting", free, not_(_full()))
        self.any_waiting = select(runs.c.id).where(wanted).limit(1)
        self.backlog = _backlog(wanted)
        # what another replica is taking is left to it; several are locked in one order
        # everywhere, so that nobody waits for one who waits for him
        self.lock = (
            select(runs.c.id)
            .where(runs.c.id.in_(bindparam("ids", expanding=True)), runs.c.state.in_(OPEN), free)
            .order_by(runs.c.id)
            .with_for_update(skip_locked=True)
        )


@cache
def statements(dialect: Dialect) -> Statements:
    """The SQL of ownership for one kind of database."""
    # on PostgreSQL the database's clock, elsewhere the `now` that comes with a call: there a lock
    # proves that one process is alone
    if dialect == "postgresql":
        clock = cast(func.extract("epoch", func.clock_timestamp()) * _SECOND, BigInteger)
        return Statements(clock)
    return Statements(bindparam("now", type_=BigInteger))


_MINE = select(runs.c.id, runs.c.job_id, runs.c.caller).where(
    runs.c.owner == bindparam("me"), runs.c.state.in_(OPEN)
)
_MINE_UNDER_WAY = select(runs.c.id).where(
    runs.c.owner == bindparam("me"), runs.c.state.in_(UNDER_WAY)
)
_UNOWNED = (
    select(func.count().label("n"))
    .select_from(runs)
    .where(runs.c.state.in_(OPEN), runs.c.owner.is_(None))
)


class OwnerRows:
    """The replicas table and the owner column of runs."""

    def __init__(self, db: Database, backends: Collection[str]) -> None:
        self._db = db
        self._sql = statements(db.dialect)
        self._backends = sorted(backends)

    def _values(self, replica: str, now: datetime, lease: timedelta) -> dict[str, Any]:
        beat = {"me": replica, "now": micros(now), "lease": lease // _MICROSECOND}
        return {**beat, "backends": self._backends}

    async def living(
        self, replica: str, now: datetime, lease: timedelta
    ) -> dict[str, frozenset[str] | None]:
        """Who was seen within `lease`, and the backends each can reach (None: not known).

        The asking replica is among them, whatever its row says.
        """
        values = self._values(replica, now, lease)
        rows = await self._db.read(lambda reading: reading.rows(self._sql.living, values))
        return _reach(rows) | {replica: frozenset(self._backends)}

    async def enter(self, replica: str, now: datetime, lease: timedelta, *, alone: bool) -> None:
        """Announce this replica and forget the dead ones; `alone` = every other one is dead."""
        sql = self._sql
        values = self._values(replica, now, lease)

        async def work(writing: Transaction) -> None:
            await writing.execute(delete(replicas) if alone else sql.forget, values)
            await writing.execute(sql.appear, values)

        await self._db.write(work, apart=True)

    async def beat(self, replica: str, now: datetime, lease: timedelta) -> Beat:
        """Say that this replica is alive."""
        sql = self._sql
        values = self._values(replica, now, lease)

        async def work(writing: Transaction) -> Beat:
            before = await writing.row(sql.silent, values)
            # taken for dead meanwhile: its runs have gone with a new epoch, new ones may come
            await writing.execute(sql.appear if before is None else sql.seen, values)
            others = await writing.row(sql.youngest, values)
            age = None if others is None else others["age"]
            return Beat(
                silent_s=None if before is None else before["silent"] / _SECOND,
                next_death_s=None if age is None else age / _SECOND + lease.total_seconds(),
            )

        return await self._db.write(work, apart=True)

    async def leave(self, replica: str) -> None:
        """Give every open run back at once; no death is counted for any."""
        mine = select(runs.c.id).where(runs.c.owner == replica, runs.c.state.in_(OPEN))

        async def work(writing: Transaction) -> None:
            # in one order everywhere: see `take_over`
            rows = await writing.rows(mine.order_by(runs.c.id).with_for_update())
            if rows:
                given_back = update(runs).where(runs.c.owner == replica, runs.c.state.in_(OPEN))
                await writing.execute(given_back.values(owner=None))
                writing.tell("unowned")
            await writing.execute(delete(replicas).where(replicas.c.id == replica))

        await self._db.write(work, apart=True)

    async def take_over(
        self,
        replica: str,
        now: datetime,
        *,
        lease: timedelta,
        room: int,
        full: Full,
        room_of: Callable[[str, int], int],
    ) -> Sequence[RowMapping]:
        """Make runs of dead owners, and unowned ones, this replica's: id, job, state, caller.

        A replica not seen for `lease` is dead, and so is one without a row. Runs under way are
        taken whatever the room, capacity bounds them; but those of a backend that is not reached
        from here are left to a replica that reaches it, if there is one. Of waiting ones as many as
        there is room, and for each caller as many as `room_of` says of it and the run's priority;
        `full` names those for whom that is none. An owner that died while it collected a run's
        files has that counted against the run.
        """
        sql = self._sql
        values = {"me": replica, "now": micros(now), "lease": lease // _MICROSECOND}
        waiting = {**values, "room": room, "full": full.callers, "full_below": full.below_ordinary}

        async def work(writing: Transaction) -> Sequence[RowMapping]:
            ids: list[str] = []
            if free := await writing.rows(sql.under_way, values):
                reach = _reach(await writing.rows(sql.living, values))
                ids += [row["id"] for row in free if self._mine(row["backend"], reach)]
            # all of them are put in order to find the first: only when there is any to take
            if room > 0 and await writing.row(sql.any_waiting, waiting) is not None:
                ids += [
                    row["id"]
                    for row in await writing.rows(sql.backlog, waiting)
                    if row["place"] <= room_of(row["caller"], row["priority"])
                ]
            if not ids:
                return []
            mine = await writing.rows(sql.lock, {**values, "ids": ids})
            locked: list[str] = [row["id"] for row in mine]
            return await writing.rows(_taken_by(replica, locked)) if locked else []

        return await self._db.write(work, apart=True)

    def _mine(self, backend: str, reach: Mapping[str, frozenset[str] | None]) -> bool:
        others = (names for names in reach.values() if names is not None)
        return backend in self._backends or not any(backend in names for names in others)

    async def open_runs(self, replica: str) -> Sequence[RowMapping]:
        """Every open run of this replica: id, job, caller."""
        values = {"me": replica}
        return await self._db.read(lambda reading: reading.rows(_MINE, values), apart=True)

    async def unowned(self) -> int:
        """How many open runs nobody owns."""
        row = await self._db.read(lambda reading: reading.row(_UNOWNED), apart=True)
        return 0 if row is None else int(row["n"])

    async def under_way(self, replica: str) -> Sequence[str]:
        """Runs of this replica that have a place."""
        values = {"me": replica}
        query = _MINE_UNDER_WAY
        rows = await self._db.read(lambda reading: reading.rows(query, values), apart=True)
        return [row["id"] for row in rows]


def _reach(rows: Sequence[RowMapping]) -> dict[str, frozenset[str] | None]:
    return {
        row["id"]: None if row["backends"] is None else frozenset(row["backends"]) for row in rows
    }


def _full() -> ColumnElement[bool]:
    """The run's caller has no room for it."""
    below = runs.c.caller.in_(bindparam("full_below", expanding=True))
    return or_(
        runs.c.caller.in_(bindparam("full", expanding=True)), and_(below, runs.c.priority < 0)
    )


def _backlog(wanted: ColumnElement[bool]) -> Select[Any, Any, Any, Any]:
    """Runs that are wanted, every caller's first before anybody's second."""
    place = func.row_number().over(
        partition_by=runs.c.caller,
        order_by=(runs.c.priority.desc(), runs.c.created_at, runs.c.id),
    )
    backlog = (
        select(runs.c.id, runs.c.caller, runs.c.priority, place.label("place"))
        .where(wanted)
        .subquery()
    )
    return (
        select(backlog.c.id, backlog.c.caller, backlog.c.priority, backlog.c.place)
        .order_by(backlog.c.place, backlog.c.id)
        .limit(bindparam("room"))
    )


def _taken_by(replica: str, ids: Sequence[str]) -> Executable:
    collecting = and_(runs.c.state == "produced", runs.c.owner.is_not(None))
    return (
        update(runs)
        .where(runs.c.id.in_(ids))
        .values(
            owner=replica,
            epoch=runs.c.epoch + 1,
            deaths=case((collecting, runs.c.deaths + 1), else_=runs.c.deaths),
            # the former owner may have asked for its start: see `Run.handed_over`
            granted_at=case((runs.c.state == "granted", None), else_=runs.c.granted_at),
        )
        .returning(runs.c.id, runs.c.job_id, runs.c.state, runs.c.caller)
    )
