"""Files whose store breaks off while they are sent, over real connections: torn, never short."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from gateway.api.boundary import Boundary
from gateway.api.files import files_router
from gateway.api.problems import install
from gateway.security.api_keys import RequireKey
from gateway.security.signing import Signer
from gateway.storage.base import StorageError
from gateway.storage.local import LocalStorage
from tests.support.asgi import serving

SIZE = 20_000_000
PIECE = bytes(100_000)
Pieces = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, kw_only=True)
class File:
    key: str = "generated/2026/03/09/01890000-0000-7000-8000-000000000000/a.png"
    filename: str = "a.png"
    media_type: str = "image/png"
    bytes: int = SIZE
    sha256: str = "0" * 64


class Index:
    async def takes_files(self, job_id: str) -> bool:
        del job_id
        return False

    async def file(self, filename: str) -> File | None:
        return File() if filename == "a.png" else None


class Store(LocalStorage):
    """Gives what the test says, and notices when nobody wants more."""

    def __init__(self, root: Path, pieces: Pieces) -> None:
        super().__init__(root, Signer(bytes(32)), "http://gateway")
        self._given = pieces
        self.released = asyncio.Event()
        self.pieces = 0

    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        del key, start, end
        try:
            async for piece in self._given():
                self.pieces += 1
                yield piece
        finally:
            self.released.set()


async def nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def refused() -> AsyncIterator[bytes]:
    raise StorageError("reset")
    yield b""


async def gone() -> AsyncIterator[bytes]:
    raise KeyError("a.png")
    yield b""


async def short() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield PIECE


async def reset() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield PIECE
    raise StorageError("reset")


async def whole() -> AsyncIterator[bytes]:
    for _ in range(SIZE // len(PIECE)):
        # as it comes from a disk or over a network
        await asyncio.sleep(0)
        yield PIECE


def app(storage: Store) -> Boundary:
    made = FastAPI()
    install(made)
    made.include_router(
        files_router(
            ["/api/images"],
            jobs=Index(),
            storage=storage,
            signer=Signer(bytes(32)),
            key=RequireKey(None),
        )
    )
    return Boundary(made)


@pytest.mark.parametrize("pieces", [short, reset])
async def test_a_file_that_breaks_off_is_an_error_at_the_client_and_no_whole_answer(
    tmp_path: Path, pieces: Pieces
) -> None:
    storage = Store(tmp_path, pieces)
    async with (
        serving(app(storage)) as address,
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"{address}/api/images/a.png")
        assert storage.released.is_set()
        # the next one on the same server is served as ever
        assert (await http.get(f"{address}/api/images/b.png")).status_code == 404


@pytest.mark.parametrize(
    ("pieces", "status"), [(refused, 503), (nothing, 503), (gone, 404), (whole, 200)]
)
async def test_what_shows_before_the_first_byte_is_told_by_the_status(
    tmp_path: Path, pieces: Pieces, status: int
) -> None:
    storage = Store(tmp_path, pieces)
    async with (
        serving(app(storage)) as address,
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
    ):
        answer = await http.get(f"{address}/api/images/a.png")
    assert answer.status_code == status
    if status == 503:
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("unavailable", "5")
        assert "reset" not in answer.text
    assert storage.released.is_set()


async def test_a_client_that_leaves_lets_go_of_the_store_and_nothing_is_read_ahead(
    tmp_path: Path,
) -> None:
    storage = Store(tmp_path, whole)
    async with serving(app(storage)) as address:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(b"GET /api/images/a.png HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert b"200 OK" in await reader.readline()
        # it takes a little of it and goes
        await reader.readexactly(1000)
        writer.transport.abort()
        async with asyncio.timeout(60):
            await storage.released.wait()
    assert storage.pieces < SIZE // len(PIECE)
