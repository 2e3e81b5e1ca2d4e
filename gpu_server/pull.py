"""Download one model file: resumable, checked while it comes, in its place only once whole."""

import asyncio
import re
import shutil
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

import httpx
from pydantic import SecretStr

from gpu_server.addresses import FetchError, FetchRules, check_address, origin_of
from gpu_server.fetch import MAX_REDIRECTS, resolve_public, tls_context
from gpu_server.part import Part, PullError, claimed_part, digest_of_file
from gpu_server.workflow import ModelRequirement

HUGGING_FACE = "https://huggingface.co"
_CHUNK = 1024 * 1024
_SHA256 = re.compile("[0-9a-f]{64}")
_REFUSED = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})

Progress = Callable[[int, int | None], None]
"""Told how many bytes are there, and of how many."""
State = Literal["there", "partial", "wrong size", "missing", "by hand"]


def free_bytes(folder: Path) -> int:
    """Tell how much may still be written into a folder."""
    return shutil.disk_usage(folder).free


def gigabytes(size: int) -> str:
    """Write a size as the licence tables do."""
    return f"{size / 1e9:.2f} GB"


def path_of(models_path: Path, model: ModelRequirement) -> Path:
    """Say where a model file belongs; raises PullError for a place outside the folder."""
    place = PurePosixPath(model.directory, model.name)
    if place.is_absolute() or ".." in place.parts or not model.name or not model.directory:
        raise PullError("its folder or name leads out of MODELS_PATH: correct the manifest")
    return models_path / place


def is_by_hand(model: ModelRequirement) -> bool:
    """Tell whether the address is a page about the model and not the file itself."""
    last = PurePosixPath(unquote(urlsplit(model.url).path))
    return last.name != PurePosixPath(model.name).name or not last.suffix


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a server answers, and what it says of the file itself."""

    response: httpx.Response
    host: str
    sha256: str | None = None
    bytes: int | None = None


def state_of(models_path: Path, model: ModelRequirement) -> State:
    """Look for a model file, by its size alone; raises PullError as `path_of` does."""
    path = path_of(models_path, model)
    if path.is_file():
        size = path.stat().st_size
        return "there" if size == model.bytes or (model.bytes is None and size) else "wrong size"
    if is_by_hand(model):
        return "there" if path.is_dir() else "by hand"
    return "partial" if _part_of(path).is_file() else "missing"


def _part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _sha256_of(model: ModelRequirement) -> str | None:
    named = model.hash is not None and (model.hash_type or "").upper() == "SHA256"
    return model.hash.lower() if named and model.hash is not None else None


def _is_whole(path: Path, model: ModelRequirement) -> bool:
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or (model.bytes is not None and size != model.bytes):
        return False
    sha256 = _sha256_of(model)
    return sha256 is None or digest_of_file(path) == sha256


class Puller:
    """Downloads model files into MODELS_PATH; used as an async context manager.

    The token goes to `token_origin` alone. Addresses whose origin is in `allow_origins` may be
    private and without TLS.
    """

    def __init__(
        self,
        models_path: Path,
        *,
        token: SecretStr | None = None,
        token_origin: str = HUGGING_FACE,
        allow_origins: Collection[str] = (),
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        self._models_path = models_path
        self._token = token
        self._token_origin = origin_of(token_origin)
        self._allowed = frozenset(origin_of(o) for o in allow_origins)
        self._free = free
        # As in fetch.py: no proxy that would resolve a checked name again, no kept connections.
        self._client = httpx.AsyncClient(
            trust_env=False,
            timeout=httpx.Timeout(30),
            limits=httpx.Limits(max_keepalive_connections=0),
            verify=tls_context(),
        )

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def pull(self, model: ModelRequirement, progress: Progress) -> bool:
        """Make the file be there; False = it already was. Raises PullError."""
        path = path_of(self._models_path, model)
        try:
            if await asyncio.to_thread(_is_whole, path, model):
                return False
            self._check_terms(model)
            await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
            with claimed_part(_part_of(path)) as part:
                await self._complete(model, part, progress)
                await asyncio.to_thread(part.become, path)
        except FetchError as error:
            raise PullError(error.message) from None
        except httpx.TransportError as error:
            raise PullError(
                f"the connection failed ({type(error).__name__}); run the command again to go on"
            ) from None
        except OSError as error:
            raise PullError(f"{path.parent} can't be used ({error.strerror or error})") from None
        return True

    def _check_terms(self, model: ModelRequirement) -> None:
        if model.gated and self._token is None:
            raise PullError(
                f"it is gated: accept its licence at {_page_of(model)} and set HF_TOKEN to a token "
                "of that account"
            )

    async def _complete(self, model: ModelRequirement, part: Part, progress: Progress) -> None:
        sha256 = _sha256_of(model)
        await asyncio.to_thread(part.take_up, verifiable=sha256 is not None)
        whose = "the manifest's"
        if part.size == 0 or part.size != model.bytes:
            named = await self._download(model, part, progress)
            if sha256 is None:
                sha256, whose = named, "what its server names"
        if sha256 is not None and part.sha256 != sha256:
            await asyncio.to_thread(part.discard)
            raise PullError(f"its SHA-256 is not {whose}, so the download was removed")

    async def _download(
        self, model: ModelRequirement, part: Part, progress: Progress
    ) -> str | None:
        """Ask for what is missing, and once more for everything when that does not fit.

        Returns the SHA-256 its server names, where it names one.
        """
        for _ in range(2):
            async with AsyncExitStack() as stack:
                answer = await self._send(model, _range_of(part), stack)
                response = answer.response
                if _already_whole(response, part):
                    return answer.sha256
                if response.status_code == HTTPStatus.OK:
                    await asyncio.to_thread(part.restart, _etag_of(response))
                elif not _goes_on(response, part):
                    if part.size == 0 or not _is_about_ranges(response):
                        raise PullError(_refusal(model, response.status_code, answer.host))
                    await asyncio.to_thread(part.restart, None)
                    continue
                await self._receive(model, answer, part, progress)
                return answer.sha256
        raise PullError("the server does not send the whole file")

    async def _receive(
        self, model: ModelRequirement, answer: _Answer, part: Part, progress: Progress
    ) -> None:
        response = answer.response
        if response.headers.get("content-type", "").partition(";")[0].strip() == "text/html":
            raise PullError("a web page came in the place of the file")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise PullError("the answer is compressed although that was not asked for")
        announced = _number(response.headers.get("content-length", ""))
        total = None if announced is None else part.size + announced
        expected = next((n for n in (model.bytes, answer.bytes, total) if n is not None), None)
        if expected is not None:
            if total is not None and total != expected:
                await asyncio.to_thread(part.discard)
                raise PullError(f"the server sends {total} bytes, and {expected} are expected")
            self._check_space(part, expected)
        async for chunk in response.aiter_raw(_CHUNK):
            if expected is not None and part.size + len(chunk) > expected:
                await asyncio.to_thread(part.discard)
                raise PullError(f"more than the {expected} bytes expected came")
            await asyncio.to_thread(part.write, chunk)
            progress(part.size, expected)
        if expected is not None and part.size != expected:
            await asyncio.to_thread(part.discard)
            raise PullError(f"{part.size} bytes came, and not the {expected} expected")

    def _check_space(self, part: Part, expected: int) -> None:
        needed, free = expected - part.size, self._free(part.path.parent)
        if needed > free:
            raise PullError(
                f"it needs {gigabytes(needed)} and {part.path.parent} has {gigabytes(free)} free: "
                "make room or set MODELS_PATH to a larger disk"
            )

    async def _send(
        self, model: ModelRequirement, headers: dict[str, str], stack: AsyncExitStack
    ) -> _Answer:
        """Follow redirects, each checked like the first address."""
        url, sha256, size = _joined(None, model.url), None, None
        for _ in range(MAX_REDIRECTS + 1):
            request = await self._request(model, url, headers)
            response = await self._client.send(request, stream=True)
            stack.push_async_callback(response.aclose)
            if origin_of(url) == self._token_origin:
                # of a large file Hugging Face names hash and size before it sends one elsewhere
                sha256 = _linked_sha256(response) or sha256
                size = _number(response.headers.get("x-linked-size", "")) or size
            if not response.has_redirect_location:
                return _Answer(response=response, host=url.host, sha256=sha256, bytes=size)
            await response.aclose()
            url = _joined(url, response.headers["location"])
        raise PullError(f"more than {MAX_REDIRECTS} redirects")

    async def _request(
        self, model: ModelRequirement, url: httpx.URL, headers: dict[str, str]
    ) -> httpx.Request:
        # A compressed body would match neither the size nor the hash.
        headers = {**headers, "accept-encoding": "identity"}
        if model.gated and self._token is not None and origin_of(url) == self._token_origin:
            headers["authorization"] = f"Bearer {self._token.get_secret_value()}"
        if origin_of(url) in self._allowed:
            return self._client.build_request("GET", url, headers=headers)
        # of the operator's own manifests
        check_address(str(url), FetchRules(ports=None))
        if url.scheme != "https":
            raise PullError("only https addresses are downloaded from")
        name = url.raw_host.decode("ascii")
        address = await resolve_public(name, url.port or 443)
        headers["host"] = url.netloc.decode("ascii")
        # The certificate must be the name's, not the address's.
        extensions: dict[str, Any] = {"sni_hostname": name}
        return self._client.build_request(
            "GET", url.copy_with(host=address), headers=headers, extensions=extensions
        )


def _joined(base: httpx.URL | None, url: str) -> httpx.URL:
    try:
        return httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError):
        raise PullError("the address, or one it leads to, is not valid") from None


def _range_of(part: Part) -> dict[str, str]:
    if part.size == 0:
        return {}
    wanted = {"range": f"bytes={part.size}-"}
    return wanted if part.etag is None else {**wanted, "if-range": part.etag}


def _etag_of(response: httpx.Response) -> str | None:
    """Read the ETag, if it is one that If-Range may carry."""
    etag = response.headers.get("etag", "")
    return etag if etag.startswith('"') else None


def _linked_sha256(response: httpx.Response) -> str | None:
    named = response.headers.get("x-linked-etag", "").strip('"').lower()
    return named if _SHA256.fullmatch(named) else None


def _is_about_ranges(response: httpx.Response) -> bool:
    return response.status_code in {
        HTTPStatus.PARTIAL_CONTENT,
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    }


def _goes_on(response: httpx.Response, part: Part) -> bool:
    """Tell whether the answer begins where the part ends, and is of the same file."""
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        return False
    if part.etag is not None and _etag_of(response) not in {None, part.etag}:
        return False
    return response.headers.get("content-range", "").startswith(f"bytes {part.size}-")


def _already_whole(response: httpx.Response, part: Part) -> bool:
    whole = f"bytes */{part.size}"
    return (
        response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        and part.size > 0
        and response.headers.get("content-range", "") == whole
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) <= len(str(2**63)) else None


def _refusal(model: ModelRequirement, status: int, host: str) -> str:
    if model.gated and status in _REFUSED:
        return (
            f"{host} answered {status}: the account of HF_TOKEN must accept the licence at "
            f"{_page_of(model)}"
        )
    return f"{host} answered {status}"


def _page_of(model: ModelRequirement) -> str:
    return model.url.partition("/resolve/")[0]
