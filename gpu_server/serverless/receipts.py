"""What a job writes down in the gateway's storage: that it has taken a run, and how that ended.

RunPod tells a caller nothing of a submit whose answer was lost, drops results that are too large
and forgets the others after half an hour. Without a receipt such work would be paid for again.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from typing import Self, TypeVar

import httpx
from pydantic import ValidationError

from gpu_server.fetch import tls_context
from gpu_server.protocol import Receipt, ReceiptNote, RunStatus, Slot
from gpu_server.sending import FIRST_DELAY_S, LONGEST_DELAY_S, NotNow, Refused, send
from gpu_server.serverless.failing import CallFailed

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CLAIM_S = 30
"""How long a job that has begun nothing tries to reach storage."""
_END_S = 60
"""How long a result waits until storage has it, too."""
_LIMITS = httpx.Timeout(20, connect=5)
_MOST_BYTES = 32 * 1024**2


class _Unreadable(Exception):
    """The receipt is there and is none."""


class TakenRun:
    """One job's hold on a run; to be used as a context."""

    def __init__(self, receipt: Receipt, *, job_id: str, run_id: str) -> None:
        self._receipt = receipt
        self._job_id = job_id
        self._run_id = run_id
        self.kept = False
        """Storage has how the run ended."""
        self._ended = False
        # As with slots: a signed address that the gateway chose.
        self._http = httpx.AsyncClient(trust_env=False, verify=tls_context(), timeout=_LIMITS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._http.aclose()

    async def claim(self) -> RunStatus | None:
        """Write down that this job carries the run out; None: it may begin.

        A status: the run is over, and that is how it ended. Raises CallFailed with
        `taken_elsewhere` when another job has it, `storage_unavailable` when nobody can tell.
        """
        try:
            async with asyncio.timeout(_CLAIM_S):
                ended = self._judge(await _tried(self._read))
                if ended is not None:
                    return ended
                await self._write(ReceiptNote(job=self._job_id))
                # Another job, or the gateway with its cancel, may have read the same nothing and
                # written meanwhile: of two that wrote, the earlier one finds the other's here.
                written = await _tried(self._read)
        except (TimeoutError, Refused, _Unreadable) as error:
            _log.warning("run %s: its receipt: %s", self._run_id, _reason(error))
            raise _unavailable() from None
        if written is None:
            _log.warning("run %s: its receipt does not lie where it was put", self._run_id)
            raise _unavailable()
        return self._judge(written)

    async def close(self, status: RunStatus) -> None:
        """Write down how the run ended; the first end counts.

        Storage that stays away does not take the result away: RunPod is told in any case.
        """
        if self._ended:
            return
        self._ended = True
        try:
            async with asyncio.timeout(_END_S):
                await self._write(ReceiptNote(job=self._job_id, status=status))
        except (TimeoutError, Refused) as error:
            _log.warning("run %s: its end is in no receipt: %s", self._run_id, _reason(error))
        else:
            self.kept = True

    def _judge(self, note: ReceiptNote | None) -> RunStatus | None:
        if note is None:
            return None
        if note.status is not None:
            _log.info("run %s was over before", self._run_id)
            return note.status
        if note.cancelled:
            return RunStatus(run_id=self._run_id, state="cancelled")
        if note.job not in (None, self._job_id):
            message = "another job of the endpoint has taken this run"
            raise CallFailed("transient", "taken_elsewhere", message)
        return None

    async def _read(self) -> ReceiptNote | None:
        """Ask storage once; None: there is no receipt. Raises NotNow, _Unreadable."""
        content = bytearray()
        try:
            async with self._http.stream("GET", self._receipt.get) as answer:
                if answer.status_code == HTTPStatus.NOT_FOUND:
                    return None
                if answer.status_code != HTTPStatus.OK:
                    raise NotNow(f"storage answered {answer.status_code}")
                async for piece in answer.aiter_bytes():
                    content += piece
                    if len(content) > _MOST_BYTES:
                        raise _Unreadable("it is too large")
        except (httpx.UnsupportedProtocol, httpx.InvalidURL):
            raise _Unreadable("it has no usable address") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise NotNow(f"storage did not answer ({type(error).__name__})") from None
        try:
            return ReceiptNote.model_validate_json(bytes(content))
        except ValidationError:
            raise _Unreadable("it is not readable") from None

    async def _write(self, note: ReceiptNote) -> None:
        content = note.model_dump_json(exclude={"cancelled"}, exclude_none=True).encode()
        # `sized`: what a bucket refuses may pass
        slot = Slot(name="receipt/0", url=self._receipt.put, sized=True)

        async def put() -> None:
            await send(
                self._http,
                slot,
                _whole(content),
                media_type="application/json",
                length=len(content),
            )

        await _tried(put)


async def _tried(attempt: Callable[[], Awaitable[_T]]) -> _T:
    """Repeat what storage does not take now, until somebody's time-out ends it."""
    delay, told = FIRST_DELAY_S, ""
    while True:
        try:
            return await attempt()
        except NotNow as error:
            if str(error) != told:
                _log.warning("a receipt: %s; it is tried again", error)
                told = str(error)
        await asyncio.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY_S)


async def _whole(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _reason(error: Exception) -> str:
    return "storage is away" if isinstance(error, TimeoutError) else str(error)


def _unavailable() -> CallFailed:
    message = "storage did not tell whether this work was done before, so it was not begun"
    return CallFailed("transient", "storage_unavailable", message)
