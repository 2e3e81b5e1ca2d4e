"""Every storage there is, each with a real place to write to."""

from collections.abc import AsyncIterator
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
from gateway.storage.local import LocalStorage
from tests.support.asgi import serving


class NoFiles:
    async def file(self, filename: str) -> Artifact | None:
        raise AssertionError(f"nobody asks for {filename} here")

    async def takes_files(self, job_id: str) -> bool:
        return bool(job_id)


@dataclass
class Place:
    """A storage and the client that fills its slots, as a GPU service does."""

    storage: Storage
    http: httpx.AsyncClient


async def local(root: Path) -> AsyncIterator[Storage]:
    signer = Signer(bytes(32))
    app = FastAPI()
    install(app)
    async with serving(app) as url:
        storage = LocalStorage(root, signer, url)
        app.include_router(
            files_router([], jobs=NoFiles(), storage=storage, signer=signer, key=RequireKey("k"))
        )
        yield storage


STORAGES = {"local": local}


@pytest.fixture(params=STORAGES)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        async for storage in STORAGES[request.param](tmp_path / "files"):
            yield Place(storage, http)
