"""Downloads from addresses nobody should trust, against servers on loopback."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_server import fetch
from gpu_server.addresses import FetchError, FetchRules
from gpu_server.fetch import Fetcher
from tests.support.asgi import serving

Send = Callable[[Any], Awaitable[None]]
CONTENT = bytes(range(256)) * 4096
HUGE = 10**9


class Site:
    """A small web server; remembers the Host headers it was asked under."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.sent: list[dict[bytes, bytes]] = []
        self.url = ""

    async def __call__(
        self, scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.sent.append(dict(scope["headers"]))
        self.hosts.append(self.sent[-1][b"host"].decode())
        path: str = scope["path"]
        headers = [(b"content-type", b"Image/PNG; x=1")]
        status, body = 200, CONTENT
        if path.startswith("/to/"):
            status, body = 302, b""
            headers = [(b"location", scope["query_string"])]
        elif path == "/404":
            status, body = 404, b""
        elif path == "/503":
            status, body = 503, b""
        elif path == "/cookie":
            headers.append((b"set-cookie", b"session=1; path=/"))
        elif path == "/gzip":
            headers.append((b"content-encoding", b"gzip"))
        elif path == "/sized":
            headers.append((b"content-length", str(len(CONTENT)).encode()))
        elif path == "/silent":
            await asyncio.Event().wait()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while path == "/drips":
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)
        if path == "/slow":
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.Event().wait()
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    app = Site()
    async with serving(app) as url:
        app.url = url
        yield app


def lying_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def read(
    url: str, *allowed: str, max_bytes: int = HUGE, timeout_s: float = 30, **options: Any
) -> bytes:
    async with (
        Fetcher(**options) as fetcher,
        fetcher.open(
            url, max_bytes=max_bytes, timeout_s=timeout_s, allow_origins=allowed
        ) as download,
    ):
        return b"".join([chunk async for chunk in download.chunks])


def rules_for(site: "Site", *networks: str) -> FetchRules:
    """Its port and the usual one, and those networks."""
    return FetchRules.of([80, port_of(site.url)], networks)


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


async def refused(url: str, *allowed: str, **limits: Any) -> FetchError:
    with pytest.raises(FetchError) as error:
        await read(url, *allowed, **limits)
    return error.value


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "gopher://example.org",
        "/relative",
        "http://",
        "http://[::1",
        "http://user:secret@example.org/",
        "http://127.0.0.1:1/",
        "http://[::1]:1/",
        "http://localhost:1/",
        "http://2130706433:1/",
        "http://0x7f.1:1/",
        "http://169.254.169.254/latest/meta-data",
    ],
)
async def test_addresses_that_are_nobodys_business_are_refused(url: str) -> None:
    error = await refused(url)
    assert error.code == "url_refused"
    assert not error.retryable
    assert "secret" not in error.message


async def test_an_allowed_origin_is_fetched_although_it_is_private(site: Site) -> None:
    assert await read(f"{site.url}/file", site.url) == CONTENT


async def test_an_allowed_origin_is_no_other_port(site: Site) -> None:
    async with serving(Site()) as other:
        assert (await refused(f"{other}/file", site.url)).code == "url_refused"


async def test_a_redirect_is_followed_within_what_is_allowed(site: Site) -> None:
    assert await read(f"{site.url}/to/?/file", site.url) == CONTENT


async def test_a_redirect_to_a_private_address_is_refused(site: Site) -> None:
    async with serving(Site()) as other:
        error = await refused(f"{site.url}/to/?{other}/file", site.url)
    assert error.code == "url_refused"


class Names:
    """A name server that answers as told, one answer after the other."""

    def __init__(self, *answers: tuple[str, ...], of: str | None = None) -> None:
        self.answers = list(answers)
        self.of = of
        self.asked: list[str] = []

    async def __call__(self, host: str, _port: int) -> tuple[str, ...]:
        self.asked.append(host)
        if self.of is not None and host != self.of:
            return (host,)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.mark.parametrize("path", ["/to/?{own}/file", "/to/?//{host}/file"])
async def test_a_strangers_redirect_to_an_allowed_origin_is_refused(path: str) -> None:
    site = Site()
    names = Names(("127.0.0.2",), of="files.example")
    rules = FetchRules(ports=None, networks=FetchRules.of((), ["127.0.0.2/32"]).networks)
    async with serving(site, host="127.0.0.2") as stranger, serving(Site()) as own:
        url = f"http://files.example:{port_of(stranger)}"
        path = path.format(own=own, host=own.removeprefix("http://"))
        error = await refused(url + path, own, lookup=names, rules=rules)
        assert error.message == "127.0.0.1 is not a public address"
        assert site.hosts == [f"files.example:{port_of(stranger)}"]


async def test_one_allowed_origin_does_not_open_another_by_a_redirect(site: Site) -> None:
    async with serving(Site()) as other:
        error = await refused(f"{site.url}/to/?{other}/file", site.url, other)
    assert error.code == "url_refused"


async def test_a_redirect_to_another_scheme_is_refused(site: Site) -> None:
    assert (await refused(f"{site.url}/to/?file:///etc/passwd", site.url)).code == "url_refused"


async def test_redirects_without_end_are_given_up(site: Site) -> None:
    error = await refused(f"{site.url}/to/?/to/?/to/?/to/?/to/?/file", site.url)
    assert error.code == "fetch_failed"
    assert len(site.hosts) == 4


@pytest.mark.parametrize("path", ["/sized", "/file"])
async def test_a_file_above_the_limit_is_refused_with_and_without_a_length(
    site: Site, path: str
) -> None:
    error = await refused(site.url + path, site.url, max_bytes=len(CONTENT) - 1)
    assert error.code == "file_too_large"
    assert await read(site.url + path, site.url, max_bytes=len(CONTENT)) == CONTENT


async def test_a_download_that_drags_on_is_given_up(site: Site) -> None:
    error = await refused(f"{site.url}/slow", site.url, timeout_s=0.2)
    assert (error.code, error.retryable) == ("fetch_timeout", True)


@pytest.mark.parametrize("path", ["/silent", "/slow", "/drips"])
async def test_a_host_that_says_nothing_or_only_drips_is_given_up_long_before_the_limit(
    site: Site, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "ANSWER_S", 1)
    monkeypatch.setattr(fetch, "STALL_S", 1)
    error = await refused(site.url + path, site.url, timeout_s=3600)
    assert (error.code, error.retryable) == ("fetch_timeout", True)
    assert error.message.startswith("127.0.0.1 ")
    assert error.message.endswith("in 1 s")


async def test_a_reader_may_take_longer_for_a_chunk_than_the_host(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "STALL_S", 1)
    async with (
        Fetcher() as fetcher,
        fetcher.open(
            f"{site.url}/file", max_bytes=HUGE, timeout_s=3600, allow_origins=[site.url]
        ) as download,
    ):
        read = b""
        async for chunk in download.chunks:
            read += chunk
            if len(read) == len(chunk):
                await asyncio.sleep(1.5)
    assert read == CONTENT


@pytest.mark.parametrize("path", ["/404", "/503"])
async def test_an_error_of_the_other_side_says_whether_to_try_again(site: Site, path: str) -> None:
    error = await refused(site.url + path, site.url)
    code = "fetch_failed" if path == "/503" else "file_not_found"
    assert (error.code, error.retryable) == (code, path == "/503")


async def test_a_compressed_answer_is_refused(site: Site) -> None:
    assert (await refused(f"{site.url}/gzip", site.url)).code == "fetch_failed"


async def test_a_server_that_is_away_is_worth_another_try() -> None:
    async with serving(Site()) as gone:
        pass
    error = await refused(f"{gone}/x", gone)
    assert (error.code, error.retryable) == ("fetch_failed", True)


async def test_a_name_with_one_private_address_is_refused() -> None:
    names = Names(("93.184.215.14", "10.0.0.1"))
    assert (await refused("http://files.example/x", lookup=names)).code == "url_refused"


async def test_a_name_that_is_not_known_is_worth_another_try() -> None:
    async def unknown(host: str, _port: int) -> list[str]:
        raise socket.gaierror(host)

    error = await refused("http://files.example/x", lookup=unknown)
    assert (error.code, error.retryable) == ("fetch_failed", True)


async def test_the_connection_goes_to_the_address_that_was_checked(site: Site) -> None:
    port = port_of(site.url)
    # a second look-up, which would get the second answer, is never made
    names = Names(("127.0.0.1",), ("10.0.0.1",))
    options = {"lookup": names, "rules": rules_for(site, "127.0.0.1/32")}
    assert await read(f"http://files.example:{port}/file", **options) == CONTENT
    assert names.asked == ["files.example"]
    assert site.hosts == [f"files.example:{port}"]


async def test_every_hop_of_a_redirect_is_looked_up_and_checked_anew(site: Site) -> None:
    port = port_of(site.url)
    names = Names(("127.0.0.1",), ("10.0.0.1",))
    options = {"lookup": names, "rules": rules_for(site, "127.0.0.1/32")}
    error = await refused(f"http://files.example:{port}/to/?/file", **options)
    assert error.code == "url_refused"
    assert names.asked == ["files.example"] * 2


async def test_private_networks_are_fetched_from_where_they_are_allowed(site: Site) -> None:
    assert await read(f"{site.url}/file", rules=rules_for(site, "127.0.0.0/8")) == CONTENT
    error = await refused(f"{site.url}/file", rules=rules_for(site, "10.0.0.0/8", "::1/128"))
    assert error.code == "url_refused"


async def test_only_the_ports_of_the_setting_are_fetched_from(site: Site) -> None:
    error = await refused(f"{site.url}/file", rules=FetchRules.of([80, 443], ["127.0.0.0/8"]))
    assert error.message == f"nothing is fetched from port {port_of(site.url)} (FETCH_PORTS)"
    async with serving(Site()) as other:
        url = f"{site.url}/to/?{other}/file"
        error = await refused(url, rules=rules_for(site, "127.0.0.0/8"))
        assert (error.code, "FETCH_PORTS" in error.message) == ("url_refused", True)
    assert site.hosts == [site.url.removeprefix("http://")]


async def test_what_a_host_sets_as_a_cookie_is_never_sent_anywhere(site: Site) -> None:
    for own in (True, False):
        options: dict[str, Any] = {} if own else {"rules": rules_for(site, "127.0.0.0/8")}
        async with Fetcher(**options) as fetcher:
            for _ in range(2):
                allowed = [site.url] if own else []
                async with fetcher.open(
                    f"{site.url}/cookie", max_bytes=HUGE, timeout_s=30, allow_origins=allowed
                ):
                    pass
    assert len(site.sent) == 4
    for headers in site.sent:
        assert set(headers) == {
            b"host",
            b"accept",
            b"accept-encoding",
            b"connection",
            b"user-agent",
        }


async def test_a_file_is_written_with_its_size_and_hash(site: Site, tmp_path: Path) -> None:
    async with Fetcher() as fetcher:
        path = tmp_path / "file"
        file = await fetcher.to_path(
            f"{site.url}/file", path, max_bytes=HUGE, timeout_s=30, allow_origins=[site.url]
        )
    assert path.read_bytes() == CONTENT
    assert file.media_type == "image/png"
    assert file.size == len(CONTENT)
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()


async def test_nothing_is_left_of_a_file_that_fails(site: Site, tmp_path: Path) -> None:
    async with Fetcher() as fetcher:
        with pytest.raises(FetchError):
            await fetcher.to_path(
                f"{site.url}/file",
                tmp_path / "file",
                max_bytes=1000,
                timeout_s=30,
                allow_origins=[site.url],
            )
    assert lying_in(tmp_path) == []


async def test_an_origin_may_be_allowed_for_one_download(site: Site) -> None:
    async with (
        Fetcher() as fetcher,
        fetcher.open(
            f"{site.url}/file", max_bytes=HUGE, timeout_s=30, allow_origins=[f"{site.url}/slot/1"]
        ) as download,
    ):
        assert b"".join([chunk async for chunk in download.chunks]) == CONTENT


async def test_an_error_of_the_reader_stays_its_own(site: Site) -> None:
    async def use() -> None:
        async with (
            Fetcher() as fetcher,
            fetcher.open(
                f"{site.url}/file", max_bytes=HUGE, timeout_s=30, allow_origins=[site.url]
            ),
        ):
            raise TimeoutError("not the download's")

    with pytest.raises(TimeoutError, match="not the download's"):
        await use()
