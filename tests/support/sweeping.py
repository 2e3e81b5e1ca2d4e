"""A gateway and a sweep over what it keeps, as late as a test says."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from gateway.db import Database
from gateway.jobs.files import RunFiles
from gateway.jobs.sweep import Retention, Sweep
from gateway.security.signing import SignedFileNames
from gateway.storage.base import StorageError
from gateway.storage.local import LocalStorage
from tests.support.gateway import PNG, SMALL, Gateway

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
FOREVER = Retention(jobs=None, files=None)
MONTH = Retention(jobs=30 * DAY, files=30 * DAY)


@dataclass
class Later:
    """A clock that is ahead."""

    by: timedelta = field(default_factory=timedelta)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.by


class Place:
    """A gateway and a sweep over what it keeps."""

    def __init__(self, served: Gateway) -> None:
        self.served = served
        self.http = served.http
        self.db: Database = served.context.jobs._db
        self.storage: LocalStorage = served.context.storage
        self.clock = Later()

    async def sweep(self, retention: Retention, later: timedelta, **options: Any) -> None:
        self.clock.by = later
        context = self.served.context
        names = SignedFileNames(context.signer)
        sweep = Sweep(
            db=self.db,
            storage=options.pop("storage", self.storage),
            files=RunFiles(options.pop("files", self.storage), names, DAY, context.thumbnails),
            retention=retention,
            clock=self.clock,
            pause_s=0,
            at_once=2,
            **options,
        )
        await sweep.once()

    async def made(self, **changes: Any) -> dict[str, Any]:
        answer = await self.http.post("/api/generate", json=SMALL | changes)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def status(self, path: str) -> int:
        return (await self.http.get(path)).status_code

    async def keys(self) -> set[str]:
        return {file.key async for page in self.storage.pages() for file in page}

    async def leave(self, key: str, data: bytes = PNG) -> str:
        """Put a file there that no row knows."""

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        await self.storage.write(key, "image/png", chunks())
        return key


class Broken(LocalStorage):
    """Deletes nothing."""

    async def delete(self, key: str) -> None:
        raise StorageError(f"{key} stays")
