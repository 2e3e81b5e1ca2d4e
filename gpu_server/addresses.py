"""Which addresses of the network files may be fetched from; nothing is looked up here."""

import ipaddress
import re
import socket
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Self

import httpx

FetchCode = Literal[
    "url_refused", "file_not_found", "fetch_failed", "file_too_large", "fetch_timeout"
]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = {"http": 80, "https": 443}
"""The schemes that are fetched, and the port each means."""
_LAST_PORT = 65_535
_NAME = re.compile(rb"[a-zA-Z0-9._-]{1,253}")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_LONGEST_LABEL = 63


def _networks(*names: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names)


_NOT_PUBLIC = _networks(
    "168.63.129.16/32",  # Azure's machines reach their host here
    "192.0.0.0/24",  # for protocols of the IETF
    "192.88.99.0/24",  # 6to4 relays
    "::/96",  # IPv4-compatible
    "::ffff:0:0:0/96",  # IPv4-translated
    "64:ff9b::/96",  # NAT64: what is behind it is the network's own affair
    "64:ff9b:1::/48",
    "2001::/32",  # Teredo: an IPv4 address inside
    "3fff::/20",  # documentation
    "5f00::/16",  # segment routing
    "fec0::/10",  # site-local
)
"""Not on the public internet, whatever this Python's tables say."""
_NEVER = _networks(
    "0.0.0.0/8",
    "100.100.100.200/32",  # metadata of Alibaba's machines
    "168.63.129.16/32",
    "169.254.0.0/16",  # link-local, with the metadata of most clouds' machines
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "fd00:ec2::/32",  # metadata and credentials of AWS's machines
    "fd20:ce::254/128",  # metadata of Google's machines
    "fe80::/10",
    "ff00::/8",
)
"""Never fetched from, whatever networks are allowed: nothing there serves files."""
_PRIVATE_NAMES = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home.arpa",
    "in-addr.arpa",
    "ip6.arpa",
)
"""Ends of names that the public internet does not have."""


class FetchError(Exception):
    """A file could not be fetched; the message never holds the address's path or query."""

    def __init__(self, code: FetchCode, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code: FetchCode = code
        self.message = message
        self.retryable = retryable


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRules:
    """Where callers' addresses may lead; the public internet's usual ports, unless told."""

    ports: frozenset[int] | None = frozenset(PORTS.values())
    """None: any."""
    networks: tuple[Network, ...] = ()
    """Private ones that are allowed (FETCH_ALLOW_NETWORKS)."""

    @classmethod
    def of(cls, ports: Iterable[int], networks: Iterable[str]) -> Self:
        """Make them of settings; raises ValueError for what is no network."""
        return cls(ports=frozenset(ports), networks=_networks(*networks))

    def allow(self, address: str) -> bool:
        """Tell whether an IP address may be connected to."""
        return is_public(address) or (bool(self.networks) and self._listed(_ip(address)))

    def _listed(self, ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        if _within(ip, _NEVER):
            return False
        return _within(ip, self.networks)

    def check_port(self, port: int) -> None:
        """Refuse a port that is not fetched from; raises FetchError."""
        if self.ports is not None and port not in self.ports:
            message = f"nothing is fetched from port {port} (FETCH_PORTS)"
            raise FetchError("url_refused", message)


def is_public(address: str) -> bool:
    """Tell whether an IP address is on the public internet, also when wrapped in IPv6."""
    ip = _ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return is_public(str(inner))
    if _within(ip, _NOT_PUBLIC) or _within(ip, _NEVER):
        return False
    return ip.is_global and not ip.is_multicast


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _within(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, networks: Sequence[Network]) -> bool:
    return any(ip in network for network in networks)


def origin_of(url: str | httpx.URL) -> str:
    """Reduce an address to `scheme://host:port`."""
    parsed = httpx.URL(url)
    return f"{parsed.scheme}://{parsed.host}:{parsed.port or PORTS.get(parsed.scheme, 0)}"


def parse(url: str, *, base: httpx.URL | None = None) -> httpx.URL:
    """Read an http(s) address, against that of a redirect if given; raises FetchError."""
    try:
        parsed = base.join(url) if base is not None else httpx.URL(url)
        # only now is a name in punycode looked at
        host = parsed.host
    except (httpx.InvalidURL, UnicodeError, ValueError):
        raise FetchError("url_refused", "not a valid address") from None
    if parsed.scheme not in PORTS or not host:
        raise FetchError("url_refused", "only http and https addresses are fetched")
    if parsed.userinfo:
        raise FetchError("url_refused", "an address must not carry a user or password")
    if parsed.port is not None and not 0 < parsed.port <= _LAST_PORT:
        raise FetchError("url_refused", "there is no such port")
    return parsed


def check_address(url: str, rules: FetchRules | None = None) -> None:
    """Refuse, without looking anything up, what would never be fetched; raises FetchError."""
    check_parsed(parse(url), rules or FetchRules())


def check_parsed(url: httpx.URL, rules: FetchRules) -> None:
    """Refuse what would never be fetched, of an address that `parse` has read."""
    host = url.host.rstrip(".")
    address = literal_of(url)
    if address is None and not is_name(url):
        raise FetchError("url_refused", "not a valid address")
    if address is not None and ("%" in host or not rules.allow(address)):
        raise not_public(url.host)
    if address is None and not rules.networks and _is_private_name(host):
        raise not_public(url.host)
    rules.check_port(url.port or PORTS[url.scheme])


def check_found(host: str, found: Collection[str], rules: FetchRules) -> None:
    """Refuse a name unless every address it has may be connected to; raises FetchError."""
    if not found or not all(rules.allow(address) for address in found):
        raise not_public(host)


def not_public(host: str) -> FetchError:
    """Say that a host is somebody's own."""
    return FetchError("url_refused", f"{host} is not a public address")


def literal_of(url: httpx.URL) -> str | None:
    """Read the IP address off a host that is written as one, in the odd ways resolvers take too."""
    host = url.host.rstrip(".")
    with suppress(ValueError):
        return str(_ip(host))
    with suppress(OSError, ValueError):
        # 127.1, 0x7f000001, 2130706433
        return socket.inet_ntoa(socket.inet_aton(host))
    return None


def is_name(url: httpx.URL) -> bool:
    """Tell whether the host is a name that may be looked up."""
    host = url.raw_host.rstrip(b".")
    if not _NAME.fullmatch(host):
        return False
    labels = host.decode("ascii").split(".")
    # what ends in a number is an address, to some resolvers even when it is none
    return all(0 < len(label) <= _LONGEST_LABEL for label in labels) and not _NUMBER.fullmatch(
        labels[-1]
    )


def _is_private_name(host: str) -> bool:
    return f".{host.lower()}".endswith(tuple(f".{name}" for name in _PRIVATE_NAMES))
