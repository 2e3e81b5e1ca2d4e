"""RunPod's serverless API seen from the gateway: one endpoint, five calls, no retries.

Whatever goes wrong leaves here as a BackendError; texts name the endpoint, never key or address.
"""

import asyncio
import math
from collections.abc import Callable
from http import HTTPStatus

import httpx
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gateway.backends.base import BackendFull, BackendUnreachable, RunFailed
from gpu_server.protocol import Failure

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
"""States a job does not leave."""
LARGEST_REQUEST = 10_000_000
"""Bytes of a `POST /run`, as RunPod documents."""

_CALL = httpx.Timeout(30, connect=5)
_LOOK = httpx.Timeout(10, connect=5)
_AT_ONCE = 20
"""Calls under way, far below what RunPod allows (20 cancels, 200 submits, 400 looks)."""
_REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE})
_SLOW_S = 5.0
_SLOWEST_S = 60.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


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
    """What `/status` and `/cancel` tell of a job."""

    status: str
    output: JsonValue = None
    error: JsonValue = None
    execution_ms: float | None = Field(default=None, alias="executionTime")


class Counts(_Told):
    """What `/health` tells of an endpoint."""

    jobs: dict[str, int] = Field(default_factory=dict[str, int])
    workers: dict[str, int] = Field(default_factory=dict[str, int])

    @property
    def unfinished(self) -> int:
        """Jobs that wait for a worker or have one."""
        return self.jobs.get("inQueue", 0) + self.jobs.get("inProgress", 0)


class _Submitted(_Told):
    id: str = Field(min_length=1)


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
        return await self._of_job("GET", f"/status/{job}")

    async def cancel(self, job: str) -> None:
        """Stop a job; one that is over is no error. Raises BackendUnreachable."""
        try:
            await self._of_job("POST", f"/cancel/{job}")
        except _Refused as error:
            # that it is over already, or something else: only its state tells
            told = await self.status(job)
            if told is not None and told.status not in FINAL:
                raise BackendUnreachable(str(error)) from error

    async def health(self) -> Counts:
        """Ask for the counts of jobs and workers. Raises SlowDown, BackendUnreachable."""
        answer = await self._asked("GET", "/health", _LOOK)
        if not answer.is_success:
            raise self._failed(answer)
        try:
            return Counts.model_validate_json(answer.content)
        except ValidationError as error:
            raise BackendUnreachable(f"{self.name} answers something else than RunPod") from error

    async def _of_job(self, method: str, path: str) -> JobTold | None:
        answer = await self._asked(method, path, _CALL)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        if not answer.is_success:
            raise self._failed(answer)
        try:
            return JobTold.model_validate_json(answer.content)
        except ValidationError as error:
            raise BackendUnreachable(f"{self.name} answers something else than RunPod") from error

    async def _asked(self, method: str, path: str, limit: httpx.Timeout) -> httpx.Response:
        try:
            return await self._send(method, path, limit=limit)
        except httpx.HTTPError as error:
            # the type alone: an exception's text may hold addresses
            message = f"{self.name} does not answer ({type(error).__name__})"
            raise BackendUnreachable(message) from error

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


def _retry_after(answer: httpx.Response) -> float:
    try:
        seconds = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return _SLOW_S
    return min(max(seconds, 1.0), _SLOWEST_S) if math.isfinite(seconds) else _SLOW_S
