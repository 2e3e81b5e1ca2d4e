"""Every storage there is, each with a real place to write to."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from gateway.api.files import files_router
from gateway.api.problems import install
from gateway.job import Artifact
from gateway.security.api_keys import RequireKey
from gateway.security.signing import Signer
from gateway.storage.base import Storage
from gateway.storage.bucket import Bucket
from gateway.storage.local import LocalStorage
from gateway.storage.s3 import S3Storage
from tests.support.asgi import serving
from tests.support.s3 import S3Server, moto, rclone

PROJECT = "one-of-several"
KINDS = ("local", "rclone", "moto")

of_judges = pytest.mark.parametrize("place", ["local", "rclone"], indirect=True)
"""Those that look at signatures and times; moto looks at neither."""
of_buckets = pytest.mark.parametrize("place", ["rclone", "moto"], indirect=True)
of_the_disk = pytest.mark.parametrize("place", ["local"], indirect=True)
of_rclone = pytest.mark.parametrize("place", ["rclone"], indirect=True)
of_moto = pytest.mark.parametrize("place", ["moto"], indirect=True)


class NoFiles:
    async def file(self, filename: str) -> Artifact | None:
        raise AssertionError(f"nobody asks for {filename} here")

    async def takes_files(self, job_id: str) -> bool:
        return bool(job_id)


@dataclass(kw_only=True)
class Place:
    """A storage and the client that fills its slots, as a GPU service does."""

    storage: Storage
    http: httpx.AsyncClient
    server: S3Server | None

    @property
    def bucket(self) -> S3Server:
        """The server behind it, with its bucket."""
        assert self.server is not None
        return self.server


def bucket_at(server: S3Server, *, secret: str | None = None, name: str | None = None) -> Bucket:
    return Bucket(
        scheme="s3",
        name=name or server.bucket,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key_id=server.access_key_id,
        secret_access_key=secret or server.secret_access_key,
    )


@asynccontextmanager
async def local(root: Path) -> AsyncGenerator[Storage]:
    signer = Signer(bytes(32))
    app = FastAPI()
    install(app)
    async with serving(app) as url:
        storage = LocalStorage(root, signer, url)
        app.include_router(
            files_router([], jobs=NoFiles(), storage=storage, signer=signer, key=RequireKey("k"))
        )
        yield storage


@asynccontextmanager
async def remote(server: S3Server) -> AsyncGenerator[Storage]:
    storage = S3Storage(bucket_at(server), project=PROJECT)
    async with storage.running():
        yield storage


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone(tmp_path_factory.mktemp("s3") / "buckets") as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    with moto() as server:
        yield server


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    server: S3Server | None = None
    if request.param != "local":
        running: S3Server = request.getfixturevalue(f"{request.param}_server")
        server = running.new_bucket()
    opened: AbstractAsyncContextManager[Storage] = (
        local(tmp_path / "files") if server is None else remote(server)
    )
    async with opened as storage, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        yield Place(storage=storage, http=http, server=server)
