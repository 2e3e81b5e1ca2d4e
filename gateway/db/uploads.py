"""The files callers uploaded, and those they have announced."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, insert, select, tuple_, update
from ulid import ULID

from gateway.db.cursors import cursor_after, read_cursor
from gateway.db.engine import Database
from gateway.db.records import Row, micros, moment, storable
from gateway.db.tables import uploads

UploadKind = Literal["media", "file"]
UploadStatus = Literal["waiting", "ready"]
_READY = uploads.c.status == "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A file of a caller's, in storage or, while it is waiting, on its way there."""

    id: str
    """A ULID."""
    caller: str
    kind: UploadKind
    """Which of the two lists it is in."""
    status: UploadStatus
    name: str | None
    """What the caller calls it: for people alone."""
    key: str
    filename: str
    """The last part of its key."""
    media_type: str
    """Of a waiting one what was announced."""
    bytes: int
    sha256: str
    """Empty while it is waiting."""
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    created_at: datetime
    expires_at: datetime | None


class Uploads:
    """Every upload, by its id and by its file name."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, upload: Upload) -> None:
        """Write one. Raises DatabaseUnavailable."""
        row = _row(upload)
        await self._db.write(lambda writing: writing.execute(insert(uploads), row))

    async def ready(self, upload: Upload) -> bool:
        """Make a waiting one what it has turned out to be; False: it is none any more."""
        values = _row(upload)
        statement = (
            update(uploads)
            .where(uploads.c.id == values.pop("id"), uploads.c.status == "waiting")
            .values(**values)
        )
        return await self._db.write(lambda writing: writing.matched(statement)) == 1

    async def get(self, caller: str, upload_id: str) -> Upload | None:
        """The caller's upload of that id, waiting or ready."""
        return await self._one(uploads.c.caller == caller, uploads.c.id == storable(upload_id))

    async def file(self, filename: str) -> Upload | None:
        """The upload of that file name, if it is there."""
        return await self._one(_READY, uploads.c.filename == storable(filename))

    async def file_of(self, caller: str, filename: str) -> Upload | None:
        """The caller's upload of that file name, if it is there."""
        return await self._one(
            _READY, uploads.c.caller == caller, uploads.c.filename == storable(filename)
        )

    async def waiting(self, upload_id: str) -> Upload | None:
        """The upload of that id, if its bytes are still to come."""
        return await self._one(uploads.c.status == "waiting", uploads.c.id == storable(upload_id))

    async def page(
        self, caller: str, kind: UploadKind, cursor: str | None = None, limit: int = 50
    ) -> tuple[tuple[Upload, ...], str | None]:
        """One page of the caller's that are there, newest first, and the cursor of the next one.

        Raises InvalidParameters when the cursor is none of ours.
        """
        query = select(uploads).where(_READY, uploads.c.caller == caller, uploads.c.kind == kind)
        if cursor is not None:
            created_at, last = read_cursor(cursor)
            place = tuple_(created_at, id_of(last))
            query = query.where(tuple_(uploads.c.created_at, uploads.c.id) < place)
        query = query.order_by(uploads.c.created_at.desc(), uploads.c.id.desc())
        rows = await self._db.read(lambda reading: reading.rows(query.limit(limit + 1)))
        page = rows[:limit]
        if len(rows) <= limit:
            return tuple(_upload(row) for row in page), None
        last = page[-1]
        following = cursor_after(last["created_at"], uuid_of(last["id"]))
        return tuple(_upload(row) for row in page), following

    async def delete(self, upload_id: str) -> bool:
        """Forget one; False: it was not there."""
        statement = delete(uploads).where(uploads.c.id == storable(upload_id))
        return await self._db.write(lambda writing: writing.matched(statement)) == 1

    async def expired(self, now: datetime, limit: int) -> Sequence[Upload]:
        """Those whose time is over, waiting ones too, the oldest first."""
        query = (
            select(uploads)
            .where(uploads.c.expires_at <= micros(now))
            .order_by(uploads.c.expires_at, uploads.c.id)
            .limit(limit)
        )
        rows = await self._db.read(lambda reading: reading.rows(query))
        return [_upload(row) for row in rows]

    async def among(self, keys: Collection[str]) -> frozenset[str]:
        """Those of the keys that belong to an upload."""
        named = list(keys)
        # only the last part has an index
        last = [key.rpartition("/")[2] for key in named]
        query = select(uploads.c.key).where(uploads.c.filename.in_(last), uploads.c.key.in_(named))
        rows = await self._db.read(lambda reading: reading.rows(query))
        return frozenset(row["key"] for row in rows)

    async def _one(self, *conditions: ColumnElement[bool]) -> Upload | None:
        query = select(uploads).where(*conditions)
        row = await self._db.read(lambda reading: reading.row(query))
        return None if row is None else _upload(row)


def uuid_of(upload_id: str) -> str:
    """A ULID as the UUID of the same 128 bits: what stands in keys and cursors."""
    return str(ULID.from_str(upload_id).to_uuid())


def id_of(uuid_text: str) -> str:
    """The way back. Raises ValueError for what is no UUID."""
    return str(ULID.from_uuid(uuid.UUID(uuid_text)))


def _row(upload: Upload) -> dict[str, Any]:
    row = {name: getattr(upload, name) for name in Upload.__dataclass_fields__}
    expires_at = upload.expires_at
    return row | {
        "name": None if upload.name is None else storable(upload.name),
        "sha256": upload.sha256 or None,
        "created_at": micros(upload.created_at),
        "expires_at": None if expires_at is None else micros(expires_at),
    }


def _upload(row: Row) -> Upload:
    columns: dict[str, Any] = {name: row[name] for name in Upload.__dataclass_fields__}
    columns["sha256"] = row["sha256"] or ""
    columns["created_at"] = moment(row["created_at"])
    if row["expires_at"] is not None:
        columns["expires_at"] = moment(row["expires_at"])
    return Upload(**columns)
