"""Which addresses may be fetched from, told without looking anything up."""

import socket

import pytest

from gpu_server.addresses import FetchError, FetchRules, check_address, is_public, origin_of


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
        "168.63.129.16",
        "100.100.100.200",
        "fd00:ec2::254",
        "2001:0:5db8:d70e::1",
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
        "example.com:8443",
        "user@example.com",
        "",
        "127.0.0.1.",
        "127.0.0.1.1",
        "4294967296",
        "0x",
        "metadata.google.internal",
        "printer.LOCAL.",
        "a..b",
        "[2606:4700::1111%25eth0]",
    ],
)
def test_what_would_never_be_fetched_is_told_without_looking_it_up(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(FetchError) as error:
        check_address(f"http://{host}/x")
    assert error.value.code == "url_refused"
    for good in ("8.8.8.8", "[2606:4700::1111]", "example.com:80", "bücher.example", "my_files.a."):
        check_address(f"https://{good}/x")


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("10.1.2.3", True),
        ("10.2.0.1", False),
        ("::ffff:10.1.2.3", True),
        ("fd12::7", True),
        ("8.8.8.8", True),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("fe80::1", False),
        ("fd00:ec2::254", False),
        ("fd20:ce::254", False),
        ("64:ff9b::a01:203", False),
        ("2002:a01:203::1", False),
    ],
)
def test_an_allowed_network_opens_itself_and_never_what_serves_no_files(
    address: str, *, allowed: bool
) -> None:
    networks = ["10.1.0.0/16", "169.254.0.0/16", "100.0.0.0/8", "0.0.0.0/8", "224.0.0.0/3"]
    rules = FetchRules.of([80], [*networks, "fd00::/8", "fe80::/10"])
    assert rules.allow(address) == allowed


def test_an_origin_names_its_port() -> None:
    assert origin_of("https://Example.org/a?b") == "https://example.org:443"
    assert origin_of("http://127.0.0.1:8000") == "http://127.0.0.1:8000"
