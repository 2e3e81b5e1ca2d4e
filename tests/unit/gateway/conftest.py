from pathlib import Path

import pytest

from gateway.clock import SystemClock
from gateway.inputs import Inputs
from gateway.security.signing import SignedFileNames, Signer
from gateway.storage.local import LocalStorage
from gpu_server.addresses import FetchRules
from tests.support.caller_files import PUBLIC, Files, NoPictures, Uploaded


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def uploads() -> Uploaded:
    return Uploaded()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path, Signer(bytes(32)), "http://127.0.0.1:8000")


@pytest.fixture
def inputs(files: Files, uploads: Uploaded, storage: LocalStorage) -> Inputs:
    return Inputs(
        files=files,
        uploads=uploads,
        rules=FetchRules(),
        storage=storage,
        pictures=NoPictures(),
        names=SignedFileNames(Signer(bytes(32))),
        clock=SystemClock(),
        paths=frozenset({"/api/images", "/api/masks"}),
        own=(PUBLIC, "http://127.0.0.1:8000", "http://localhost:8000"),
        max_inline_mb=1,
    )
