"""Storage of a simulated world: slots that may be filled late, wrongly or not at all."""

import hashlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.storage.base import ListedFile, StorageError, StoredFile
from tests.simulation.loop import TURN

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Bytes, by what matters of them."""

    bytes: int
    sha256: str


def content(name: str) -> Content:
    """The bytes a name stands for."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Content(bytes=1 + int(digest[:4], 16), sha256=digest)


class Store:
    """The bucket; it lives on when the gateway dies."""

    def __init__(self, world: "World", rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self.files: dict[str, Content] = {}
        self.failing = False

    def put(self, url: str, data: Content) -> bool:
        """A PUT into a slot; False when the link has expired."""
        scheme, _, rest = url.partition("://")
        if scheme != "slot":
            raise ValueError(f"not a slot: {url}")
        key, _, expires = rest.partition("?")
        if self._world.clock.seconds() > float(expires):
            return False
        self.files[key] = data
        return True

    def at(self, url: str) -> Content | None:
        """What a GET of a link finds."""
        return self.files.get(url.removeprefix("link://").partition("?")[0])

    def fails(self) -> bool:
        """Whether the next operation fails."""
        return self.failing and self._rng.random() < 0.5


class SimulatedStorage:
    """What the gateway sees of it: the Storage protocol."""

    is_remote = True
    wants_length = True
    wants_md5 = True

    def __init__(self, world: "World", store: Store) -> None:
        self._world = world
        self._store = store

    def address(self, key: str) -> str:
        return f"sim://files/{key}"

    def slot(self, key: str, lifetime: timedelta) -> str:
        return f"slot://{key}?{self._world.clock.seconds() + lifetime.total_seconds()}"

    def path(self, key: str) -> Path | None:
        del key
        return None

    def link(self, key: str, lifetime: timedelta, *, disposition: str | None = None) -> str:
        del disposition
        return f"link://{key}?{self._world.clock.seconds() + lifetime.total_seconds()}"

    async def stat(self, key: str) -> StoredFile | None:
        await TURN
        if self._store.fails():
            raise StorageError("simulated outage")
        found = self._store.files.get(key)
        if found is None:
            return None
        return StoredFile(
            key=key,
            bytes=found.bytes,
            sha256=found.sha256,
            etag=found.sha256[:8],
            media_type="image/png",
        )

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        del start, end
        await TURN
        if key not in self._store.files:
            raise KeyError(key)
        yield self._store.files[key].sha256.encode()

    async def delete(self, key: str) -> None:
        await TURN
        if self._store.fails():
            raise StorageError("simulated outage")
        self._store.files.pop(key, None)

    async def pages(self) -> AsyncIterator[Sequence[ListedFile]]:
        await TURN
        written_at = self._world.clock.now()
        yield [ListedFile(key=key, written_at=written_at) for key in self._store.files]

    async def tidy(self, before: datetime) -> None:
        del before
        await TURN


class SimulatedNames:
    """The FileNames protocol: keys that say what they are."""

    def key(self, *, prefix: str, day: date, job_id: str, run_id: str, slot: str, ext: str) -> str:
        name = hashlib.sha256(f"{run_id} {slot}".encode()).hexdigest()[:24]
        return f"{prefix}/{day:%Y/%m/%d}/{job_id}/{name}.{ext}"

    def filename(self, key: str) -> str:
        return key.rpartition("/")[2]
