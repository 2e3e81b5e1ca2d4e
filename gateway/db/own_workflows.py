"""Callers' own workflows: every version ever made, the removed ones for the jobs they were of."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import func, insert, select, update

from gateway.clock import Clock, SystemClock
from gateway.db.engine import AlreadyThere, Database, Transaction
from gateway.db.records import Row, micros, moment
from gateway.db.tables import workflows
from gateway.errors import Conflict

MOST_VERSIONS = 1000
_TRIES = 5

_HEAD = (
    workflows.c.name,
    workflows.c.version,
    workflows.c.digest,
    workflows.c.caller,
    workflows.c.created_at,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A version, without its content."""

    name: str
    version: int
    digest: str
    caller: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Head):
    """A version as it was made."""

    graph: dict[str, JsonValue]
    manifest: dict[str, JsonValue]


class OwnWorkflowRows:
    """Every version of every workflow."""

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or SystemClock()

    async def add(
        self,
        *,
        name: str,
        caller: str,
        digest: str,
        graph: dict[str, JsonValue],
        manifest: dict[str, JsonValue],
        most: int,
    ) -> tuple[Head, bool]:
        """Make the next version of a name, or find that the newest one is just this.

        True when it was made. Raises Conflict for a name of somebody else, for the caller's
        `most` + 1st name, and for a name with too many versions.
        """
        values: dict[str, Any] = {
            "name": name,
            "digest": digest,
            "caller": caller,
            "graph": graph,
            "manifest": manifest,
            "created_at": micros(self._clock.now()),
        }

        async def work(writing: Transaction) -> tuple[Head, bool]:
            last = await writing.row(_last(name))
            if last is not None and last["caller"] != caller:
                raise Conflict(f"Another caller's workflow is named {name!r}: choose another name.")
            alive = last is not None and last["removed_at"] is None
            if last is not None and alive and last["digest"] == digest:
                return _head(last), False
            version = 1 if last is None else last["version"] + 1
            if version > MOST_VERSIONS:
                raise Conflict(f"{name!r} has {MOST_VERSIONS} versions: choose another name.")
            if not alive:
                await _require_room(writing, caller, most)
            await writing.execute(insert(workflows).values(**values, version=version))
            return _head({**values, "version": version}), True

        for _ in range(_TRIES):
            try:
                return await self._db.write(work)
            except AlreadyThere:
                # another call made that version in between
                continue
        raise Conflict(f"{name!r} is being changed by others at the moment: send it again.")

    async def head(self, name: str) -> Head | None:
        """Look up the newest version of a workflow that is not removed."""
        query = _last(name)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None or row["removed_at"] is not None else _head(row)

    async def version(self, name: str, version: int) -> Head | None:
        """Look up one version, without its content; None for one that was removed."""
        query = select(*_HEAD).where(
            workflows.c.name == name,
            workflows.c.version == version,
            workflows.c.removed_at.is_(None),
        )
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _head(row)

    async def heads(self) -> Sequence[Head]:
        """List the newest version of every workflow that is not removed, by name."""
        query = select(*_HEAD, workflows.c.removed_at).where(*_newest())
        rows = await self._db.read(lambda reading: reading.rows(query.order_by(workflows.c.name)))
        return [_head(row) for row in rows if row["removed_at"] is None]

    async def versions(self, name: str) -> Sequence[Head]:
        """List the versions of a workflow, the newest first."""
        query = (
            select(*_HEAD)
            .where(workflows.c.name == name, workflows.c.removed_at.is_(None))
            .order_by(workflows.c.version.desc())
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [_head(row) for row in rows]

    async def record(self, name: str, version: int) -> Record | None:
        """Look up one version; None for one that was removed."""
        query = select(workflows).where(
            workflows.c.name == name,
            workflows.c.version == version,
            workflows.c.removed_at.is_(None),
        )
        return await self._record(query)

    async def by_digest(self, digest: str) -> Record | None:
        """Look up what a job was made with, removed or not."""
        query = select(workflows).where(workflows.c.digest == digest).limit(1)
        return await self._record(query)

    async def remove(self, name: str, caller: str) -> bool:
        """Remove a workflow with all its versions; False when the caller has none of that name."""
        statement = (
            update(workflows)
            .where(
                workflows.c.name == name,
                workflows.c.caller == caller,
                workflows.c.removed_at.is_(None),
            )
            .values(removed_at=micros(self._clock.now()))
        )
        return await self._db.write(lambda writing: writing.matched(statement)) > 0

    async def _record(self, query: Any) -> Record | None:  # noqa: ANN401 - SQLAlchemy's own
        row = await self._db.read(lambda reading: reading.row(query))
        if row is None:
            return None
        head = _head(row)
        return Record(
            name=head.name,
            version=head.version,
            digest=head.digest,
            caller=head.caller,
            created_at=head.created_at,
            graph=row["graph"],
            manifest=row["manifest"],
        )


def _newest() -> tuple[Any, ...]:
    newest = (
        select(workflows.c.name, func.max(workflows.c.version).label("version"))
        .group_by(workflows.c.name)
        .subquery()
    )
    return (workflows.c.name == newest.c.name, workflows.c.version == newest.c.version)


def _last(name: str) -> Any:  # noqa: ANN401 - SQLAlchemy's own
    return (
        select(*_HEAD, workflows.c.removed_at)
        .where(workflows.c.name == name)
        .order_by(workflows.c.version.desc())
        .limit(1)
    )


async def _require_room(writing: Transaction, caller: str, most: int) -> None:
    query = select(func.count(func.distinct(workflows.c.name)).label("count")).where(
        workflows.c.caller == caller, workflows.c.removed_at.is_(None)
    )
    row = await writing.row(query)
    if row is not None and row["count"] >= most:
        raise Conflict(f"You have {most} workflows, as many as may be: delete one first.")


def _head(row: Row) -> Head:
    return Head(
        name=row["name"],
        version=row["version"],
        digest=row["digest"],
        caller=row["caller"],
        created_at=moment(row["created_at"]),
    )
