"""Thumbnails of files in storage: made when they are first asked for, kept, dropped with the file.

Any number of requests may want the same one: it is made once in this process. Another gateway that
makes it at the same time is too late to write its row, and deletes its file again.
"""

import asyncio
import errno
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from gateway.clock import Clock, SystemClock
from gateway.db import AlreadyThere, Database
from gateway.db.thumbnails import Thumbnail, ThumbnailRows
from gateway.errors import FieldError, InvalidParameters, NotFound, StorageFull, Unavailable
from gateway.job import THUMBNAILS_PREFIX, new_job_id
from gateway.security.signing import SignedFileNames, Signer
from gateway.settings import Settings
from gateway.storage.base import NoRoom, Storage, StorageError
from gateway.storage.pieces import closing
from gateway.thumbnails.kinds import has_thumbnail
from gateway.thumbnails.order import THUMBNAIL_TYPE, Looked, Made
from gateway.thumbnails.pool import MediaPool
from gateway.thumbnails.scratch import Scratch
from gateway.thumbnails.unfit import UnfitMedia

SIDES = (64, 128, 256, 512, 1024)
"""Longest sides there are; what is asked for is rounded up to one of them."""
SMALLEST = 16
FIELD = "w"
_PIECE = 256 * 1024
_REMEMBERED = 1000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_log = logging.getLogger(__name__)


class SourceFile(Protocol):
    """A file in storage that a thumbnail is made of."""

    @property
    def key(self) -> str:
        """Where it lies; what lies there never changes."""
        ...

    @property
    def media_type(self) -> str:
        """What it is."""
        ...

    @property
    def bytes(self) -> int:
        """Its length."""
        ...


class Thumbnails:
    """Makes thumbnails, a few at a time."""

    def __init__(
        self,
        *,
        rows: ThumbnailRows,
        storage: Storage,
        pool: MediaPool,
        names: SignedFileNames,
        clock: Clock,
        folder: Path,
        most_bytes: int,
        at_once: int = 2,
        most_waiting: int = 32,
    ) -> None:
        """The pool is closed with this.

        `most_bytes`: of a file that is fetched from a remote store into `folder`.
        """
        self._rows = rows
        self._storage = storage
        self._pool = pool
        self._names = names
        self._clock = clock
        self._scratch = Scratch(folder)
        self._most_bytes = most_bytes
        self._places = asyncio.Semaphore(at_once)
        self._most_waiting = most_waiting
        self._closed = False
        self._making: dict[tuple[str, int], asyncio.Task[Thumbnail]] = {}
        # bytes under a key never change: what could not be read once never can
        self._unfit: OrderedDict[str, UnfitMedia] = OrderedDict()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Work inside; at the end what is being made is broken off. Raises OSError."""
        await self._scratch.open()
        try:
            yield
        finally:
            self._closed = True
            making = list(self._making.values())
            for task in making:
                task.cancel()
            await asyncio.gather(*making, return_exceptions=True)
            await self._pool.close()
            await self._scratch.close()

    async def of(self, file: SourceFile, width: int) -> Thumbnail:
        """The thumbnail of a file, made now unless there is one.

        Raises InvalidParameters for a file that has none, NotFound when the file is gone,
        Unavailable when too many are waited for or the storage does not answer, StorageFull.
        """
        side = _side(width)
        if not has_thumbnail(file.media_type):
            raise _refused("no_thumbnail", "only pictures and videos have thumbnails")
        known = await self._rows.get(file.key, side)
        if known is not None:
            return known
        if (unfit := self._unfit.get(file.key)) is not None:
            raise _refused(unfit.code, f"this file {unfit.message}")
        return await self._shared(file, side)

    async def make(self, file: SourceFile, path: Path, width: int) -> Thumbnail:
        """Make the thumbnail of a file that also lies at `path` on this machine.

        Raises UnfitMedia, OSError (also a full disk), StorageError, DatabaseUnavailable.
        """
        return (await self.look_and_make(file, path, width))[1]

    async def look_and_make(
        self, file: SourceFile, path: Path, width: int, *, moving: bool = True
    ) -> tuple[Looked, Thumbnail]:
        """Do both in one process: what the file is, and its thumbnail. Raises as `make`."""
        side = _side(width)
        async with self._scratch.file(".webp") as target:
            looked, made = await self._pool.look_and_thumbnail(path, target, side, moving=moving)
            return looked, await self._keep(file, side, made, target)

    async def drop(self, source_keys: Collection[str]) -> None:
        """Delete all thumbnails of these files. Raises StorageError, DatabaseUnavailable."""
        keys = frozenset(source_keys)
        for (key, _), task in list(self._making.items()):
            if key in keys:
                task.cancel()
        await self._delete(await self._rows.of(keys))

    async def forget(self, thumbnail: Thumbnail) -> None:
        """Give up one whose file is gone, so that it is made anew."""
        await self._delete([thumbnail])

    async def _delete(self, thumbnails: Collection[Thumbnail]) -> None:
        # a row goes only after its file: what is broken off between them can be repeated
        for thumbnail in thumbnails:
            await self._storage.delete(thumbnail.key)
        if thumbnails:
            await self._rows.remove([thumbnail.key for thumbnail in thumbnails])

    async def _shared(self, file: SourceFile, side: int) -> Thumbnail:
        making = self._making.get((file.key, side))
        if making is None:
            if len(self._making) >= self._most_waiting:
                raise Unavailable("Too many thumbnails are being made: ask again in a moment.")
            making = asyncio.create_task(self._made(file, side))
            self._making[file.key, side] = making
            making.add_done_callback(partial(self._done, (file.key, side)))
        # whoever goes away leaves it to the others, and to whoever asks next
        await asyncio.wait({making})
        if not making.cancelled():
            return making.result()
        if self._closed:
            raise Unavailable("The gateway is stopping: ask again in a moment.")
        raise NotFound("The file is not in storage any more.")

    def _done(self, wanted: tuple[str, int], task: asyncio.Task[Thumbnail]) -> None:
        self._making.pop(wanted, None)
        if not task.cancelled():
            # nobody may be left to hear of it
            task.exception()

    async def _made(self, file: SourceFile, side: int) -> Thumbnail:
        try:
            async with self._places:
                # it may have come while this one waited
                known = await self._rows.get(file.key, side)
                if known is not None:
                    return known
                async with self._local(file) as path:
                    return await self.make(file, path, side)
        except UnfitMedia as unfit:
            self._remember(file.key, unfit)
            raise _refused(unfit.code, f"this file {unfit.message}") from None
        except (KeyError, FileNotFoundError):
            raise NotFound("The file is not in storage any more.") from None
        except NoRoom:
            raise _full() from None
        except StorageError as error:
            _log.warning("a thumbnail cannot be made: %s", error)
            raise Unavailable("The storage does not answer: ask again in a moment.") from error
        except OSError as error:
            if error.errno in _FULL:
                raise _full() from error
            _log.exception("a thumbnail cannot be made")
            raise Unavailable("The thumbnail cannot be made at the moment.") from error

    def _remember(self, key: str, unfit: UnfitMedia) -> None:
        self._unfit[key] = unfit
        if len(self._unfit) > _REMEMBERED:
            self._unfit.popitem(last=False)

    @asynccontextmanager
    async def _local(self, file: SourceFile) -> AsyncGenerator[Path]:
        """The file on this machine's disk, fetched if it is not there."""
        here = self._storage.path(file.key)
        if here is not None:
            yield here
            return
        if file.bytes > self._most_bytes:
            most = self._most_bytes // 2**20
            raise UnfitMedia("too_large", f"has more than {most} MB: no thumbnail is made of it")
        async with self._scratch.file() as copy:
            await self._fetch(file, copy)
            yield copy

    async def _fetch(self, file: SourceFile, copy: Path) -> None:
        written = await asyncio.to_thread(copy.open, "xb")
        try:
            async with closing(self._storage.read(file.key, 0, file.bytes)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(written.write, piece)
        finally:
            await asyncio.shield(asyncio.to_thread(written.close))

    async def _keep(self, file: SourceFile, side: int, made: Made, path: Path) -> Thumbnail:
        now, made_id = self._clock.now(), new_job_id()
        thumbnail = Thumbnail(
            source_key=file.key,
            width=side,
            key=self._names.key(
                prefix=THUMBNAILS_PREFIX,
                day=now.date(),
                job_id=made_id,
                run_id=made_id,
                slot="thumbnail",
                ext="webp",
            ),
            media_type=THUMBNAIL_TYPE,
            bytes=made.bytes,
            sha256=made.sha256,
            created_at=now,
        )
        await self._storage.write(thumbnail.key, THUMBNAIL_TYPE, _pieces(path))
        try:
            await self._rows.add(thumbnail)
        except AlreadyThere:
            await self._storage.delete(thumbnail.key)
            return await self._rows.get(file.key, side) or thumbnail
        except BaseException:
            await asyncio.shield(self._storage.delete(thumbnail.key))
            raise
        return thumbnail


def thumbnails_of(
    settings: Settings, *, db: Database, storage: Storage, signer: Signer
) -> Thumbnails:
    """Make what keeps the thumbnails of this installation."""
    return Thumbnails(
        rows=ThumbnailRows(db),
        storage=storage,
        pool=MediaPool(),
        names=SignedFileNames(signer),
        clock=SystemClock(),
        folder=settings.data / "thumbnails",
        most_bytes=settings.upload_max_mb * 2**20,
    )


async def _pieces(path: Path) -> AsyncGenerator[bytes]:
    file: BinaryIO = await asyncio.to_thread(path.open, "rb")
    with file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def _side(width: int) -> int:
    return next((side for side in SIDES if side >= width), SIDES[-1])


def _refused(code: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field=FIELD, code=code, message=message)])


def _full() -> StorageFull:
    return StorageFull("The disk is full: the thumbnail was not made.")
