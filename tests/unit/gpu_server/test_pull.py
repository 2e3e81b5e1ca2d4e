"""Model files from a server on loopback: whole, resumed, refused."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from gpu_server.part import PullError, claimed_part
from gpu_server.pull import Puller, is_by_hand, state_of
from gpu_server.workflow import ModelRequirement
from tests.support.asgi import serving
from tests.support.recordings import bundled

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = '"one"'
TOKEN = "hf_not-for-others"


class Site:
    """A web server with one file; remembers the headers it was asked with."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, str]] = []
        self.content = CONTENT
        self.etag = ETAG
        self.takes_ranges = True
        self.breaks_off_at: int | None = None
        self.location: str | None = None
        self.linked: dict[str, str] = {}
        """What Hugging Face tells of a large file before it sends one elsewhere."""
        self.status = 200
        self.media_type = "application/octet-stream"

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        asked = {k.decode(): v.decode() for k, v in scope["headers"]}
        self.asked.append(asked)
        headers = {"etag": self.etag, "content-type": self.media_type}
        status, body = self.status, self.content
        if self.location is not None:
            status, body, headers = 302, b"", {"location": self.location, **self.linked}
        elif self.takes_ranges and asked.get("if-range", self.etag) == self.etag:
            start = int(asked.get("range", "bytes=0-")[6:-1])
            if start >= len(body):
                status, body = 416, b""
                headers["content-range"] = f"bytes */{len(self.content)}"
            elif start:
                status, body = 206, body[start:]
                size = len(self.content)
                headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
        headers["content-length"] = str(len(body))
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        if self.breaks_off_at is not None:
            body = body[: self.breaks_off_at]
            await send({"type": "http.response.body", "body": body, "more_body": True})
            return
        await send({"type": "http.response.body", "body": body})

    @property
    def ranges(self) -> list[str | None]:
        return [asked.get("range") for asked in self.asked]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    app = Site()
    async with serving(app) as url:
        app.url = url
        yield app


def model(site: Site, **changes: Any) -> ModelRequirement:
    known: dict[str, Any] = {
        "name": "a.safetensors",
        "url": f"{site.url}/owner/repo/resolve/main/a.safetensors",
        "directory": "vae",
        "hash": SHA256,
        "hash_type": "SHA256",
        "bytes": len(CONTENT),
        "license": "MIT",
        "commercial": True,
    }
    return ModelRequirement.model_validate(known | changes)


def unknown(site: Site, **changes: Any) -> ModelRequirement:
    """Of which the manifest says neither size nor hash."""
    return model(site, **({"hash": None, "hash_type": None, "bytes": None} | changes))


async def pull(wanted: ModelRequirement, folder: Path, site: Site, **options: Any) -> bool:
    known: dict[str, Any] = {"allow_origins": [site.url], "token_origin": site.url}
    async with Puller(folder, **(known | options)) as puller:
        return await puller.pull(wanted, lambda _size, _total: None)


async def refused(wanted: ModelRequirement, folder: Path, site: Site, **options: Any) -> str:
    with pytest.raises(PullError) as error:
        await pull(wanted, folder, site, **options)
    return str(error.value)


def lying_in(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "vae").iterdir())


def left_behind(folder: Path, content: bytes, etag: str | None = ETAG) -> None:
    (folder / "vae").mkdir()
    (folder / "vae" / "a.safetensors.part").write_bytes(content)
    if etag is not None:
        (folder / "vae" / "a.safetensors.part.etag").write_text(etag)


def is_whole(folder: Path) -> bool:
    alone = lying_in(folder) == ["a.safetensors"]
    return alone and (folder / "vae" / "a.safetensors").read_bytes() == CONTENT


async def test_a_file_comes_whole_and_alone(site: Site, tmp_path: Path) -> None:
    assert await pull(model(site), tmp_path, site)
    assert is_whole(tmp_path)


async def test_a_file_that_is_there_is_left_alone(site: Site, tmp_path: Path) -> None:
    await pull(model(site), tmp_path, site)
    assert not await pull(model(site), tmp_path, site)
    assert not await pull(unknown(site), tmp_path, site)
    assert len(site.asked) == 1


@pytest.mark.parametrize("content", [b"short", bytes(len(CONTENT))])
async def test_a_file_that_is_another_one_is_replaced(
    site: Site, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.safetensors").write_bytes(content)
    assert await pull(model(site), tmp_path, site)
    assert is_whole(tmp_path)


@pytest.mark.parametrize("describe", [model, unknown])
async def test_an_interrupted_download_goes_on_where_it_ended(
    site: Site, tmp_path: Path, describe: Any
) -> None:
    site.breaks_off_at = 2_000_000
    assert "run the command again" in await refused(describe(site), tmp_path, site)
    assert state_of(tmp_path, model(site)) == "partial"
    kept = (tmp_path / "vae" / "a.safetensors.part").stat().st_size
    assert 0 < kept <= 2_000_000
    site.breaks_off_at = None
    assert await pull(describe(site), tmp_path, site)
    assert is_whole(tmp_path)
    assert site.ranges == [None, f"bytes={kept}-"]
    assert site.asked[1]["if-range"] == ETAG


@pytest.mark.parametrize("describe", [model, unknown])
async def test_a_server_that_ignores_ranges_sends_it_from_the_beginning(
    site: Site, tmp_path: Path, describe: Any
) -> None:
    left_behind(tmp_path, CONTENT[:5000])
    site.takes_ranges = False
    assert await pull(describe(site), tmp_path, site)
    assert site.ranges == ["bytes=5000-"]
    assert is_whole(tmp_path)


async def test_a_file_that_changed_meanwhile_begins_anew(site: Site, tmp_path: Path) -> None:
    left_behind(tmp_path, b"x" * 5000, '"zero"')
    assert await pull(unknown(site), tmp_path, site)
    assert is_whole(tmp_path)


async def test_what_cannot_be_told_to_be_of_one_file_is_not_continued(
    site: Site, tmp_path: Path
) -> None:
    left_behind(tmp_path, CONTENT[:5000], None)
    assert await pull(unknown(site), tmp_path, site)
    assert site.ranges == [None]
    assert is_whole(tmp_path)


@pytest.mark.parametrize("describe", [model, unknown])
async def test_a_whole_part_is_only_put_in_its_place(
    site: Site, tmp_path: Path, describe: Any
) -> None:
    left_behind(tmp_path, CONTENT)
    assert await pull(describe(site), tmp_path, site)
    assert is_whole(tmp_path)


async def test_a_part_longer_than_the_file_begins_anew(site: Site, tmp_path: Path) -> None:
    left_behind(tmp_path, CONTENT + b"more")
    assert await pull(model(site), tmp_path, site)
    assert site.ranges == [f"bytes={len(CONTENT) + 4}-", None]
    assert is_whole(tmp_path)


@pytest.mark.parametrize("beginning", [b"", b"y" * 5000])
async def test_a_wrong_hash_removes_the_file(site: Site, tmp_path: Path, beginning: bytes) -> None:
    if beginning:
        left_behind(tmp_path, beginning)
    else:
        site.content = CONTENT[:-1] + b"?"
    assert "SHA-256" in await refused(model(site), tmp_path, site)
    assert lying_in(tmp_path) == []


async def test_a_wrong_size_is_refused_before_the_file_comes(site: Site, tmp_path: Path) -> None:
    message = await refused(model(site, bytes=77), tmp_path, site)
    assert message == f"the server sends {len(CONTENT)} bytes, and 77 are expected"
    assert lying_in(tmp_path) == []


@pytest.mark.parametrize(
    ("linked", "message"),
    [
        ({"x-linked-etag": f'"{"0" * 64}"'}, "its SHA-256 is not what its server names"),
        ({"x-linked-size": "77"}, f"the server sends {len(CONTENT)} bytes, and 77 are expected"),
        ({"x-linked-etag": f'"{SHA256}"', "x-linked-size": str(len(CONTENT))}, None),
    ],
)
async def test_what_hugging_face_names_is_checked_where_the_manifest_names_nothing(
    site: Site, tmp_path: Path, linked: dict[str, str], message: str | None
) -> None:
    async with serving(storage := Site()) as url:
        site.location, site.linked = f"{url}/a.safetensors", linked
        allowed = {"allow_origins": [site.url, url]}
        if message is None:
            assert await pull(unknown(site), tmp_path, site, **allowed)
            assert is_whole(tmp_path)
        else:
            assert message in await refused(unknown(site), tmp_path, site, **allowed)
            assert lying_in(tmp_path) == []
    assert len(storage.asked) == 1


async def test_an_empty_file_is_not_there(site: Site, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a.safetensors").touch()
    assert state_of(tmp_path, unknown(site)) == "wrong size"
    assert await pull(unknown(site), tmp_path, site)
    assert is_whole(tmp_path)


async def test_a_full_disk_is_told_before_the_file_comes(site: Site, tmp_path: Path) -> None:
    message = await refused(unknown(site), tmp_path, site, free=lambda _: len(CONTENT) - 1)
    assert "make room" in message
    assert lying_in(tmp_path) == []
    (tmp_path / "vae").rmdir()
    left_behind(tmp_path, CONTENT[:5000])
    assert await pull(unknown(site), tmp_path, site, free=lambda _: len(CONTENT) - 5000)


async def test_a_page_in_the_place_of_the_file_is_refused(site: Site, tmp_path: Path) -> None:
    site.media_type = "text/html; charset=utf-8"
    assert "web page" in await refused(unknown(site), tmp_path, site)
    assert lying_in(tmp_path) == []


async def test_a_part_that_another_process_writes_is_left_to_it(site: Site, tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    with claimed_part(tmp_path / "vae" / "a.safetensors.part"):
        assert "another process" in await refused(model(site), tmp_path, site)


async def test_a_gated_file_without_a_token_says_where_to_accept(
    site: Site, tmp_path: Path
) -> None:
    message = await refused(model(site, gated=True), tmp_path, site)
    assert f"{site.url}/owner/repo and set HF_TOKEN" in message
    assert site.asked == []


@pytest.mark.parametrize("status", [401, 403])
async def test_a_token_that_accepted_nothing_is_told_where_to(
    site: Site, tmp_path: Path, status: int
) -> None:
    site.status = status
    message = await refused(model(site, gated=True), tmp_path, site, token=SecretStr(TOKEN))
    assert f"must accept the licence at {site.url}/owner/repo" in message
    assert TOKEN not in message


async def test_the_token_goes_to_its_host_and_to_no_other(site: Site, tmp_path: Path) -> None:
    async with serving(storage := Site()) as url:
        site.location = f"{url}/signed/a.safetensors"
        allowed = {"token": SecretStr(TOKEN), "allow_origins": [site.url, url]}
        await pull(model(site, gated=True), tmp_path, site, **allowed)
        await pull(model(site, name="b.safetensors"), tmp_path, site, **allowed)
    assert [asked.get("authorization") for asked in site.asked] == [f"Bearer {TOKEN}", None]
    assert ["authorization" in asked for asked in storage.asked] == [False, False]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://example.org/a", "only https addresses are downloaded from"),
        ("https://169.254.169.254/a", "169.254.169.254 is not a public address"),
        ("https://user:secret@example.org/a", "an address must not carry a user or password"),
        ("//[", "not a valid address"),
    ],
)
async def test_redirects_are_checked(
    site: Site, tmp_path: Path, location: str, message: str
) -> None:
    site.location = location
    assert await refused(model(site), tmp_path, site) == message
    assert lying_in(tmp_path) == []


async def test_a_stranger_is_asked_at_the_checked_address_and_the_token_is_hugging_faces(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(_host: str, _port: int) -> str:
        return "93.184.215.14"

    monkeypatch.setattr("gpu_server.pull.resolve_public", resolve)
    async with Puller(tmp_path, token=SecretStr(TOKEN)) as puller:
        for host, sent in (
            ("huggingface.co", f"Bearer {TOKEN}"),
            ("cdn.huggingface.co", None),
            ("huggingface.co:8443", None),
        ):
            url = httpx.URL(f"https://{host}/a")
            request = await puller._request(model(site, gated=True), url, {})
            assert request.url.host == "93.184.215.14"
            assert request.headers["host"] == host
            assert request.extensions["sni_hostname"] == url.host
            assert request.headers.get("authorization") == sent


@pytest.mark.parametrize("change", [{"name": "../../a.safetensors"}, {"directory": "/etc"}])
async def test_no_file_leaves_the_folder(site: Site, tmp_path: Path, change: Any) -> None:
    assert "leads out of MODELS_PATH" in await refused(model(site, **change), tmp_path, site)


def test_only_the_files_of_custom_packs_are_got_by_hand() -> None:
    named = {m.name for w in bundled().values() for m in w.models if is_by_hand(m)}
    assert named == {"Florence-2-large-ft", "sam2.1_hiera_large-fp16.safetensors"}
