"""Downloads from addresses nobody should trust, against servers on loopback."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_server import fetch
from gpu_server.fetch import Fetcher, FetchError, check_address, is_public, origin_of
from tests.support.asgi import serving

Send = Callable[[Any], Awaitable[None]]
CONTENT = bytes(range(256)) * 4096
HUGE = 10**9


class Site:
    """A small web server; remembers the Host headers it was asked under."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.url = ""

    async def __call__(
        self, scope: Any, _receive: Any, send: Callable[[Any], Awaitable[None]]
    ) -> None:
        self.hosts.append(dict(scope["headers"])[b"host"].decode())
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


async def read(url: str, *allowed: str, max_bytes: int = HUGE, timeout_s: float = 30) -> bytes:
    async with (
        Fetcher(allow_origins=allowed) as fetcher,
        fetcher.open(url, max_bytes=max_bytes, timeout_s=timeout_s) as download,
    ):
        return b"".join([chunk async for chunk in download.chunks])


async def refused(url: str, *allowed: str, **limits: Any) -> FetchError:
    with pytest.raises(FetchError) as error:
        await read(url, *allowed, **limits)
    return error.value


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "192.0.0.9",
        "192.88.99.1",
        "64:ff9b::a00:1",
        "64:ff9b::5db8:d70e",
        "64:ff9b:1::1",
        "::127.0.0.1",
        "::5db8:d70e",
        "::ffff:0:5db8:d70e",
        "fec0::1",
        "feff::1",
        "5f00::1",
    ],
)
def test_addresses_inside_a_network_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f::1", "2002:5db8:d70e::"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


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


async def test_a_strangers_redirect_to_an_allowed_origin_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, _port: int) -> str:
        if host != "files.invalid":
            raise FetchError("url_refused", "not public")
        return "127.0.0.1"

    monkeypatch.setattr(fetch, "resolve_public", resolve)
    async with serving(Site()) as own:
        port = site.url.rsplit(":", 1)[1]
        error = await refused(f"http://files.invalid:{port}/to/?{own}/file", own)
        assert error.code == "url_refused"
        assert site.hosts == [f"files.invalid:{port}"]


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
        Fetcher(allow_origins=[site.url]) as fetcher,
        fetcher.open(f"{site.url}/file", max_bytes=HUGE, timeout_s=3600) as download,
    ):
        read = b""
        async for chunk in download.chunks:
            read += chunk
            if len(read) == len(chunk):
                await asyncio.sleep(1.5)
    assert read == CONTENT


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "10.0.0.1:8080",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "[fe80::1%25eth0]",
        "localhost",
        "localhost.",
        "a.LOCALHOST:80",
        "[",
        "example.com:0",
        "example.com:65536",
        "user@example.com",
        "",
    ],
)
def test_what_would_never_be_fetched_is_told_without_looking_it_up(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolving(monkeypatch, "93.184.216.34")
    with pytest.raises(FetchError) as error:
        check_address(f"http://{host}/x")
    assert error.value.code == "url_refused"
    for good in ("8.8.8.8", "[2606:4700::1111]", "example.com:8443", "bücher.example"):
        check_address(f"https://{good}/x")
    assert asked == []


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


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    asked: list[str] = []

    async def getaddrinfo(_loop: Any, host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        assert len(asked) == 1, "resolved twice: the second answer could be another one"
        return [(0, 0, 0, "", (address, port)) for address in answers]

    # Only names are asked for; an address given to the connection needs no look-up.
    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return asked


async def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "93.184.215.14", "10.0.0.1")
    assert (await refused("http://files.example/x")).code == "url_refused"


async def test_the_connection_goes_to_the_address_that_was_checked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = site.url.rsplit(":", 1)[1]
    monkeypatch.setattr(fetch, "is_public", "127.0.0.1".__eq__)
    checked: list[str] = []

    async def resolve(host: str, _port: int) -> str:
        checked.append(host)
        return "127.0.0.1"

    monkeypatch.setattr(fetch, "resolve_public", resolve)
    # The name can't be resolved: a connection by name would fail.
    assert await read(f"http://files.invalid:{port}/file") == CONTENT
    assert checked == ["files.invalid"]
    assert site.hosts == [f"files.invalid:{port}"]


async def test_a_file_is_written_with_its_size_and_hash(site: Site, tmp_path: Path) -> None:
    async with Fetcher(allow_origins=[site.url]) as fetcher:
        path = tmp_path / "file"
        file = await fetcher.to_path(f"{site.url}/file", path, max_bytes=HUGE, timeout_s=30)
    assert path.read_bytes() == CONTENT
    assert file.media_type == "image/png"
    assert file.size == len(CONTENT)
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()


async def test_nothing_is_left_of_a_file_that_fails(site: Site, tmp_path: Path) -> None:
    async with Fetcher(allow_origins=[site.url]) as fetcher:
        with pytest.raises(FetchError):
            await fetcher.to_path(
                f"{site.url}/file", tmp_path / "file", max_bytes=1000, timeout_s=30
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


def test_an_origin_names_its_port() -> None:
    assert origin_of("https://Example.org/a?b") == "https://example.org:443"
    assert origin_of("http://127.0.0.1:8000") == "http://127.0.0.1:8000"
