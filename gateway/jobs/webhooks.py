"""Webhooks: the events of the outbox, delivered at least once, signed, beside the jobs.

An event is a row that the commit wrote which ended its job or batch. To claim one is to move its
`next_at` past the time one try may last: whoever dies with it loses it then, and the next one
tries. A receiver tells an event that comes twice by its `webhook-id`.
"""

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpx
from pydantic import JsonValue
from standardwebhooks import Webhook

from gateway.clock import Clock
from gateway.db import Database, DatabaseUnavailable
from gateway.db.webhooks import (
    Delivery,
    WebhookEvent,
    WebhookPage,
    WebhookQuery,
    WebhookRows,
)
from gateway.jobs.receivers import TOTAL_S, Receivers, Refused

Render = Callable[[WebhookEvent], Awaitable[dict[str, JsonValue] | None]]
"""What an event's `data` is at the moment; None when its job or batch is gone."""

SCHEDULE_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Seconds after each try in vain until the next one; none follows the last."""

_JITTER = 0.2
_SUCCESS = 2
_LONGEST_RETRY_AFTER_S = 86_400
_LONGEST_ERROR = 200
_REMEMBERED = 10_000
_ASKS_FOR_TIME = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSettings:
    """How deliveries go."""

    poll_s: float = 5.0
    """Seconds between looks at what is due; what this process writes is sent at once."""
    lease_s: float = 4 * TOTAL_S
    """Seconds after which an event somebody has taken is anybody's again."""
    at_once: int = 16
    per_host: int = 4
    """Most tries at once at one receiver; one where the last was in vain."""
    grace_s: float = 3.0
    """Seconds that tries under way have to end at a stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """How a try ended."""

    status_code: int | None = None
    error: str | None = None
    retry_after_s: float = 0

    @property
    def accepted(self) -> bool:
        return self.status_code is not None and self.status_code // 100 == _SUCCESS


class Webhooks:
    """Delivers events, and shows what became of them."""

    def __init__(
        self,
        *,
        db: Database,
        receivers: Receivers,
        secrets: Sequence[str],
        render: Render,
        clock: Clock,
        settings: WebhookSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._rows = WebhookRows(db)
        self._receivers = receivers
        self._secrets = tuple(secrets)
        self._render = render
        self._clock = clock
        self._settings = settings or WebhookSettings()
        # spreads tries; nothing secret depends on it
        self._rng = rng or random.Random()  # noqa: S311
        self._due = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._tries: set[asyncio.Task[None]] = set()
        self._busy: Counter[str] = Counter()
        self._failing: set[str] = set()
        self.check = receivers.check
        db.on_posted(self._due.set)

    async def start(self) -> None:
        """Deliver from now on."""
        self._loop = asyncio.create_task(self.run())

    async def stop(self) -> None:
        """Let the tries under way end; those that take long are given back."""
        self._stopping = True
        self._due.set()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=self._settings.grace_s)
            self._loop.cancel()
        if self._tries:
            await asyncio.wait(self._tries, timeout=self._settings.grace_s)
        for each in self._tries:
            each.cancel()
        await asyncio.gather(*self._tries, return_exceptions=True)
        await self._receivers.close()

    async def list(self, query: WebhookQuery) -> WebhookPage:
        """One page of events, newest first. Raises InvalidParameters for a foreign cursor."""
        return await self._rows.list(query)

    async def get(
        self, caller: str, event_id: str
    ) -> tuple[WebhookEvent, Sequence[Delivery]] | None:
        """One event of a caller, with its tries."""
        return await self._rows.get(caller, event_id)

    async def redeliver(self, caller: str, event_id: str) -> WebhookEvent | None:
        """Send it once more, under the same id; None when the caller has none of that id."""
        return await self._rows.redeliver(caller, event_id, self._clock.now())

    async def run(self) -> None:
        """Take what is due, while there is room for it."""
        while not self._stopping:
            self._due.clear()
            try:
                while not self._stopping and len(self._tries) < self._settings.at_once:
                    if not await self._take():
                        break
            except DatabaseUnavailable:
                _log.warning("webhooks: the database does not answer", exc_info=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await self._due.wait()

    async def _take(self) -> bool:
        now = self._clock.now()
        event = await self._rows.claim(
            busy=[host for host, tries in self._busy.items() if tries >= self._most(host)],
            now=now,
            until=now + timedelta(seconds=self._settings.lease_s),
        )
        if event is None:
            return False
        self._busy[event.host] += 1
        task = asyncio.create_task(self._deliver(event))
        self._tries.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, event))
        return True

    def _most(self, host: str) -> int:
        # one dead receiver must not fill the room of all others
        return 1 if host in self._failing else self._settings.per_host

    def _ended(self, task: asyncio.Task[None], event: WebhookEvent) -> None:
        self._tries.discard(task)
        self._busy[event.host] -= 1
        if not self._busy[event.host]:
            del self._busy[event.host]
        self._due.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("webhook %s: the try was not written down", event.id, exc_info=error)

    async def _deliver(self, event: WebhookEvent) -> None:
        began = time.monotonic()
        try:
            answer = await self._try(event)
        except asyncio.CancelledError:
            await self._rows.give_back(event, self._clock.now())
            raise
        if answer is None:
            return
        delivery = Delivery(
            at=self._clock.now(),
            status_code=answer.status_code,
            error=answer.error and answer.error[:_LONGEST_ERROR],
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        if answer.accepted:
            self._failing.discard(event.host)
            await self._written(lambda: self._rows.delivered(event, delivery))
            return
        if len(self._failing) >= _REMEMBERED:
            self._failing.clear()
        self._failing.add(event.host)
        next_at = self._next_at(event, answer, delivery.at)
        if next_at is None:
            _log.warning("webhook %s is given up after %s tries", event.id, event.attempts + 1)
        await self._written(lambda: self._rows.failed(event, delivery, next_at))

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write it down while the event is ours: else it would be sent once more."""
        until = time.monotonic() + self._settings.lease_s - TOTAL_S
        while True:
            try:
                return await write()
            except DatabaseUnavailable:
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(1)

    async def _try(self, event: WebhookEvent) -> _Answer | None:
        """Send it once; None when there is nothing left to tell of."""
        try:
            data = await self._render(event)
            if data is None:
                return None
            headers, body = self._signed(event, data)
            status, answered = await self._receivers.post(event.url, headers, body)
            # in here too: a try that is not written down would be made again and again, for ever
            return _answered(status, answered, self._clock.now())
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  # foreign ones are logged and fail the try
            return _Answer(error=_said(error, event))

    def _signed(
        self, event: WebhookEvent, data: dict[str, JsonValue]
    ) -> tuple[Mapping[str, str], bytes]:
        return signed(
            event_id=event.id,
            type_=event.type,
            happened=event.created_at,
            data=data,
            secrets=self._secrets,
            now=self._clock.now(),
        )

    def _next_at(self, event: WebhookEvent, answer: _Answer, now: datetime) -> datetime | None:
        if answer.status_code == HTTPStatus.GONE or event.attempts >= len(SCHEDULE_S):
            return None
        wait = SCHEDULE_S[event.attempts] * (1 + _JITTER * self._rng.random())
        return now + timedelta(seconds=max(wait, answer.retry_after_s))


def signed(
    *,
    event_id: str,
    type_: str,
    happened: datetime,
    data: Mapping[str, JsonValue],
    secrets: Sequence[str],
    now: datetime,
) -> tuple[Mapping[str, str], bytes]:
    """Make one delivery's headers and body (Standard Webhooks)."""
    timestamp = happened.astimezone(UTC).isoformat().replace("+00:00", "Z")
    body = json.dumps({"type": type_, "timestamp": timestamp, "data": data})
    signatures = [Webhook(secret).sign(event_id, now, body) for secret in secrets]
    headers = {
        "content-type": "application/json",
        "user-agent": "genmedia-gateway",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
    return headers, body.encode()


def _said(error: Exception, event: WebhookEvent) -> str:
    match error:
        case Refused():
            return str(error)
        case TimeoutError() | httpx.TimeoutException():
            return "did not answer in time"
        case httpx.HTTPError():
            return f"the connection failed ({type(error).__name__})"
        case OSError() | UnicodeError():
            return "the name can't be looked up"
        case _:
            _log.error("webhook %s could not be sent", event.id, exc_info=error)
            return "could not be sent; the gateway's log says why"


def _answered(status: int, headers: httpx.Headers, now: datetime) -> _Answer:
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return _Answer(status_code=status, error="redirects are not followed")
    wait = _retry_after(headers.get("retry-after", ""), now) if status in _ASKS_FOR_TIME else 0
    return _Answer(status_code=status, retry_after_s=min(wait, _LONGEST_RETRY_AFTER_S))


def _retry_after(text: str, now: datetime) -> float:
    """Seconds, or a date (RFC 9110 §10.2.3); 0 for what is neither."""
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        # the last is what a year or an offset of too many digits ends in
        return 0
