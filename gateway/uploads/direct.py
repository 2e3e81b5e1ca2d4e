"""Large files straight into storage: announced, sent to an address of their own, then looked at.

What lies under the announced key can be written again until its address expires, so it is never
served: a file that is complete is read once more on its way to a key of its own, which is what
was looked at and hashed.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from weakref import WeakValueDictionary

from ulid import ULID

from gateway.db.uploads import Upload, id_of
from gateway.errors import Conflict, InvalidParameters, NotFound, PayloadTooLarge
from gateway.security.signing import Signer
from gateway.storage.base import StoredFile
from gateway.storage.local import SLOTS_PATH
from gateway.uploads.intake import ARRIVAL, Arriving, Intake, label
from gateway.uploads.kinds import (
    EXTENSIONS,
    OF_KIND,
    UNKNOWN,
    UNKNOWN_EXTENSION,
    announced,
    refused,
)

WAITS = timedelta(hours=24)
"""How long the bytes of an announced file may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A file that was announced, and where its bytes go."""

    upload: Upload
    url: str
    """Beginning with a slash: of this API."""
    headers: dict[str, str]


class DirectUploads:
    """Takes files that go round this API into a bucket, or into a slot of the local storage."""

    def __init__(self, intake: Intake, signer: Signer) -> None:
        self._intake = intake
        self._signer = signer
        self._completing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def announce(
        self, *, caller: str, size: int, media_type: str | None, name: str | None
    ) -> Announced:
        """Reserve room and an address for a picture or video of so many bytes.

        Raises InvalidParameters, QuotaExceeded, StorageFull and DatabaseUnavailable.
        """
        intake = self._intake
        expected_type = announced(media_type, OF_KIND["media"])
        await intake.disk.require()
        card, now = ULID(), intake.clock.now()
        arriving = Arriving(
            card=card,
            caller=caller,
            kind="media",
            families=OF_KIND["media"],
            name=label(name),
            created_at=now,
        )
        key = intake.key(arriving, EXTENSIONS.get(expected_type, UNKNOWN_EXTENSION), ARRIVAL)
        upload = Upload(
            id=str(card),
            caller=caller,
            kind="media",
            status="waiting",
            name=arriving.name,
            key=key,
            filename=intake.names.filename(key),
            media_type=expected_type,
            bytes=size,
            sha256="",
            created_at=now,
            expires_at=now + WAITS,
        )
        url = (
            intake.storage.slot(key, WAITS, length=size)
            if intake.storage.is_remote
            else self._signer.slot(SLOTS_PATH + key, WAITS)
        )
        async with intake.quota.room(caller, size):
            await intake.rows.add(upload)
        return Announced(upload=upload, url=url, headers={"Content-Type": expected_type})

    async def complete(self, caller: str, upload_id: str) -> Upload:
        """Take in what has arrived; one that was completed before is only returned.

        Raises NotFound, Conflict while nothing has arrived, and what `Intake.keep` raises: then
        what arrived is deleted and may be sent anew.
        """
        # two at once would read it twice
        lock = self._completing.setdefault(upload_id, asyncio.Lock())
        async with lock:
            upload = await self._intake.rows.get(caller, upload_id)
            if upload is None:
                raise unknown_upload()
            return upload if upload.status == "ready" else await self._complete(upload)

    async def most_bytes(self, folder: str) -> int | None:
        """How many bytes may be put into that folder of storage: what was announced.

        None where nothing is waited for.
        """
        try:
            upload = await self._intake.rows.waiting(id_of(folder))
        except ValueError:
            return None
        return None if upload is None or upload.expires_at is None else upload.bytes

    async def _complete(self, waiting: Upload) -> Upload:
        intake = self._intake
        arrived = await intake.storage.stat(waiting.key)
        if arrived is None:
            raise _nothing()
        try:
            upload = await self._taken(waiting, arrived)
        except (InvalidParameters, PayloadTooLarge):
            # it is nothing we keep; something else may be sent in its place
            await intake.discard([waiting.key])
            raise
        except _TooLate:
            found = await intake.rows.get(waiting.caller, waiting.id)
            if found is None:
                raise unknown_upload() from None
            return found
        await intake.discard([waiting.key])
        return upload

    async def _taken(self, waiting: Upload, arrived: StoredFile) -> Upload:
        intake = self._intake
        if arrived.bytes != waiting.bytes:
            raise _other_length(arrived.bytes, waiting.bytes)
        arriving = Arriving(
            card=ULID.from_str(waiting.id),
            caller=waiting.caller,
            kind=waiting.kind,
            families=OF_KIND[waiting.kind],
            name=waiting.name,
            created_at=waiting.created_at,
        )

        async def written(upload: Upload) -> None:
            if waiting.media_type not in {UNKNOWN, upload.media_type}:
                message = f"is not what was sent: that is {upload.media_type}"
                raise refused("mislabelled", message, "content_type")
            if not await intake.rows.ready(upload):
                raise _TooLate

        return await intake.receive(
            _read(intake, waiting),
            arriving,
            written,
            # a name of its own each time: another gateway may be at the same upload
            slot=f"file:{ULID()}",
        )


class _TooLate(Exception):
    """It was completed by another gateway meanwhile, or deleted."""


async def _read(intake: Intake, waiting: Upload) -> AsyncIterator[bytes]:
    received = 0
    try:
        async for piece in intake.storage.read(waiting.key):
            received += len(piece)
            # another file may have been put in its place since it was looked up
            if received > waiting.bytes:
                raise _other_length(received, waiting.bytes)
            yield piece
    except KeyError:
        raise _nothing() from None


def _nothing() -> Conflict:
    return Conflict("Nothing has arrived yet: PUT the file to the upload's `url` first.")


def _other_length(found: int, expected: int) -> InvalidParameters:
    message = f"is {expected} as announced, but {found} have arrived: send them anew"
    return refused("other_length", message, "bytes")


def unknown_upload() -> NotFound:
    """Make the error for an id that is no upload's of the caller."""
    return NotFound("There is no such upload of yours here.")
