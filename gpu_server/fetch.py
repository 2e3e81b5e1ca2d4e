"""Download from an address nobody should trust: names, redirects, size and time are all checked.

A name is resolved here, every address it has is checked, and the connection goes to a checked
address: a second look-up by the HTTP client, which could answer differently, never happens.
"""

import asyncio
import hashlib
import socket
import ssl
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Generator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any, Self

import httpx

from gpu_server.addresses import (
    PORTS,
    FetchError,
    FetchRules,
    check_found,
    check_parsed,
    origin_of,
    parse,
)

MAX_REDIRECTS = 3
CHUNK = 256 * 1024
ANSWER_S = 40
"""Most seconds until an answer begins, redirects included."""
STALL_S = 20
"""Most seconds for a chunk to come: a host that drips holds up whoever waits for the file."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LONGEST_SIZE = 18
_LOOKUPS = 16
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to IP addresses; raises OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """An open download: what the other side says about it, and its bytes."""

    media_type: str | None
    """As claimed; callers look at the bytes themselves."""
    size: int | None
    """As claimed, and never more than the limit."""
    chunks: AsyncIterator[bytes]
    """Ends with FetchError when the limit of size or time is passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFile:
    """A file that now lies on this disk."""

    path: Path
    media_type: str | None
    size: int
    sha256: str


@cache
def tls_context() -> ssl.SSLContext:
    """Return the process's one TLS context: reading the certificates takes a third of a second."""
    return httpx.create_ssl_context(trust_env=False)


async def resolve_public(
    host: str, port: int, *, rules: FetchRules | None = None, lookup: Lookup | None = None
) -> str:
    """Return an address of the host; refuses it when any of its addresses is not allowed."""
    try:
        found = await (lookup or _system_lookup)(host, port)
    except (OSError, UnicodeError):
        raise FetchError("fetch_failed", f"{host} can't be resolved", retryable=True) from None
    check_found(host, found, rules or FetchRules())
    return found[0]


# threads of their own: name servers that do not answer must hold up nothing but look-ups
_lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="fetch-lookup")


async def _system_lookup(host: str, port: int) -> Sequence[str]:
    def found() -> list[str]:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [str(entry[4][0]) for entry in entries]

    return await asyncio.get_running_loop().run_in_executor(_lookups, found)


class Fetcher:
    """Fetches files; one per process, used as an async context manager.

    Addresses are checked by `rules`; only those whose origin is among a download's `allow_origins`
    (`http://127.0.0.1:8000`, say) are taken as they are: links of the gateway's own making.
    """

    def __init__(self, *, rules: FetchRules | None = None, lookup: Lookup | None = None) -> None:
        self._rules = rules or FetchRules()
        self._lookup = lookup
        # No environment proxies: a proxy would resolve the name again. No kept connections to
        # strangers: one opened for another name at the same address must not be reused.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
        timeout = httpx.Timeout(20, read=ANSWER_S + STALL_S, pool=60)
        self._strangers = httpx.AsyncClient(
            trust_env=False,
            timeout=timeout,
            limits=limits,
            verify=tls_context(),
            cookies=_no_cookies(),
        )
        self._own = httpx.AsyncClient(
            trust_env=False, timeout=timeout, verify=tls_context(), cookies=_no_cookies()
        )

    async def __aenter__(self) -> Self:
        """Open nothing yet."""
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close every connection."""
        await self._strangers.aclose()
        await self._own.aclose()

    @asynccontextmanager
    async def open(
        self, url: str, *, max_bytes: int, timeout_s: float, allow_origins: Collection[str] = ()
    ) -> AsyncGenerator[Download]:
        """Start a download; leaving the context ends it. Raises FetchError."""
        allowed = frozenset(origin_of(o) for o in allow_origins)
        clock = asyncio.timeout(timeout_s)
        try:
            async with clock, AsyncExitStack() as stack:
                parsed = parse(url)
                with (
                    _in_time(f"{parsed.host} did not answer within {ANSWER_S} s"),
                    _translated(parsed.host),
                ):
                    async with asyncio.timeout(ANSWER_S):
                        response = await self._follow(parsed, allowed, stack)
                yield _download(response, parsed.host, max_bytes)
        except TimeoutError:
            if not clock.expired():
                raise
            raise _too_slow(f"{parse(url).host} was not done within {timeout_s:.0f} s") from None

    async def to_path(
        self,
        url: str,
        path: Path,
        *,
        max_bytes: int,
        timeout_s: float,
        allow_origins: Collection[str] = (),
    ) -> FetchedFile:
        """Download into a new file; nothing is left of one that fails."""
        digest, size = hashlib.sha256(), 0
        opened = self.open(
            url, max_bytes=max_bytes, timeout_s=timeout_s, allow_origins=allow_origins
        )
        async with opened as download:
            file = await asyncio.to_thread(path.open, "xb")
            try:
                async for chunk in download.chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(file.close)
            except BaseException:
                file.close()
                path.unlink(missing_ok=True)  # noqa: ASYNC240 - must not be interrupted again
                raise
        return FetchedFile(
            path=path, media_type=download.media_type, size=size, sha256=digest.hexdigest()
        )

    async def _follow(
        self, url: httpx.URL, allowed: frozenset[str], stack: AsyncExitStack
    ) -> httpx.Response:
        """Send the request and follow redirects, each checked like the first address.

        What may be fetched although it is private is what the caller named, and no other origin
        by way of a redirect.
        """
        for _ in range(MAX_REDIRECTS + 1):
            client, request = await self._request(url, allowed)
            response = await client.send(request, stream=True)
            stack.push_async_callback(response.aclose)
            if response.status_code not in _REDIRECTS:
                break
            await response.aclose()
            allowed &= {origin_of(url)}
            url = parse(response.headers.get("location", ""), base=url)
        else:
            raise FetchError("fetch_failed", f"more than {MAX_REDIRECTS} redirects")
        status = response.status_code
        if status != HTTPStatus.OK:
            raise FetchError(
                "file_not_found" if status in _GONE else "fetch_failed",
                f"{url.host} answered {status}",
                retryable=response.is_server_error or status == HTTPStatus.TOO_MANY_REQUESTS,
            )
        return response

    async def _request(
        self, url: httpx.URL, allowed: frozenset[str]
    ) -> tuple[httpx.AsyncClient, httpx.Request]:
        # A compressed body could unfold to any size.
        headers = {"accept-encoding": "identity"}
        if origin_of(url) in allowed:
            return self._own, self._own.build_request("GET", url, headers=headers)
        check_parsed(url, self._rules)
        name = url.raw_host.decode("ascii")
        port = url.port or PORTS[url.scheme]
        address = await resolve_public(name, port, rules=self._rules, lookup=self._lookup)
        headers["host"] = url.netloc.decode("ascii")
        # The certificate must be the name's, not the address's.
        extensions: dict[str, Any] = {"sni_hostname": name}
        return self._strangers, self._strangers.build_request(
            "GET", url.copy_with(host=address), headers=headers, extensions=extensions
        )


def _no_cookies() -> CookieJar:
    # what one host sets would go to another name at the same address
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _download(response: httpx.Response, host: str, max_bytes: int) -> Download:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError("fetch_failed", "the answer is compressed although that was not asked for")
    claimed = response.headers.get("content-length", "")
    size = int(claimed) if claimed.isdecimal() and len(claimed) <= _LONGEST_SIZE else None
    if size is not None and size > max_bytes:
        raise _too_large(max_bytes)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    chunks = _limited(response, host, max_bytes)
    return Download(media_type=media_type or None, size=size, chunks=chunks)


async def _limited(response: httpx.Response, host: str, max_bytes: int) -> AsyncIterator[bytes]:
    size, chunks = 0, response.aiter_raw(CHUNK)
    while True:
        # around the wait alone: what a reader does with a chunk takes as long as it takes
        with _in_time(f"{host} sent less than {CHUNK} bytes in {STALL_S} s"), _translated(host):
            async with asyncio.timeout(STALL_S):
                chunk = await anext(chunks, None)
        if chunk is None:
            return
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(max_bytes)
        yield chunk


@contextmanager
def _in_time(message: str) -> Generator[None]:
    try:
        yield
    except TimeoutError:
        raise _too_slow(message) from None


def _too_slow(message: str) -> FetchError:
    return FetchError("fetch_timeout", message, retryable=True)


@contextmanager
def _translated(host: str) -> Generator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise FetchError(
            "fetch_failed",
            f"the connection to {host} failed ({type(error).__name__})",
            retryable=True,
        ) from None


def _too_large(max_bytes: int) -> FetchError:
    return FetchError("file_too_large", f"the file is larger than {max_bytes} bytes")
