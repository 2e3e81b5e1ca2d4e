"""Where webhooks may go, and one request there: an address from a caller is not to be trusted.

A name is looked up here, every address it has is checked, and the connection goes to a checked
address: a second look-up by the HTTP client, which could answer differently, never happens.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from gateway.errors import FieldError, InvalidParameters
from gpu_server.addresses import is_name, is_public, literal_of
from gpu_server.fetch import tls_context

CONNECT_S = 5.0
TOTAL_S = 15.0
CHECK_S = 2.0
"""Most seconds a caller waits while the name in an address is looked up."""

_LOOKUPS = 16
_REMEMBERED_S = 60.0
_REMEMBERED = 1000
_PORTS = {"http": 80, "https": 443}

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to IP addresses; raises OSError."""


class Refused(Exception):
    """Nothing is sent there; the message says why and holds neither path nor query."""


class Receivers:
    """The servers that webhooks go to."""

    def __init__(self, *, allow_private: bool, lookup: Lookup | None = None) -> None:
        self._allow_private = allow_private
        # threads of their own: a name server that does not answer must not hold up those that
        # store files
        self._threads = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="webhook-lookup")
        self._lookup = lookup or self._system_lookup
        self._known: dict[str, tuple[float, asyncio.Task[bool]]] = {}
        # No environment proxies: a proxy would look the name up again. No kept connections: one
        # opened for another name at the same address must not be used again.
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            verify=tls_context(),
            timeout=httpx.Timeout(TOTAL_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def close(self) -> None:
        """End every connection."""
        for _, looking in self._known.values():
            looking.cancel()
        await self._http.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def check(self, url: str, field: str = "webhook_url") -> None:
        """Refuse an address webhooks would never be sent to. Raises InvalidParameters.

        What cannot be told yet, because a name is not known, is left to the delivery.
        """
        try:
            parsed = _parsed(url)
        except Refused as error:
            raise _invalid(field, str(error)) from None
        if self._allow_private or await self._may_be_public(parsed):
            return
        message = (
            f"{parsed.host} is not a public address: use one that is, or set "
            "WEBHOOK_ALLOW_PRIVATE=1 on the gateway"
        )
        raise _invalid(field, message)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, httpx.Headers]:
        """Send it; status and headers of the answer, whose body nobody reads.

        Raises Refused, TimeoutError, httpx.HTTPError, OSError for a name that is not known.
        """
        async with asyncio.timeout(TOTAL_S):
            request = await self._request(_parsed(url), headers, body)
            response = await self._http.send(request, stream=True)
            await response.aclose()
            return response.status_code, response.headers

    async def _request(
        self, url: httpx.URL, headers: Mapping[str, str], body: bytes
    ) -> httpx.Request:
        if self._allow_private:
            return self._http.build_request("POST", url, headers=headers, content=body)
        name = url.raw_host.decode("ascii")
        addresses = await self._lookup(name, url.port or _PORTS[url.scheme])
        if not addresses or not all(map(is_public, addresses)):
            raise Refused(f"{name} is not a public address")
        # The certificate must be the name's, not the address's.
        extensions: dict[str, Any] = {"sni_hostname": name}
        return self._http.build_request(
            "POST",
            url.copy_with(host=addresses[0]),
            headers={**headers, "host": url.netloc.decode("ascii")},
            content=body,
            extensions=extensions,
        )

    async def _may_be_public(self, url: httpx.URL) -> bool:
        address = literal_of(url)
        if address is not None:
            return is_public(address)
        name, now = url.raw_host.decode("ascii"), asyncio.get_running_loop().time()
        known = self._known.get(name)
        if known is None or known[0] < now:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            looking = asyncio.create_task(self._look(name, url.port or _PORTS[url.scheme]))
            known = self._known[name] = now + _REMEMBERED_S, looking
        await asyncio.wait({known[1]}, timeout=CHECK_S)
        return not known[1].done() or known[1].result()

    async def _look(self, name: str, port: int) -> bool:
        try:
            return all(map(is_public, await self._lookup(name, port)))
        except (OSError, UnicodeError):
            return True

    async def _system_lookup(self, host: str, port: int) -> Sequence[str]:
        def found() -> list[str]:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(entry[4][0]) for entry in entries]

        return await asyncio.get_running_loop().run_in_executor(self._threads, found)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        # decodes the name, which a bad `xn--` fails at
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise Refused("is not a valid address") from None
    if parsed.scheme not in _PORTS or not host or parsed.userinfo:
        raise Refused("must be an http(s) address without user name or password")
    # a percent sign begins an IPv6 zone, which only has a meaning on one machine
    if "%" in host or (literal_of(parsed) is None and not is_name(parsed)):
        raise Refused("must name its host by a valid name or IP address, without a zone")
    return parsed


def _invalid(field: str, message: str) -> InvalidParameters:
    return InvalidParameters([FieldError(field=field, code="webhook_url_refused", message=message)])
