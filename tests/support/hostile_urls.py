"""Addresses that must lead nowhere, each with what it gets: as a file, at its fetch, as a webhook.

`{port}` is the port of a listener on every address of this machine that has to hear nothing,
`{web}` that of a server which is allowed, and to which `cdn.example` leads.
"""

# ruff: noqa: RUF001 - letters that look like others are what some of these are about

from collections.abc import Mapping
from dataclasses import dataclass

REFUSED = "url_refused"
NO_ADDRESS = "not_a_file_address"
TAKEN = "taken"
"""By the call: only a look-up or the host's answer tells."""
WEBHOOK = "webhook_url_refused"
NO_WEB = "not_a_web_address"

ALLOWED = "127.0.0.2"
"""Where `cdn.example` really is, and what FETCH_ALLOW_NETWORKS has."""
NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "cdn.example": ((ALLOWED,),),
    "private.example": (("127.0.0.1",),),
    "ten.example": (("10.0.0.1",),),
    "metadata.example": (("169.254.169.254",),),
    "mixed.example": (("93.184.215.14", "127.0.0.1"),),
    "six.example": (("::1",),),
    "mapped.example": (("::ffff:127.0.0.1",),),
    "unspecified.example": (("0.0.0.0",),),
    "127.0.0.1.nip.example": (("127.0.0.1",),),
    "nothing.example": ((),),
    "metadata.google.internal": (("169.254.169.254",),),
    "kubernetes.default.svc.cluster.local": (("10.96.0.1",),),
    "localhost": (("127.0.0.1",),),
    "files.localhost": (("127.0.0.1",),),
}
"""What the name server of the tests says; one answer after the other, the last one for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileUrl:
    """One address, and what it has to get."""

    name: str
    url: str
    why: str
    call: str = REFUSED
    """Code of the call that names it as a file, or TAKEN."""
    fetch: str = REFUSED
    """Code of a GPU service that is told to fetch it all the same."""
    webhook: str | None = WEBHOOK
    """Code of a call that names it as its webhook; None where there is nothing to tell."""


def _literal(name: str, host: str, why: str) -> HostileUrl:
    return HostileUrl(name=name, url=f"http://{host}:{{port}}/x.png", why=why)


def _odd(
    name: str, url: str, why: str, *, call: str = REFUSED, webhook: str | None = WEBHOOK
) -> HostileUrl:
    return HostileUrl(name=name, url=url, why=why, call=call, webhook=webhook)


def _named(name: str, host: str, why: str) -> HostileUrl:
    return HostileUrl(name=name, url=f"http://{host}:{{port}}/x.png", why=why, call=TAKEN)


def _led(name: str, path: str, why: str, fetch: str = REFUSED) -> HostileUrl:
    url = f"http://cdn.example:{{web}}/{path}"
    return HostileUrl(name=name, url=url, why=why, call=TAKEN, fetch=fetch, webhook=None)


LITERALS = (
    _literal("loopback", "127.0.0.1", "this machine"),
    _literal(
        "loopback, another of its addresses", "127.8.8.8", "the whole of 127/8 is this machine"
    ),
    _literal("private 10/8", "10.0.0.1", "somebody's network"),
    _literal("private 172.16/12", "172.31.255.254", "somebody's network"),
    _literal("private 192.168/16", "192.168.0.1", "somebody's router"),
    _literal("carrier-grade NAT", "100.64.0.1", "a provider's inner network"),
    _literal("link-local", "169.254.1.1", "whoever is on the same wire"),
    _literal("metadata of most clouds", "169.254.169.254", "credentials of the machine"),
    _literal("metadata of Alibaba", "100.100.100.200", "credentials of the machine"),
    _literal("host of Azure's machines", "168.63.129.16", "public by its number, but the own host"),
    _literal("unspecified", "0.0.0.0", "connects to this machine"),
    _literal("zero", "0", "0.0.0.0 in short"),
    _literal("broadcast", "255.255.255.255", "everybody on the wire"),
    _literal("multicast", "224.0.0.1", "everybody on the wire"),
    _literal("reserved", "240.0.0.1", "nobody's"),
    _literal("benchmarking", "198.18.0.1", "not on the internet"),
    _literal("documentation", "192.0.2.2", "not on the internet"),
    _literal("decimal", "2130706433", "127.0.0.1 as one number"),
    _literal("hexadecimal", "0x7f000001", "127.0.0.1 as one number"),
    _literal("hexadecimal parts", "0x7f.0x0.0x0.0x1", "127.0.0.1"),
    _literal("octal number", "017700000001", "127.0.0.1 as one number"),
    _literal("octal parts", "0177.0.0.1", "127.0.0.1 to some, 177.0.0.1 to others"),
    _literal("parts with zeros before them", "127.000.000.001", "read in two ways"),
    _literal("short", "127.1", "127.0.0.1"),
    _literal("shorter by one", "127.0.1", "127.0.0.1"),
    _literal("mixed notations", "0x7f.1", "127.0.0.1"),
    _literal("metadata in decimal", "2852039166", "169.254.169.254 as one number"),
    _literal("dot at the end", "127.0.0.1.", "127.0.0.1 to some resolvers"),
    _literal("five parts", "127.0.0.1.1", "no address, and no name either"),
    _literal("too large a number", "4294967297", "127.0.0.1's neighbour after an overflow"),
    _literal("IPv6 loopback", "[::1]", "this machine"),
    _literal("IPv6 loopback in full", "[0:0:0:0:0:0:0:1]", "this machine"),
    _literal("IPv6 unspecified", "[::]", "connects to this machine"),
    _literal("IPv4 mapped", "[::ffff:127.0.0.1]", "127.0.0.1 inside"),
    _literal("IPv4 mapped, in hexadecimal", "[::ffff:7f00:1]", "127.0.0.1 inside"),
    _literal("IPv4 compatible", "[::127.0.0.1]", "127.0.0.1 inside"),
    _literal("IPv4 translated", "[::ffff:0:127.0.0.1]", "127.0.0.1 inside"),
    _literal("NAT64", "[64:ff9b::7f00:1]", "127.0.0.1 inside"),
    _literal("NAT64, local", "[64:ff9b:1::a00:1]", "10.0.0.1 inside"),
    _literal("6to4", "[2002:7f00:1::]", "127.0.0.1 inside"),
    _literal("Teredo", "[2001:0:7f00:1::]", "an IPv4 address inside"),
    _literal("IPv6 unique local", "[fd00::2]", "somebody's network"),
    _literal("IPv6 metadata of AWS", "[fd00:ec2::254]", "credentials of the machine"),
    _literal("IPv6 metadata of Google", "[fd20:ce::254]", "credentials of the machine"),
    _literal("IPv6 link-local", "[fe80::1]", "whoever is on the same wire"),
    _literal("IPv6 with a zone", "[fe80::1%25lo]", "means something on one machine only"),
    _literal("IPv6 site-local", "[fec0::1]", "somebody's network"),
    _literal("IPv6 multicast", "[ff02::1]", "everybody on the wire"),
)

SPELLINGS = (
    _literal("localhost", "localhost", "this machine"),
    _literal("localhost in capitals", "LOCALHOST", "this machine"),
    _literal("localhost with a dot", "localhost.", "this machine"),
    _literal("below localhost", "files.localhost", "this machine, by its definition"),
    _literal(
        "a name of Google's machines", "metadata.google.internal", "credentials of the machine"
    ),
    _literal("a name of a cluster", "kubernetes.default.svc.cluster.local", "inner services"),
    _literal("circled digits", "①②⑦.⓪.⓪.①", "127.0.0.1 after normalising"),
    _literal("fullwidth digits", "１２７.0.0.1", "127.0.0.1 after normalising"),
    _literal("fullwidth letters", "ｌｏｃａｌｈｏｓｔ", "localhost after normalising"),
    _literal("ideographic full stops", "127。0。0。1", "127.0.0.1 after normalising"),
    _literal("percent signs", "%31%32%37.0.0.1", "127.0.0.1 after decoding"),
    _literal("NUL in the host", "127.0.0.1%00.example.com", "cut at the NUL by some"),
    _literal("broken punycode", "xn--", "no name"),
    _literal("empty label", "a..b", "no name"),
    _literal("too long a label", "a" * 64 + ".example", "no name"),
    _odd("login", "http://user:secret@127.0.0.1:{port}/", "credentials in it", webhook=NO_WEB),
    _odd(
        "login that looks like a host",
        "http://cdn.example:{web}@127.0.0.1:{port}/",
        "the host is behind the @",
        webhook=NO_WEB,
    ),
    _odd("empty login", "http://@127.0.0.1:{port}/", "127.0.0.1", webhook=NO_WEB),
    _odd(
        "backslash before the @",
        "http://cdn.example\\@127.0.0.1:{port}/",
        "two hosts, as one reads it",
        webhook=NO_WEB,
    ),
    _odd("backslash in the host", "http://127.0.0.1\\.cdn.example/", "two hosts, as one reads it"),
    _odd("@ in the fragment", "http://127.0.0.1:{port}#@cdn.example/", "127.0.0.1"),
    _odd(
        "space in it",
        "http://127.0.0.1 .cdn.example/",
        "no address",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd(
        "tab in it",
        "http://127.0\t.0.1:{port}/",
        "removed by some",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd(
        "line break in it",
        "http://127.0.0.1:{port}/\r\nHost: cdn.example",
        "a header of its own",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd("no host", "http:///x.png", "no address", webhook=NO_WEB),
    _odd(
        "one slash",
        "http:/127.0.0.1:{port}/",
        "repaired by browsers",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd(
        "backslashes for slashes",
        "http:\\\\127.0.0.1:{port}\\",
        "repaired by browsers",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd(
        "no scheme",
        "//127.0.0.1:{port}/x.png",
        "takes over that of whoever reads it",
        call=NO_ADDRESS,
        webhook=NO_WEB,
    ),
    _odd("half an IPv6 address", "http://[::1:{port}/", "no address", webhook=NO_WEB),
    _odd("port 0", "http://cdn.example:0/", "there is none", webhook=NO_WEB),
    _odd("port 65536", "http://cdn.example:65536/", "there is none", webhook=NO_WEB),
    _odd("port of SSH", "http://cdn.example:22/", "not among FETCH_PORTS", webhook=None),
    _odd("port of a mail server", "https://cdn.example:25/", "not among FETCH_PORTS", webhook=None),
    _odd("port of Redis", "http://cdn.example:6379/", "not among FETCH_PORTS", webhook=None),
    _odd("fullwidth port", "http://cdn.example:２２/", "not among FETCH_PORTS", webhook=None),
)

SCHEMES = tuple(
    HostileUrl(name=scheme, url=url, why=why, call=NO_ADDRESS, webhook=NO_WEB)
    for scheme, url, why in (
        ("file", "file:///etc/passwd", "a file of this machine"),
        ("file on a host", "file://127.0.0.1/etc/passwd", "a file of this machine"),
        ("ftp", "ftp://127.0.0.1:{port}/x.png", "another protocol"),
        ("gopher", "gopher://127.0.0.1:{port}/_GET%20/", "any protocol"),
        ("dict", "dict://127.0.0.1:{port}/d:x", "another protocol"),
        ("ldap", "ldap://127.0.0.1:{port}/", "another protocol"),
        ("jar", "jar:http://127.0.0.1:{port}/x!/y", "an address inside an address"),
        ("javascript", "javascript:alert(1)", "a program"),
        (
            "a socket",
            "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
            "another way to reach a server",
        ),
    )
)

OURS = tuple(
    HostileUrl(name=name, url=url, why=why, call=call, webhook=webhook)
    for name, url, why, call, webhook in (
        (
            "our own health",
            "http://127.0.0.1:8000/healthz",
            "this gateway",
            "unknown_file",
            WEBHOOK,
        ),
        ("our own slots", "/api/slots/generated/x.png", "this gateway", "unknown_file", NO_WEB),
        ("out of our routes", "/api/images/../../etc/passwd", "a path", "unknown_file", NO_WEB),
        ("out of our storage", "local://files/../../etc/passwd", "a path", "unknown_file", NO_WEB),
        ("a bucket nobody configured", "s3://somebody/secret", "a store", "no_such_store", NO_WEB),
        ("metadata as a bucket", "gs://169.254.169.254/latest", "a store", "no_such_store", NO_WEB),
    )
)

LOOKED_UP = (
    _named("name of this machine", "private.example", "it leads to 127.0.0.1"),
    _named("name of a private network", "ten.example", "it leads to 10.0.0.1"),
    _named("name of the metadata", "metadata.example", "it leads to 169.254.169.254"),
    _named("name with two addresses", "mixed.example", "one of them is 127.0.0.1"),
    _named("name with an IPv6 address", "six.example", "it leads to ::1"),
    _named("name with a mapped address", "mapped.example", "it leads to ::ffff:127.0.0.1"),
    _named("name of no address", "unspecified.example", "it leads to 0.0.0.0"),
    _named("wildcard name", "127.0.0.1.nip.example", "it leads to the address in it"),
    HostileUrl(
        name="name without an address",
        url="http://nothing.example:{port}/",
        why="it leads nowhere",
        call=TAKEN,
        webhook=None,
    ),
)

LED = (
    _led(
        "redirect to this machine", "to?http://127.0.0.1:{port}/", "checked like the first address"
    ),
    _led("redirect to the metadata", "to?http://169.254.169.254/latest", "checked anew"),
    _led("redirect to a private name", "to?http://private.example:{port}/", "looked up anew"),
    _led("redirect to a mapped address", "to?http://[::ffff:127.0.0.1]:{port}/", "checked anew"),
    _led("redirect without a scheme", "to?//127.0.0.1:{port}/", "checked anew"),
    _led("redirect to a file", "to?file:///etc/passwd", "only http and https"),
    _led("redirect to gopher", "to?gopher://127.0.0.1:{port}/_x", "only http and https"),
    _led("redirect to ftp", "to?ftp://127.0.0.1:{port}/x", "only http and https"),
    _led("redirect with a login", "to?http://user:secret@cdn.example:{web}/", "credentials in it"),
    _led("redirect to another port", "to?http://cdn.example:22/", "not among FETCH_PORTS"),
    _led("redirect by 307", "to307?http://127.0.0.1:{port}/", "checked like any other"),
    _led("redirect nowhere", "nowhere", "no address", "fetch_failed"),
    _led("second redirect", "to?/to?http://127.0.0.1:{port}/", "each one is checked"),
    _led("redirects without end", "round", "three are followed", "fetch_failed"),
    _led(
        "page that redirects",
        "page",
        "its script and its refresh are never looked at",
        "unreadable_input",
    ),
    _led("silent host", "silent", "an answer has to begin within 40 s", "fetch_timeout"),
    _led("dripping headers", "slow-headers", "an answer has to begin within 40 s", "fetch_timeout"),
    _led("dripping body", "drip", "256 KiB have to come every 20 s", "fetch_timeout"),
    _led("endless body", "endless", "it is cut at the most a picture may have", "file_too_large"),
    _led("length without end", "long", "it is refused by what it states", "file_too_large"),
    _led("fewer bytes than stated", "short", "it broke off", "fetch_failed"),
    _led("compressed answer", "gzip", "it could unfold to any size", "fetch_failed"),
    _led("endless headers", "headers", "they are cut off", "fetch_failed"),
    _led("no HTTP", "noise", "nothing is read from it", "fetch_failed"),
)

HOSTILE_URLS = (*LITERALS, *SPELLINGS, *SCHEMES, *OURS, *LOOKED_UP, *LED)
