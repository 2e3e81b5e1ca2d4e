"""ComfyUI's HTTP calls, one method each, over one connection pool.

Whatever goes wrong on the way is `ComfyUnavailable`; a POST that surely never left is `NotSent`.
"""

import json
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

import httpx

from gpu_server.comfy.failures import ComfyUnavailable, RunFailed
from gpu_server.protocol import Engine

_log = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(30, connect=5)
# Validation lists model folders, which may lie on a slow network volume.
_SLOW = httpx.Timeout(120, connect=5)
_LIMITS = httpx.Limits(
    max_connections=None,
    max_keepalive_connections=32,
    # Below aiohttp's 75 s: a connection the server is about to close must not carry a POST.
    keepalive_expiry=30,
)

_AGAIN = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


class NotSent(ComfyUnavailable):
    """The request never left: it can be made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueIds:
    """The prompt ids of one `GET /queue`."""

    running: frozenset[str]
    pending: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """ComfyUI's answer to POST /prompt."""

    status: int
    body: dict[str, Any]


class ComfyHttp:
    """ComfyUI's HTTP side."""

    def __init__(self, url: str, http: httpx.AsyncClient | None) -> None:
        self._url = url.rstrip("/")
        self._owned = http is None
        self._http = http or httpx.AsyncClient(
            timeout=_TIMEOUT, limits=_LIMITS, trust_env=False, follow_redirects=False
        )

    async def close(self) -> None:
        """Close the pool if it is our own."""
        if self._owned:
            await self._http.aclose()

    async def engine(self) -> Engine:
        """Tell a simulator from ComfyUI, which has no `/_sim`."""
        answer = await self._call("GET", "/_sim")
        body = _json(answer) if answer.status_code == HTTPStatus.OK else {}
        return "simulator" if body.get("simulator") is True else "comfyui"

    async def version(self) -> str | None:
        """Return ComfyUI's version."""
        system = _json(await self._get("/system_stats")).get("system")
        version = cast("dict[str, Any]", system).get("comfyui_version") if system else None
        return None if version is None else str(version)

    async def object_info(self) -> bytes:
        """Return the node definitions as ComfyUI sends them (half a megabyte and more)."""
        return (await self._get("/object_info", _SLOW)).content

    async def prompt(self, body: bytes) -> Answer:
        """POST a prompt.

        Raises:
            NotSent: it did not reach ComfyUI.
            ComfyUnavailable: nobody knows whether it did.
        """
        try:
            answer = await self._http.post(
                f"{self._url}/prompt",
                content=body,
                headers={"content-type": "application/json"},
                timeout=_SLOW,
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            raise NotSent from None
        except httpx.TransportError:
            raise ComfyUnavailable from None
        if answer.is_server_error:
            raise ComfyUnavailable("ComfyUI answered POST /prompt with an internal error")
        return Answer(status=answer.status_code, body=_json(answer))

    async def queue(self) -> QueueIds:
        """Return who runs and who waits."""
        body = _json(await self._get("/queue"))

        def ids(name: str) -> frozenset[str]:
            return frozenset(str(item[1]) for item in cast("list[list[Any]]", body.get(name) or []))

        return QueueIds(running=ids("queue_running"), pending=ids("queue_pending"))

    async def history(self, run_id: str) -> dict[str, Any] | None:
        """Return a prompt's history entry, None while there is none."""
        body = _json(await self._get(f"/history/{quote(run_id, safe='')}"))
        return cast("dict[str, Any] | None", body.get(run_id))

    async def dequeue(self, run_ids: list[str]) -> None:
        """Remove pending prompts; running and unknown ones are left as they are."""
        await self._post("/queue", {"delete": run_ids})

    async def interrupt(self, run_id: str) -> None:
        """Stop a prompt if it is the one that runs."""
        await self._post("/interrupt", {"prompt_id": run_id})

    async def free(self) -> None:
        """Unload models and empty the execution cache."""
        await self._post("/free", {"unload_models": True, "free_memory": True})

    async def forget(self, run_id: str) -> None:
        """Remove a prompt from the history."""
        await self._post("/history", {"delete": [run_id]})

    async def upload(
        self, *, name: str, subfolder: str, media_type: str, chunks: AsyncIterator[bytes]
    ) -> str:
        """Stream a file into ComfyUI's input folder and return it as ComfyUI names it."""
        boundary = uuid.uuid4().hex
        parts = _multipart(boundary, name, subfolder, media_type, chunks)
        answer = await self._call(
            "POST",
            "/upload/image",
            content=parts,
            headers={"content-type": f"multipart/form-data; boundary={boundary}"},
            timeout=_SLOW,
        )
        if answer.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            raise RunFailed("usage", "too_large", "an input file is larger than ComfyUI accepts")
        if answer.status_code != HTTPStatus.OK:
            raise RunFailed("fatal", "upload_refused", "ComfyUI refused an input file")
        stored = _json(answer)
        folder = stored.get("subfolder") or ""
        return f"{folder}/{stored['name']}" if folder else str(stored["name"])

    @asynccontextmanager
    async def view(
        self, *, filename: str, subfolder: str, kind: str
    ) -> AsyncGenerator[httpx.Response]:
        """Stream a file; the caller reads its body and meets `httpx.TransportError` itself."""
        # The folder goes by itself: ComfyUI drops a folder that stands in `filename`.
        params = {"filename": filename, "subfolder": subfolder, "type": kind}
        request = self._http.build_request("GET", f"{self._url}/view", params=params)
        try:
            answer = await self._http.send(request, stream=True)
        except httpx.TransportError:
            raise ComfyUnavailable from None
        try:
            if answer.status_code == HTTPStatus.NOT_FOUND:
                raise RunFailed("transient", "missing_output", "ComfyUI no longer has the file")
            if answer.is_client_error and answer.status_code not in _AGAIN:
                raise RunFailed("transient", "missing_output", "ComfyUI refuses an output file")
            if answer.status_code != HTTPStatus.OK:
                raise ComfyUnavailable("ComfyUI did not hand over an output file")
            yield answer
        finally:
            await answer.aclose()

    async def _get(self, path: str, limits: httpx.Timeout = _TIMEOUT) -> httpx.Response:
        answer = await self._call("GET", path, timeout=limits)
        if answer.status_code != HTTPStatus.OK:
            raise ComfyUnavailable(f"ComfyUI answered {answer.status_code} to GET {path}")
        return answer

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        answer = await self._call("POST", path, json=body)
        if answer.status_code != HTTPStatus.OK:
            raise ComfyUnavailable(f"ComfyUI answered {answer.status_code} to POST {path}")

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own options
        try:
            answer = await self._http.request(method, self._url + path, **options)
        except httpx.TransportError:
            raise ComfyUnavailable from None
        if answer.is_server_error:
            raise ComfyUnavailable(f"ComfyUI answered {method} {path} with an internal error")
        return answer


def _json(answer: httpx.Response) -> dict[str, Any]:
    """Parse an answer; anything but a JSON object reads as an empty one."""
    try:
        body: object = json.loads(answer.content)
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}


async def _multipart(
    boundary: str, name: str, subfolder: str, media_type: str, chunks: AsyncIterator[bytes]
) -> AsyncGenerator[bytes]:
    """Write a form by hand: httpx can't stream a part from an async iterator.

    `filename` is plain UTF-8: ComfyUI stores a percent-encoded name as it stands.
    """
    fields = {"type": "input", "subfolder": subfolder, "overwrite": "true"}
    for key, value in fields.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n'
        yield f"{head}{value}\r\n".encode()
    plain = name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    yield (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{plain}"\r\n'
        f"Content-Type: {media_type}\r\n\r\n"
    ).encode()
    try:
        async for chunk in chunks:
            yield chunk
    except httpx.TransportError:
        # Not ComfyUI's connection broke but the one the file comes from.
        raise RunFailed("transient", "unreadable_input", "an input file broke off") from None
    yield f"\r\n--{boundary}--\r\n".encode()
