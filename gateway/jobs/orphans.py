"""Files in storage that belong to nothing."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta

from gateway.db import Database
from gateway.db.pictures import PictureRows
from gateway.db.sweeps import SweepRows
from gateway.db.uploads import Uploads
from gateway.job import INPUTS_PREFIX, THUMBNAILS_PREFIX, UPLOADS_PREFIX
from gateway.pictures import PICTURE_PREFIXES
from gateway.receipts import KEPT as RECEIPTS_KEPT
from gateway.receipts import is_receipt
from gateway.storage.base import ListedFile

ORPHAN_AFTER = timedelta(hours=1)
"""Age below which a file nobody owns, or an upload that broke off, is let alone."""


class Orphans:
    """Tells which of the files in storage nothing has."""

    def __init__(self, db: Database, *, kept: timedelta | None) -> None:
        """`kept`: how long any file is kept after its job's end; None = for ever."""
        self._rows = SweepRows(db)
        self._kept = kept
        pictures = PictureRows(db).among
        self._owners: dict[str, Callable[[Collection[str]], Awaitable[frozenset[str]]]] = {
            UPLOADS_PREFIX: Uploads(db).among,
            THUMBNAILS_PREFIX: self._rows.thumbnails_among,
            **dict.fromkeys(PICTURE_PREFIXES.values(), pictures),
        }
        """Whoever knows the files of a prefix that are no job's."""

    async def among(self, page: Sequence[ListedFile], now: datetime) -> list[str]:
        """Files of this page to delete.

        Those of ended jobs that are no result of theirs. Of a job that is not known the files go
        only with the age at which any file goes: a database restored from an old copy, or a new
        one beside old files, must not cost anybody's results. What came inside a call is no
        result: without its job it goes at once, and so do a picture without template or style, an
        upload and a thumbnail that no row names. Receipts of runs go by their age alone: they speak
        to jobs that may outlive their row.
        """
        spent = [f.key for f in page if is_receipt(f.key) and f.written_at < now - RECEIPTS_KEPT]
        files = [file for file in page if not is_receipt(file.key)]
        old = [file for file in files if file.written_at < now - ORPHAN_AFTER]
        unused: list[str] = [*spent]
        for prefix, among in self._owners.items():
            keys = [file.key for file in old if _prefix(file) == prefix]
            if keys:
                owned = await among(keys)
                unused += [key for key in keys if key not in owned]
        made = [file for file in old if _prefix(file) not in self._owners]
        return [*unused, *(await self._of_no_job(made, now) if made else ())]

    async def _of_no_job(self, old: Sequence[ListedFile], now: datetime) -> list[str]:
        known = await self._rows.known(
            {_job_of(file.key) for file in old}, ended_before=now - ORPHAN_AFTER
        )
        kept = self._kept
        return [
            file.key
            for file in old
            if (_job_of(file.key) in known.ended and file.key not in known.keys)
            or (
                _job_of(file.key) not in known.there
                and (
                    _prefix(file) == INPUTS_PREFIX
                    or (kept is not None and file.written_at < now - kept)
                )
            )
        ]


def _prefix(file: ListedFile) -> str:
    return file.key.partition("/")[0]


def _job_of(key: str) -> str:
    return key.rpartition("/")[0].rpartition("/")[2]
