"""Hostile files by every way in: each gets what the table says; of refused ones nothing stays."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway import runtime
from gateway.errors import InvalidParameters
from gateway.tools import TOOLS
from gpu_server.comfy import RunFailed
from gpu_server.protocol import InputFile
from tests.support.caller_files import Params
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.hostile_file import TAKEN, HostileFile
from tests.support.hostile_files import HOSTILE_FILES
from tests.support.hostile_gpu import failure_of, gpu_service
from tests.support.library import files_in
from tests.support.reading import INVERT, data_uri, workflows
from tests.support.slots import receiving
from tests.support.uploads import uploaded

MEBIBYTE = 1024 * 1024
GROWTH = 600 * MEBIBYTE
"""Two pictures of 80 megapixels in 24 bits, and room; what a bomb unfolds to is far beyond."""

pytestmark = [
    pytest.mark.timeout(600),
    # Pillow warns of what it leaves out; as an error that would be another ending
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@contextmanager
def bounded() -> Iterator[None]:
    """This process never grows by more than GROWTH meanwhile."""
    process, done, most = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()
    assert most[0] - before < GROWTH, f"it grew by {(most[0] - before) // MEBIBYTE} MB"


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    """A gateway that begins no run."""
    monkeypatch.setattr(runtime, "TOOLS", (*TOOLS, INVERT))
    env: dict[str, Any] = {
        "workflows_path": workflows(tmp_path / "workflows"),
        "max_queued_jobs_per_caller": 1000,
    }
    backend = ScriptedBackend(capacity=0)
    async with gateway(tmp_path / "workspace", backend, **env) as running:
        yield running


def code_of(answer: httpx.Response) -> str:
    if answer.is_success:
        return TAKEN
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    return str(error["code"])


async def called(served: Gateway, each: HostileFile, data: bytes) -> str:
    """What it gets inside a call; no bundled tool of a GPU reads a video or a mesh."""
    uri = data_uri(data)
    if each.reads == "image":
        return code_of(await served.http.post("/api/invert/async", json={"image_url": uri}))
    try:
        params = Params.model_validate({f"{each.reads}_url": uri})
        await served.context.submission.inputs.check(params, "default")
    except InvalidParameters as refused:
        return str(refused.errors[0].code)
    return TAKEN


async def test_inside_a_call_each_gets_what_the_table_says(served: Gateway) -> None:
    got: dict[str, str] = {}
    with bounded():
        for each in HOSTILE_FILES:
            got[each.name] = await called(served, each, each.content())
    assert got == {each.name: each.call for each in HOSTILE_FILES}
    taken = [each for each in HOSTILE_FILES if each.call == TAKEN and each.reads == "image"]
    assert len(files_in(served)) == len(taken)


@pytest.mark.parametrize("path", ["/api/media/upload", "/api/files"])
async def test_as_an_upload_each_gets_what_the_table_says(served: Gateway, path: str) -> None:
    got: dict[str, str] = {}
    with bounded():
        for each in HOSTILE_FILES:
            got[each.name] = code_of(await uploaded(served.http, path, each.content(), "mug.png"))
    page = await served.http.get(path.removesuffix("/upload"), params={"limit": 100})
    listed: list[dict[str, Any]] = page.json()["items"]
    asked = {e.name: e.media if path.endswith("upload") else e.file for e in HOSTILE_FILES}
    assert got == asked
    assert len(listed) == sum(code == TAKEN for code in got.values())
    keys = {item["address"].removeprefix("local://files/") for item in listed}
    assert {key for key in files_in(served) if key.startswith("uploads/")} == keys
    for item in listed:
        shown = await served.http.get(item.get("media_url") or item["url"])
        assert shown.headers["x-content-type-options"] == "nosniff"
        content_type = item.get("content_type") or item["media_type"]
        assert shown.headers["content-type"] == content_type


async def test_fetched_by_a_gpu_service_each_gets_what_the_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that pass are told by reaching ComfyUI, which is then let alone with none of them."""
    reached: list[str] = []

    async def upload(*, chunks: AsyncIterator[bytes], **_: Any) -> str:
        async for _chunk in chunks:
            pass
        reached.append("one more")
        raise RunFailed("usage", TAKEN, "it came as far as ComfyUI")

    got: dict[str, str] = {}
    async with receiving() as slots, gpu_service(tmp_path) as service:
        monkeypatch.setattr(service.comfy, "upload", upload)
        with bounded():
            for each in HOSTILE_FILES:
                slots.files["/file"] = each.content()
                file = InputFile(url=f"{slots.url}/file", media_type="image/png", ours=True)
                got[each.name] = await failure_of(service, f"{slots.url}/a", file, each.reads)
        kept = list(service.settings.input_cache_path.iterdir())
    assert got == {each.name: each.fetch for each in HOSTILE_FILES}
    assert len(reached) == sum(each.fetch == TAKEN for each in HOSTILE_FILES)
    # pictures are kept once they are known to be good, others once ComfyUI has them
    pictures = {each.name for each in HOSTILE_FILES if (each.fetch, each.reads) == (TAKEN, "image")}
    assert len(kept) == len(pictures)
