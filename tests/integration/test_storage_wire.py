"""What really goes over the wire to a store with TLS, byte by byte."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.storage.bucket import Bucket
from gateway.storage.s3 import S3Storage
from gateway.storage.s3_upload import PART

KEY = "generated/2026/03/09/01890000-0000-7000-8000-000000000000/0a1b2c.mp4"
KEY_ID = "the-access-key"
SECRET = "a-secret-no-request-may-show"
BEGUN = b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
DONE = b'<CompleteMultipartUploadResult><ETag>"e"</ETag></CompleteMultipartUploadResult>'


@dataclass(frozen=True, kw_only=True)
class Asked:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Store:
    """Answers as a store does, never says "continue", and remembers every request."""

    asked: list[Asked] = field(default_factory=list[Asked])
    held: dict[str, bytes] = field(default_factory=dict[str, bytes])
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").strip().split("\r\n")
                pairs = (text.split(": ", 1) for text in lines)
                headers = {name.lower(): value for name, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, target, _ = line.split(" ")
                self.asked.append(Asked(method=method, target=target, headers=headers, body=body))
                writer.write(self._answer(method, target, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, method: str, target: str, body: bytes) -> bytes:
        path, _, query = target.partition("?")
        told, answer = "", b""
        if method == "PUT":
            place = f"{path} {query}" if "partNumber" in query else path
            self.held[place] = body
            told = f'ETag: "{hashlib.md5(body).hexdigest()}"\r\n'
        elif method == "POST" and "uploadId" in query:
            parts = sorted(place for place in self.held if place.startswith(f"{path} "))
            self.held[path] = b"".join(self.held.pop(place) for place in parts)
            answer = DONE
        elif method == "POST":
            answer = BEGUN
        elif method == "HEAD":
            length = len(self.held[path])
            return f'HTTP/1.1 200 OK\r\nETag: "e-2"\r\nContent-Length: {length}\r\n\r\n'.encode()
        return f"HTTP/1.1 200 OK\r\n{told}Content-Length: {len(answer)}\r\n\r\n".encode() + answer


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate: Any = authority.issue_cert("127.0.0.1")
    certificate.configure_cert(context)
    remembering = Store()
    server = await asyncio.start_server(remembering.serve, "127.0.0.1", 0, ssl=context)
    remembering.port = server.sockets[0].getsockname()[1]
    async with server:
        yield remembering


def storage_at(store: Store, *, content_md5: bool = True) -> S3Storage:
    bucket = Bucket(
        scheme="r2",
        name="pictures",
        endpoint=f"https://127.0.0.1:{store.port}",
        region="auto",
        access_key_id=KEY_ID,
        secret_access_key=SECRET,
    )
    return S3Storage(bucket, project="studio", content_md5=content_md5)


async def made(size: int) -> AsyncIterator[bytes]:
    yield bytes(size)


@pytest.mark.parametrize("content_md5", [True, False])
@pytest.mark.parametrize("size", [0, 70_000, PART + 9])
async def test_bodies_go_out_plain_with_their_length_and_no_trailer(
    store: Store, size: int, *, content_md5: bool
) -> None:
    storage = storage_at(store, content_md5=content_md5)
    async with storage.running():
        written = await storage.write(KEY, "video/mp4", made(size))
    assert written.bytes == size
    sent = [asked for asked in store.asked if asked.method == "PUT"]
    assert len(sent) == (2 if size > PART else 1)
    assert sorted(len(asked.body) for asked in sent) == ([9, PART] if size > PART else [size])
    for asked in store.asked:
        names = " ".join(asked.headers)
        assert "trailer" not in names
        assert "x-amz-checksum" not in names
        assert "x-amz-sdk-checksum" not in names
        assert "expect" not in asked.headers
        assert "transfer-encoding" not in asked.headers
        assert "aws-chunked" not in asked.headers.get("content-encoding", "")
        assert not asked.headers.get("x-amz-content-sha256", "").startswith("STREAMING")
    for asked in sent:
        assert asked.headers["content-length"] == str(len(asked.body))
        assert ("content-md5" in asked.headers) is content_md5


async def test_requests_go_by_path_and_tell_no_secret(store: Store) -> None:
    storage = storage_at(store)
    async with storage.running():
        await storage.write(KEY, "video/mp4", made(PART + 9))
    for asked in store.asked:
        assert asked.headers["host"] == f"127.0.0.1:{store.port}"
        assert asked.target.startswith(f"/pictures/studio/{KEY}")
        # signed in a header: an address may be logged on its way
        assert KEY_ID not in asked.target
        assert "ignature" not in asked.target
        assert asked.headers["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={KEY_ID}/")
        assert "/auto/s3/aws4_request" in asked.headers["authorization"]
        assert SECRET not in repr(asked.headers) + asked.target


async def test_a_store_with_a_certificate_of_a_stranger_is_not_spoken_to(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    storage = storage_at(store)
    async with storage.running():
        assert "cannot be reached (SSLError)" in (await storage.trouble() or "")
    assert not store.asked


def test_signing_takes_no_network() -> None:
    storage = storage_at(Store(port=1))
    slot = storage.slot(KEY, timedelta(hours=1))
    assert slot.startswith(f"https://127.0.0.1:1/pictures/studio/{KEY}?X-Amz-Algorithm=")
    assert slot.count(KEY_ID) == 1
    assert SECRET not in slot
