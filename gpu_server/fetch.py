"""Download from an address nobody should trust: names, redirects, size and time are all checked.

A name is resolved here, every address it has is checked, and the connection goes to a checked
address: a second look-up by the HTTP client, which could answer differently, never happens.
"""

import asyncio
import hashlib
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Self

import httpx

MAX_REDIRECTS = 3
CHUNK = 256 * 1024
ANSWER_S = 40
"""Most seconds until an answer begins, redirects included."""
STALL_S = 20
"""Most seconds for a chunk to come: a host that drips holds up whoever waits for the file."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LONGEST_SIZE = 18
_PORTS = {"http": 80, "https": 443}
_LAST_PORT = 65_535
_NAME = re.compile(rb"[a-zA-Z0-9._-]{1,253}")
_NEVER = tuple(
    ipaddress.ip_network(each)
    for each in (
        "192.0.0.0/24",  # for protocols of the IETF
        "192.88.99.0/24",  # 6to4 relays
        "::/96",  # IPv4-compatible
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b::/96",  # NAT64: what is behind it is the network's own affair
        "64:ff9b:1::/48",
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
)
"""Not on the public internet, whatever this Python's tables say."""

FetchCode = Literal[
    "url_refused", "file_not_found", "fetch_failed", "file_too_large", "fetch_timeout"
]
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


class FetchError(Exception):
    """A file could not be fetched; the message never holds the address's path or query."""

    def __init__(self, code: FetchCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code: FetchCode = code
        self.message = message
        self.retryable = retryable


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


def is_public(address: str) -> bool:
    """Tell whether an IP address is on the public internet, also when wrapped in IPv6."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
    if any(ip in network for network in _NEVER):
        return False
    return ip.is_global and not ip.is_multicast


def origin_of(url: str | httpx.URL) -> str:
    """Reduce an address to `scheme://host:port`."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.host}:{parsed.port or _PORTS.get(parsed.scheme, 0)}"


def check_address(url: str) -> None:
    """Refuse, without looking anything up, what would never be fetched; raises FetchError."""
    parsed = _parse(url)
    host, address = parsed.host, _literal(parsed.host)
    if address is None and not _NAME.fullmatch(parsed.raw_host):
        raise FetchError("url_refused", "not a valid address")
    local = f".{host.rstrip('.')}".endswith(".localhost")
    if local or (address is not None and not is_public(address)):
        raise FetchError("url_refused", f"{host} is not a public address")


def _literal(host: str) -> str | None:
    """Read the address off a host that is written as one, in the odd ways resolvers take too."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(host))
    with suppress(OSError, ValueError):
        # 127.1, 0x7f000001, 2130706433
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


async def resolve_public(host: str, port: int) -> str:
    """Return an address of the host; refuses it when any of its addresses is not public."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FetchError("fetch_failed", f"{host} can't be resolved", retryable=True) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(a) for a in addresses):
        raise FetchError("url_refused", f"{host} is not a public address")
    return addresses[0]


class Fetcher:
    """Fetches files; one per process, used as an async context manager.

    Addresses whose origin is in `allow_origins` (`http://127.0.0.1:8000`, say) are taken without
    the address check: the service's own links.
    """

    def __init__(self, *, allow_origins: Collection[str] = ()) -> None:
        self._allowed = frozenset(origin_of(o) for o in allow_origins)
        # No environment proxies: a proxy would resolve the name again. No kept connections to
        # strangers: one opened for another name at the same address must not be reused.
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
        timeout = httpx.Timeout(20, read=ANSWER_S + STALL_S, pool=60)
        self._strangers = httpx.AsyncClient(
            trust_env=False, timeout=timeout, limits=limits, verify=tls_context()
        )
        self._own = httpx.AsyncClient(trust_env=False, timeout=timeout, verify=tls_context())

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
        allowed = self._allowed | {origin_of(o) for o in allow_origins}
        clock = asyncio.timeout(timeout_s)
        try:
            async with clock, AsyncExitStack() as stack:
                parsed = _parse(url)
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
            raise _too_slow(f"{_parse(url).host} was not done within {timeout_s:.0f} s") from None

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
            url = _parse(response.headers.get("location", ""), base=url)
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
        port = url.port or _PORTS[url.scheme]
        name = url.raw_host.decode("ascii")
        address = await resolve_public(name, port)
        headers["host"] = url.netloc.decode("ascii")
        # The certificate must be the name's, not the address's.
        extensions: dict[str, Any] = {"sni_hostname": name}
        return self._strangers, self._strangers.build_request(
            "GET", url.copy_with(host=address), headers=headers, extensions=extensions
        )


def _parse(url: str, *, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = base.join(url) if base is not None else httpx.URL(url)
        # only now is a name in punycode looked at
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise FetchError("url_refused", "not a valid address") from None
    if parsed.scheme not in _PORTS or not host:
        raise FetchError("url_refused", "only http and https addresses are fetched")
    if parsed.userinfo:
        raise FetchError("url_refused", "an address must not carry a user or password")
    if parsed.port is not None and not 0 < parsed.port <= _LAST_PORT:
        raise FetchError("url_refused", "there is no such port")
    return parsed


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
