"""Receipts: what serverless workers write down in our storage of the runs they take.

One small file a run, found by the run's id alone. Contract of its content and of who writes what
when: `ReceiptNote` in the wire contract; docs/runpod.md says what it is for.
"""

import logging
from collections.abc import AsyncIterator
from datetime import timedelta

from pydantic import ValidationError

from gateway.security.signing import Signer
from gateway.storage.base import Storage
from gpu_server.protocol import Receipt, ReceiptNote

_log = logging.getLogger(__name__)

PREFIX = "receipts"
"""Key prefix of receipts, as which no tool's files lie."""
LARGEST = 32 * 1024**2
"""Bytes: how a run ended, with texts, is some kilobytes."""
KEPT = timedelta(days=8)
"""A job that RunPod still holds begins within seven days, and must find what was written."""

# a run's id does not tell a day, and a key must have one
_DAY = "2000/01/01"


class Receipts:
    """The receipts in one storage. Every method may raise StorageError."""

    def __init__(self, storage: Storage, signer: Signer) -> None:
        self._storage = storage
        self._signer = signer

    def addresses(self, run_id: str, lifetime: timedelta) -> Receipt:
        """Where its worker reads and writes it."""
        key = self._key(run_id)
        return Receipt(get=self._storage.link(key, lifetime), put=self._storage.slot(key, lifetime))

    async def read(self, run_id: str) -> ReceiptNote | None:
        """What stands in it; None while there is none, or none that can be read."""
        content = bytearray()
        try:
            async for piece in self._storage.read(self._key(run_id)):
                content += piece
                if len(content) > LARGEST:
                    return _unreadable(run_id)
            return ReceiptNote.model_validate_json(bytes(content))
        except KeyError:
            return None
        except ValidationError:
            return _unreadable(run_id)

    async def cancel(self, run_id: str) -> None:
        """Write that a job which has not begun must not begin."""
        content = ReceiptNote(cancelled=True).model_dump_json(exclude_unset=True).encode()
        await self._storage.write(self._key(run_id), "application/json", _whole(content))

    async def remove(self, run_id: str) -> None:
        """Remove it, if it is there."""
        await self._storage.delete(self._key(run_id))

    def _key(self, run_id: str) -> str:
        return f"{PREFIX}/{_DAY}/{run_id}/{self._signer.name(run_id, 'receipt')}.json"


def is_receipt(key: str) -> bool:
    """Whether that is the key of a receipt."""
    return key.startswith(f"{PREFIX}/")


def _unreadable(run_id: str) -> None:
    # a worker that comes upon it begins nothing, and a cancel may write over it
    _log.warning("run %s: its receipt is not readable and is passed over", run_id)


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content
