"""RunPod's serverless API seen from the gateway: one endpoint, six calls, no retries.

Whatever goes wrong leaves here as a BackendError; texts name the endpoint, never key or address.
"""

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, cast
from urllib.parse import quote

import httpx
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from gateway.backends.base import BackendFull, BackendUnreachable, RunFailed
from gpu_server.protocol import Failure

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
"""States a job does not leave."""
LARGEST_REQUEST = 10_000_000
"""Bytes of a `POST /run`, as RunPod documents."""
LARGEST_STREAM = 16_000_000
"""Most bytes that are read of a job's stream: about all previews of a day, should RunPod keep
them."""

_CALL = httpx.Timeout(30, connect=5)
_LOOK = httpx.Timeout(10, connect=5)
_AT_ONCE = 20
"""Calls under way, far below what RunPod allows (20 cancels, 200 submits, 400 looks)."""
_STREAMS_AT_ONCE = 8
"""Apart from the others: whether RunPod holds back the answer to `/stream` is not documented."""
_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
_SLOW_S = 5.0
_SLOWEST_S = 60.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_INTEGER = TypeAdapter(int)


def _counts(told: object) -> dict[str, int]:
    """Keep the counts among what `/health` tells; whatever else stands there is passed over."""
    counts: dict[str, int] = {}
    if isinstance(told, dict):
        for name, count in cast("dict[str, object]", told).items():
            try:
                counts[name] = max(_INTEGER.validate_python(count), 0)
            except ValidationError:
                continue
    return counts


def _number(told: object) -> object:
    return told if isinstance(told, int | float) and not isinstance(told, bool) else None


_Counted = Annotated[dict[str, int], BeforeValidator(_counts)]


class SlowDown(BackendUnreachable):
    """Too many calls in a short time; asked again after `after_s` they are answered."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s


class _Refused(BackendUnreachable):
    """An answer of 4xx that is not about the rate."""


class _Told(BaseModel):
    """Base of what RunPod answers: what is not named here is passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class JobTold(_Told):
    """What `/status` tells of a job."""

    status: str
    output: JsonValue = None
    error: JsonValue = None
    execution_ms: Annotated[float | None, BeforeValidator(_number)] = Field(
        default=None, alias="executionTime"
    )


class StreamTold(_Told):
    """What `/stream` tells of a job."""

    status: str
    chunks: list[JsonValue] | None = Field(default=None, alias="stream")
    """What its worker has put there; all of it, or what was not handed out yet."""


class Counts(_Told):
    """What `/health` tells of an endpoint."""

    jobs: _Counted = Field(default_factory=dict[str, int])
    workers: _Counted = Field(default_factory=dict[str, int])

    @property
    def unfinished(self) -> int | None:
        """Jobs that wait for a worker or have one; None where it does not tell."""
        waiting, running = self.jobs.get("inQueue"), self.jobs.get("inProgress")
        return None if waiting is None or running is None else waiting + running


class _Submitted(_Told):
    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")
    """It becomes part of addresses."""


class RunpodApi:
    """One endpoint."""

    def __init__(
        self,
        name: str,
        url: str,
        key: str,
        http: httpx.AsyncClient,
        *,
        on_trouble: Callable[[str], None],
    ) -> None:
        self.name = name
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = http
        self._on_trouble = on_trouble
        """Told, in one sentence, that the endpoint takes nothing as things are."""
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._streams_free = asyncio.Semaphore(_STREAMS_AT_ONCE)

    async def run(self, content: bytes) -> str:
        """Submit a job once; its id.

        Raises BackendFull or RunFailed where it is certain that it was not taken, and
        BackendUnreachable where it may have been.
        """
        try:
            answer = await self._send("POST", "/run", content=content)
        except _NOT_SENT as error:
            self._on_trouble(f"{self.name} does not answer ({type(error).__name__})")
            raise BackendFull(f"{self.name} is not reached") from error
        except httpx.HTTPError as error:
            raise self._unknown(type(error).__name__) from error
        code = answer.status_code
        if answer.is_success:
            try:
                return _Submitted.model_validate_json(answer.content).id
            except ValidationError as error:
                raise self._unknown("it answers something else") from error
        if answer.is_server_error:
            raise self._unknown(f"it answers {code}")
        if code in _REFUSED:
            raise RunFailed(
                Failure(
                    kind="fatal",
                    code="request_refused",
                    message="The serverless endpoint refused the request.",
                ),
                executed=False,
            )
        if code != HTTPStatus.TOO_MANY_REQUESTS:
            self._on_trouble(self._refusal(code))
        raise BackendFull(f"{self.name} answers {code}")

    async def status(self, job: str) -> JobTold | None:
        """How a job is; None: RunPod does not know it. Raises SlowDown, BackendUnreachable."""
        answer = await self._asked("GET", _path("status", job), _CALL)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        if not answer.is_success:
            raise self._failed(answer)
        try:
            return JobTold.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._foreign() from error

    async def stream(self, job: str) -> StreamTold | None:
        """What a job shows of itself; None: RunPod does not know it.

        Raises SlowDown, BackendUnreachable.
        """
        try:
            async with (
                self._streams_free,
                self._http.stream(
                    "GET", self._url + _path("stream", job), headers=self._headers, timeout=_LOOK
                ) as answer,
            ):
                if answer.status_code == HTTPStatus.NOT_FOUND:
                    return None
                if not answer.is_success:
                    raise self._failed(answer)
                content = await self._whole(answer)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        try:
            # megabytes, at times
            return await asyncio.to_thread(StreamTold.model_validate_json, content)
        except ValidationError as error:
            raise self._foreign() from error

    async def cancel(self, job: str) -> None:
        """Stop a job; one that is over is no error.

        Raises BackendUnreachable while it is not known to be over.
        """
        answer = await self._asked("POST", _path("cancel", job), _CALL)
        if not answer.is_success and answer.status_code != HTTPStatus.NOT_FOUND:
            failed = self._failed(answer)
            if not isinstance(failed, _Refused):
                raise failed
        # a refusal or a 404 may mean that it is over, or something else: only its state tells
        told = await self.status(job)
        if told is not None and told.status not in FINAL:
            code = answer.status_code
            raise BackendUnreachable(f"{self.name}: a cancelled job is not over yet ({code})")

    async def health(self) -> Counts:
        """Ask for the counts of jobs and workers. Raises SlowDown, BackendUnreachable."""
        answer = await self._asked("GET", "/health", _LOOK)
        if not answer.is_success:
            raise self._failed(answer)
        try:
            return Counts.model_validate_json(answer.content)
        except ValidationError as error:
            raise self._foreign() from error

    async def _asked(self, method: str, path: str, limit: httpx.Timeout) -> httpx.Response:
        try:
            return await self._send(method, path, limit=limit)
        except httpx.HTTPError as error:
            raise self._away(error) from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        limit: httpx.Timeout = _CALL,
    ) -> httpx.Response:
        headers = self._headers | ({"Content-Type": "application/json"} if content else {})
        async with self._free:
            return await self._http.request(
                method, self._url + path, content=content, headers=headers, timeout=limit
            )

    async def _whole(self, answer: httpx.Response) -> bytes:
        content = bytearray()
        async for part in answer.aiter_bytes():
            content += part
            if len(content) > LARGEST_STREAM:
                raise SlowDown(f"{self.name}: the stream of a job is too large", _SLOWEST_S)
        return bytes(content)

    def _away(self, error: httpx.HTTPError) -> BackendUnreachable:
        # the type alone: an exception's text may hold addresses
        return BackendUnreachable(f"{self.name} does not answer ({type(error).__name__})")

    def _foreign(self) -> BackendUnreachable:
        return BackendUnreachable(f"{self.name} answers something else than RunPod")

    def _failed(self, answer: httpx.Response) -> BackendUnreachable:
        code = answer.status_code
        if code == HTTPStatus.TOO_MANY_REQUESTS:
            return SlowDown(f"{self.name} wants fewer calls (429)", _retry_after(answer))
        if answer.is_server_error or answer.is_redirect:
            return BackendUnreachable(f"{self.name} answers {code}")
        return _Refused(self._refusal(code))

    def _refusal(self, code: int) -> str:
        match code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return f"{self.name} refuses our key ({code}): see RUNPOD_API_KEY"
            case HTTPStatus.NOT_FOUND:
                return f"{self.name}: RunPod has no such endpoint (404): see RUNPOD_ENDPOINT_ID"
            case HTTPStatus.PAYMENT_REQUIRED:
                return f"{self.name}: RunPod asks for payment (402)"
            case _:
                return f"{self.name} refuses what is asked ({code})"

    def _unknown(self, why: str) -> BackendUnreachable:
        return BackendUnreachable(f"{self.name}: whether it took the run is not known ({why})")


def _path(op: str, job: str) -> str:
    return f"/{op}/{quote(job, safe='')}"


def _retry_after(answer: httpx.Response) -> float:
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return _SLOW_S
    return min(max(seconds, 1.0), _SLOWEST_S) if math.isfinite(seconds) else _SLOW_S
