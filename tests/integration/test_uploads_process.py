"""Uploads into a gateway process over a socket: its memory, clients that vanish, and its death."""

import hashlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.s3 import S3Server, rclone
from tests.support.stack import KEY, Stack
from tests.support.uploads import BOUNDARY, around, video

MEGABYTE = 1024 * 1024
MOST_GROWTH = 64 * MEGABYTE
WITHIN_S = 120
MEDIA, FILES = "/api/media/upload", "/api/files"


@pytest.fixture(params=["disk", "bucket"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[S3Server | None]:
    if request.param == "disk":
        yield None
        return
    with rclone(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def stack(tmp_path: Path, bucket: S3Server | None) -> Iterator[Stack]:
    made = Stack(tmp_path / "workspace", **(bucket.env() if bucket else {}))
    try:
        made.start("gateway")
        yield made
    finally:
        made.stop()


def peak(stack: Stack) -> int:
    """The most memory the gateway has ever had."""
    status = Path(f"/proc/{stack.processes['gateway'].pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def film(size: int) -> tuple[bytes, int]:
    """The beginning of a video, and the zeros that follow: of a box that players pass over."""
    head = video()
    free = size - len(head)
    return head + struct.pack(">I4s", free, b"free"), free - 8


def send(stack: Stack, path: str, head: bytes, zeros: int, *, length: int | None = None) -> bytes:
    """Send a form with such a file, and read the whole answer; `length` = what is said of it."""
    with opened(stack, path, head, zeros, length=length) as sent:
        piece = bytes(MEGABYTE)
        left = zeros
        while left:
            sent.sendall(piece[: min(left, MEGABYTE)])
            left -= min(left, MEGABYTE)
        sent.sendall(around()[1])
        return answer(sent)


def opened(
    stack: Stack, path: str, head: bytes, zeros: int, *, length: int | None = None
) -> socket.socket:
    """Send the headers and the first bytes."""
    before, behind = around()
    count = length or len(before) + len(head) + zeros + len(behind)
    place = urlsplit(stack.url)
    sent = socket.create_connection((place.hostname or "", place.port or 0), timeout=600)
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\nContent-Length: {count}\r\n\r\n"
    )
    sent.sendall(request.encode() + before + head)
    return sent


def answer(sent: socket.socket) -> bytes:
    return b"".join(iter(lambda: sent.recv(65536), b""))


def left_over(stack: Stack) -> list[Path]:
    """Every file there is but the database and the secret."""
    data = stack.workspace / "data"
    return [path for path in data.rglob("*") if path.is_file() and path.parent != data]


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.timeout(900)
def test_100_mb_go_through_and_the_memory_stays_flat(stack: Stack) -> None:
    with stack.client() as client:
        warm = client.post(MEDIA, files={"file": video()})
        assert warm.status_code == 201, warm.text
        client.get(warm.json()["media_url"])
        before = peak(stack)
        head, zeros = film(100 * MEGABYTE)
        assert send(stack, MEDIA, head, zeros).startswith(b"HTTP/1.1 201")
        card = client.get("/api/media").json()["items"][0]
        assert card["bytes"] == 100 * MEGABYTE
        assert peak(stack) - before < MOST_GROWTH
        digest, count = hashlib.sha256(), 0
        with client.stream("GET", card["media_url"]) as shown:
            for piece in shown.iter_bytes(MEGABYTE):
                digest.update(piece)
                count += len(piece)
        assert (count, digest.hexdigest()) == (card["bytes"], card["sha256"])
        assert peak(stack) - before < MOST_GROWTH
        assert client.delete(f"/api/media/{card['card_id']}").status_code == 204


def test_a_client_that_vanishes_in_the_middle_leaves_nothing(
    stack: Stack, bucket: S3Server | None
) -> None:
    for path, head, sent in ((MEDIA, video(), 12), (FILES, b"fLaC", 12), (MEDIA, b"", 0)):
        connection = opened(stack, path, head, 50 * MEGABYTE)
        with connection:
            for _ in range(sent):
                connection.sendall(bytes(MEGABYTE))
    assert soon(lambda: not left_over(stack))
    if bucket is not None:
        assert soon(lambda: not bucket.keys())
        assert soon(lambda: not bucket.unfinished())
    with stack.client() as client:
        for listed in ("/api/media", FILES):
            assert client.get(listed).json()["items"] == []
    assert "Traceback" not in stack.log("gateway")


def test_what_cannot_be_taken_is_refused_before_it_is_sent(stack: Stack) -> None:
    with opened(stack, MEDIA, b"", 0, length=10**12) as sent:
        assert answer(sent).startswith(b"HTTP/1.1 413")
    # told at its first bytes, to a client that sends them all first
    refused = send(stack, MEDIA, b"<svg>", 5 * MEGABYTE)
    assert refused.startswith(b"HTTP/1.1 422")
    assert b"wrong_kind" in refused
    assert soon(lambda: not left_over(stack))


def test_what_a_killed_gateway_leaves_of_an_upload_is_gone_at_its_next_start(stack: Stack) -> None:
    head, zeros = film(60 * MEGABYTE)
    with opened(stack, MEDIA, head, zeros) as sent:
        for _ in range(20):
            sent.sendall(bytes(MEGABYTE))
        assert soon(lambda: bool(left_over(stack)))
        stack.kill("gateway")
    assert left_over(stack)
    stack.start("gateway")
    assert soon(lambda: not left_over(stack))
    with stack.client() as client:
        assert client.get("/api/media").json()["items"] == []
        assert client.post(MEDIA, files={"file": video()}).status_code == 201
