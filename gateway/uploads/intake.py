"""Takes a file in as it comes: hashed on the way, looked at, written down last.

A row is the last thing that is written, so what it names is there; whatever goes wrong before that
leaves nothing behind, and what a killed process leaves is found by the search for orphans.
"""

import errno
import logging
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from ulid import ULID

from gateway.clock import Clock, SystemClock
from gateway.db import Database, DatabaseUnavailable
from gateway.db.uploads import Upload, UploadKind, Uploads
from gateway.errors import PayloadTooLarge, StorageFull
from gateway.job import UPLOADS_PREFIX
from gateway.quota import Quota, Room
from gateway.security.signing import SignedFileNames, Signer
from gateway.settings import Settings
from gateway.storage.base import NoRoom, Storage, StorageError, StoredFile
from gateway.storage.disk import DiskSpace
from gateway.storage.local import TooManyBytes
from gateway.thumbnails.scratch import Scratch
from gateway.thumbnails.store import Thumbnails
from gateway.thumbnails.unfit import UnfitMedia
from gateway.uploads.kinds import (
    EXTENSIONS,
    HEAD,
    OF_KIND,
    TAIL,
    UNKNOWN_EXTENSION,
    Family,
    accepted,
    check_archive,
    check_mesh,
    family_of,
    refused,
)
from gateway.uploads.passing import Passing, beginning, passing

_log = logging.getLogger(__name__)

THUMBNAIL_SIDE = 512
LONGEST_NAME = 255
MAX_ANNOUNCED = 5_000 * 1024 * 1024
"""The most that UPLOAD_MAX_MB may be, in bytes."""
ARRIVAL = "arrival"
"""Names the key that an announced file is sent to."""
_SEEN: tuple[Family, ...] = ("image", "video")
"""What is decoded before it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arriving:
    """A file about to be taken."""

    card: ULID
    caller: str
    kind: UploadKind
    families: Collection[Family]
    name: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """Takes uploads into storage, and gives them up."""

    storage: Storage
    rows: Uploads
    names: SignedFileNames
    disk: DiskSpace
    quota: Quota
    thumbnails: Thumbnails
    clock: Clock
    scratch: Scratch
    """Where copies lie of what goes to a store elsewhere, while they are looked at."""
    retention: timedelta | None
    most: int
    """Bytes of the largest file that is taken."""

    async def open(self) -> None:
        """Make the folder for copies, and remove from it what killed processes left."""
        await self.scratch.open()

    async def close(self) -> None:
        """Remove it."""
        await self.scratch.close()

    async def keep(
        self,
        chunks: AsyncIterator[bytes],
        *,
        caller: str,
        kind: UploadKind,
        name: str | None,
        expected: int = 0,
        families: Collection[Family] | None = None,
        still: bool = False,
    ) -> Upload:
        """Take a file in; `expected` = about how many bytes it has, if that was said.

        `still`: a picture must have one frame alone.

        Raises InvalidParameters, PayloadTooLarge, QuotaExceeded, StorageFull, StorageError,
        DatabaseUnavailable, and whatever `chunks` raises: then nothing of it is left.
        """
        await self.disk.require()
        arriving = Arriving(
            card=ULID(),
            caller=caller,
            kind=kind,
            families=families or OF_KIND[kind],
            name=label(name),
            created_at=self.clock.now(),
        )

        async def written(upload: Upload) -> None:
            if still and (upload.frames or 1) > 1:
                raise refused("animated_image", "has several frames: send one of them")
            await self.rows.add(upload)

        async with self.quota.room(caller, expected) as room:
            return await self.receive(_counted(chunks, room), arriving, written)

    async def receive(
        self,
        chunks: AsyncIterator[bytes],
        arriving: Arriving,
        written: Callable[[Upload], Awaitable[None]],
        *,
        slot: str = "file",
    ) -> Upload:
        """Store and look at a file; `written` writes its row. Raises as `keep` does."""
        head = await beginning(chunks, HEAD)
        if not head:
            raise refused("empty_file", "has no bytes")
        media_type = accepted(head, arriving.families)
        key = self.key(arriving, EXTENSIONS[media_type], slot)
        seen = family_of(media_type) in _SEEN
        async with passing(self.scratch if seen and self.storage.is_remote else None) as copy:
            stored = await self._stored(key, media_type, copy, head, chunks)
            try:
                upload = self._upload(arriving, stored, copy.sha256, media_type)
                if seen:
                    upload = await self._looked_at(upload, copy.path or self.storage.path(key))
                else:
                    await self._checked(upload, head)
                await written(upload)
            except BaseException:
                await self.discard([key])
                raise
        return upload

    async def remove(self, upload: Upload) -> None:
        """Delete an upload: its thumbnails, its file and its row. Raises StorageError."""
        await self.thumbnails.drop([upload.key])
        await self.storage.delete(upload.key)
        for key in self._slots(upload):
            await self.storage.delete(key)
        await self.rows.delete(upload.id)

    def _slots(self, upload: Upload) -> set[str]:
        """Where a client may have put its bytes in a bucket, once more after it was completed."""
        if not self.storage.is_remote or upload.kind != "media":
            return set()
        arriving = Arriving(
            card=ULID.from_str(upload.id),
            caller=upload.caller,
            kind=upload.kind,
            families=(),
            name=None,
            created_at=upload.created_at,
        )
        # it was announced as what it turned out to be, or as nothing
        endings = {EXTENSIONS.get(upload.media_type, UNKNOWN_EXTENSION), UNKNOWN_EXTENSION}
        return {self.key(arriving, ending, ARRIVAL) for ending in endings}

    async def discard(self, keys: Sequence[str]) -> None:
        """Delete files that nothing has, thumbnails too."""
        try:
            for key in keys:
                await self.storage.delete(key)
            await self.thumbnails.drop(keys)
        except (StorageError, DatabaseUnavailable) as error:
            _log.warning("a file that was not taken stays for the sweep: %s", error)

    def key(self, arriving: Arriving, extension: str, slot: str) -> str:
        """Where a file goes; its caller's name for it has no part in that."""
        card = str(arriving.card.to_uuid())
        return self.names.key(
            prefix=UPLOADS_PREFIX,
            day=arriving.created_at.date(),
            job_id=card,
            run_id=card,
            slot=slot,
            ext=extension,
        )

    async def _stored(
        self,
        key: str,
        media_type: str,
        copy: Passing,
        head: bytes,
        rest: AsyncIterator[bytes],
    ) -> StoredFile:
        try:
            async with aclosing(copy.through(head, rest)) as pieces:
                return await self.storage.write(key, media_type, pieces)
        except TooManyBytes as error:
            raise PayloadTooLarge(f"A file may have at most {error.limit} bytes.") from error
        except NoRoom as error:
            raise StorageFull("The disk is full: the file was not kept.") from error

    def _upload(
        self, arriving: Arriving, stored: StoredFile, sha256: str, media_type: str
    ) -> Upload:
        kept = self.retention
        return Upload(
            id=str(arriving.card),
            caller=arriving.caller,
            kind=arriving.kind,
            status="ready",
            name=arriving.name,
            key=stored.key,
            filename=self.names.filename(stored.key),
            media_type=media_type,
            bytes=stored.bytes,
            sha256=sha256,
            created_at=arriving.created_at,
            expires_at=None if kept is None else arriving.created_at + kept,
        )

    async def _looked_at(self, upload: Upload, path: Path | None) -> Upload:
        if path is None:
            raise RuntimeError(f"{upload.key} has no copy on this machine")
        try:
            looked, _ = await self.thumbnails.look_and_make(upload, path, THUMBNAIL_SIDE)
        except UnfitMedia as unfit:
            raise refused(unfit.code, unfit.message) from None
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull("The disk is full: the file was not kept.") from error
            raise
        return replace(
            upload,
            media_type=looked.media_type,
            width=looked.width,
            height=looked.height,
            frames=looked.frames,
            duration_s=looked.duration_s,
        )

    async def _checked(self, upload: Upload, head: bytes) -> None:
        """Find files that are cut off, where they say how long they are. Raises StorageError."""
        family = family_of(upload.media_type)
        if family == "model":
            check_mesh(head, upload.bytes)
        elif family == "archive":
            start = max(0, upload.bytes - TAIL)
            check_archive(b"".join([piece async for piece in self.storage.read(upload.key, start)]))


def intake_of(
    settings: Settings,
    *,
    db: Database,
    storage: Storage,
    signer: Signer,
    disk: DiskSpace,
    quota: Quota,
    thumbnails: Thumbnails,
) -> Intake:
    """Make what takes uploads in, as the settings say."""
    days = settings.upload_retention_days
    return Intake(
        storage=storage,
        rows=Uploads(db),
        names=SignedFileNames(signer),
        disk=disk,
        quota=quota,
        thumbnails=thumbnails,
        clock=SystemClock(),
        scratch=Scratch(settings.data / "uploads"),
        retention=timedelta(days=days) if days else None,
        most=settings.upload_max_mb * 1024 * 1024,
    )


async def _counted(chunks: AsyncIterator[bytes], room: Room) -> AsyncIterator[bytes]:
    received = 0
    async for piece in chunks:
        received += len(piece)
        await room.need(received)
        yield piece


def label(name: str | None) -> str | None:
    """A caller's name for a file, as it may be shown: no folders, no control characters."""
    last = (name or "").replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in last if unicodedata.category(c)[0] != "C").strip()
    return shown[:LONGEST_NAME] or None
