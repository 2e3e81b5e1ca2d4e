"""The wire contract seen from the gateway: HTTP and events in, answers and our own errors out."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError

from gateway.backends.base import BackendError, BackendFull, BackendUnreachable, RunFailed, RunLost
from gpu_server.protocol import (
    CheckAnswer,
    CheckedWorkflow,
    CheckRequest,
    Event,
    Failure,
    Health,
    NodesAnswer,
    NodesRequest,
    RunRequest,
    RunStatus,
    Workflows,
)

_log = logging.getLogger(__name__)

_CALL = httpx.Timeout(15, connect=5)
_LOOK = httpx.Timeout(5)
# the service sends a heartbeat every 10 s: longer silence is a dead connection
_EVENTS = httpx.Timeout(25, connect=5)
_REFUSES_US = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_EVENT_TYPES = frozenset({"progress", "preview", "output", "completed", "failed", "cancelled"})

_Message = TypeVar("_Message", bound=BaseModel)


class WorkflowMismatch(BackendError):
    """The service's copy of the workflow is not ours."""


class GpuService:
    """The calls of one GPU service. Whatever goes wrong leaves here as a BackendError."""

    def __init__(
        self,
        name: str,
        url: str,
        token: str | None,
        http: httpx.AsyncClient,
        *,
        on_away: Callable[[], None],
    ) -> None:
        self._name = name
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = http
        self._on_away = on_away
        """Called when it, or its ComfyUI, does not answer."""

    async def health(self) -> Health:
        """`GET /health`: 503 is an answer too."""
        return self._parsed(Health, await self._send("GET", "/health", limit=_LOOK))

    async def workflows(self) -> Workflows:
        """`GET /workflows`."""
        return self._parsed(Workflows, await self._send("GET", "/workflows", limit=_LOOK))

    async def check(self, request: CheckRequest) -> list[CheckedWorkflow]:
        """`POST /workflows/check`."""
        body = request.model_dump_json(exclude_unset=True)
        response = await self._send("POST", "/workflows/check", content=body)
        if not response.is_success:
            raise self._refusal(response)
        return self._parsed(CheckAnswer, response).workflows

    async def nodes(self, request: NodesRequest) -> NodesAnswer:
        """`POST /nodes`."""
        response = await self._send("POST", "/nodes", content=request.model_dump_json())
        if not response.is_success:
            raise self._refusal(response)
        return self._parsed(NodesAnswer, response)

    async def put(self, run_id: str, request: RunRequest, *, begin: bool = True) -> RunStatus:
        """Begin or adopt a run. Raises WorkflowMismatch, BackendFull, RunFailed.

        With `begin` false it is adopted or not known, which raises RunLost.
        """
        # exclude_unset: a newer field is only on the wire when it is used
        body = request.model_dump_json(exclude_unset=True)
        response, broken = await self._asked(
            "PUT", f"/runs/{run_id}", content=body, extra={} if begin else {"If-Match": "*"}
        )
        if response.is_success:
            return self._parsed(RunStatus, response)
        full = None
        match response.status_code, _code(response):
            case HTTPStatus.TOO_MANY_REQUESTS, _:
                full = f"{self._name} takes no more runs now"
            case HTTPStatus.SERVICE_UNAVAILABLE, "comfyui_unavailable":
                self._on_away()
                full = f"{self._name} takes no runs while ComfyUI is away"
            case HTTPStatus.NOT_FOUND, "run_not_found" if not begin:
                raise RunLost(f"{self._name} does not know this run")
            case HTTPStatus.CONFLICT, "workflow_mismatch":
                raise WorkflowMismatch(f"{self._name} has another version of the workflow")
            case _:
                raise self._refusal(response)
        if broken:
            # the first request got no answer and may yet be taken: "full" would deny that
            raise BackendUnreachable(f"{self._name} broke off; then {full}")
        raise BackendFull(full)

    async def remove(self, run_id: str) -> None:
        """Cancel a run, or remove a finished one; unknown is no error."""
        response = await self._send("DELETE", f"/runs/{run_id}")
        if response.is_server_error or response.status_code in _REFUSES_US:
            raise self._refusal(response)

    async def events(self, run_id: str, *, previews: bool = False) -> AsyncGenerator[Event, None]:
        """One stream, to its end or to where it breaks. Raises RunLost, BackendUnreachable."""
        address = f"{self._url}/runs/{run_id}/events{'?previews=1' if previews else ''}"
        headers = self._headers | {"Accept": "text/event-stream"}
        try:
            async with self._http.stream(
                "GET", address, headers=headers, timeout=_EVENTS
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise self._no_events(response)
                async for kind, data in server_sent_events(response.aiter_lines()):
                    if kind in _EVENT_TYPES:
                        yield Event.model_validate_json(data)
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            # a read that times out missed two heartbeats: it accepts connections and is frozen
            raise self._away(error) from error
        except httpx.RequestError as error:
            _log.info("GPU service %s: event stream broke: %s", self._name, type(error).__name__)
        except ValidationError as error:
            raise self.foreign() from error

    def foreign(self) -> BackendUnreachable:
        """Something answers that does not keep the contract."""
        return BackendUnreachable(f"{self._name} does not speak this version of the contract")

    async def _send(
        self, method: str, path: str, *, content: str | None = None, limit: httpx.Timeout = _CALL
    ) -> httpx.Response:
        response, _ = await self._asked(method, path, content=content, limit=limit)
        return response

    async def _asked(
        self,
        method: str,
        path: str,
        *,
        content: str | None = None,
        limit: httpx.Timeout = _CALL,
        extra: Mapping[str, str] | None = None,
    ) -> tuple[httpx.Response, bool]:
        """The answer, and whether it is that to a second request as the first one broke off."""
        headers = self._headers | ({"Content-Type": "application/json"} if content else {})
        headers |= extra or {}

        async def once() -> httpx.Response:
            return await self._http.request(
                method, self._url + path, content=content, headers=headers, timeout=limit
            )

        try:
            try:
                return await once(), False
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                # a kept connection may have been closed under us; every call here is idempotent
                return await once(), True
        except httpx.RequestError as error:
            raise self._away(error) from error

    def _no_events(self, response: httpx.Response) -> BackendError:
        # only the service's own word counts: a proxy's 404 says nothing about the run
        if response.status_code == HTTPStatus.NOT_FOUND and _code(response) == "run_not_found":
            return RunLost(f"{self._name} does not know this run")
        return self._refusal(response)

    def _parsed(self, model: type[_Message], response: httpx.Response) -> _Message:
        if response.status_code in _REFUSES_US:
            raise self._refusal(response)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise self.foreign() from error

    def _refusal(self, response: httpx.Response) -> BackendError:
        """Translate an answer that is neither success nor one of the expected refusals."""
        status = response.status_code
        if status in _REFUSES_US:
            return BackendUnreachable(
                f"{self._name} refuses our token: GPU_SERVICE_TOKEN must be the same on both sides"
            )
        code = _code(response)
        if code is None or response.is_server_error:
            return BackendUnreachable(f"{self._name} answers {status}")
        detail = cast("dict[str, object]", response.json()).get("detail")
        failure = Failure(
            # what a caller sent is judged within the run; the request itself is of our making
            kind="fatal",
            code=code,
            message=detail if isinstance(detail, str) else "The GPU service refused the run.",
        )
        return RunFailed(failure, executed=False)

    def _away(self, error: httpx.RequestError) -> BackendUnreachable:
        self._on_away()
        # the type alone: an exception's text may hold addresses
        return BackendUnreachable(f"{self._name} does not answer ({type(error).__name__})")


def _code(response: httpx.Response) -> str | None:
    """Read the problem's code; None when the answer is not the service's own."""
    try:
        body: object = response.json()
    except ValueError:
        return None
    code = cast("dict[str, object]", body).get("code") if isinstance(body, dict) else None
    return code if isinstance(code, str) else None


async def server_sent_events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    """Type and data of each event; comments (heartbeats) and unknown fields are passed over."""
    kind, data = "message", list[str]()
    async for line in lines:
        if not line:
            if data:
                yield kind, "\n".join(data)
            kind, data = "message", []
            continue
        field, _, value = line.partition(":")
        if field == "event":
            kind = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
