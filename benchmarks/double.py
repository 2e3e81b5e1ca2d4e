"""A backend that does nothing, as fast or as slowly as asked, and says when."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from urllib.parse import urlsplit

from gateway.backends.base import Kind, Order, Progressed, RunLost, WorkflowReadiness
from gateway.job import Produced
from gateway.storage.local import SLOTS_PATH, LocalStorage
from gpu_server.protocol import Health, OutputFile

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
SHA256 = hashlib.sha256(PICTURE).hexdigest()


class Double:
    """Stores a small file for each run.

    `started(run_id)` is called when a run is asked for, `ended(run_id)` just before it is told that
    its file lies there.
    """

    name = "double"
    kind: Kind = "gpu"
    billed = False
    engine = "simulator"
    health: Health | None = None

    def __init__(self, *, capacity: int, run_s: float) -> None:
        self.capacity = capacity
        self.run_s = run_s
        self.storage: LocalStorage | None = None
        self.started: Callable[[str], None] = lambda _: None
        self.ended: Callable[[str], None] = lambda _: None
        self.installed: Mapping[str, frozenset[str]] | None = {
            "checkpoints": frozenset({"tiny-sd15.ckpt"})
        }
        self._orders: dict[str, Order] = {}

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        """Everything can be carried out."""
        del workflow, digest
        return WorkflowReadiness(readiness="ready")

    async def start(self, order: Order) -> str:
        """Take the run."""
        self.started(order.run_id)
        self._orders[order.run_id] = order
        return order.run_id

    async def renew(self, order: Order) -> None:
        """Deliver to these slots."""
        if order.run_id not in self._orders:
            raise RunLost
        self._orders[order.run_id] = order

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        """Report a few steps, then the end."""
        del reference
        order, begun = self._orders.get(run_id), time.monotonic()
        if order is None:
            raise RunLost
        while (left := begun + self.run_s - time.monotonic()) > 0:
            yield Progressed(fraction=0.5)
            await asyncio.sleep(min(left, 0.5))
        assert self.storage is not None
        files: list[OutputFile] = []
        for slot in order.slots:
            key = urlsplit(slot.url).path.removeprefix(SLOTS_PATH)
            await self.storage.write(key, "image/png", _pieces())
            files.append(
                OutputFile(
                    slot=slot.name, media_type="image/png", bytes=len(PICTURE), sha256=SHA256
                )
            )
        self.ended(run_id)
        yield Produced(
            outputs=tuple(files), params={}, engine="simulator", duration_seconds=self.run_s
        )

    async def cancel(self, run_id: str, reference: str | None) -> None:
        """Nothing goes on here."""
        del run_id, reference

    async def forget(self, run_id: str, reference: str) -> None:
        """Forget it."""
        del reference
        self._orders.pop(run_id, None)


async def _pieces() -> AsyncIterator[bytes]:
    yield PICTURE
