import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI

from gateway.api.files import files_router
from gateway.api.problems import install
from gateway.job import Artifact
from gateway.security.api_keys import RequireKey
from gateway.security.signing import Signer
from gateway.storage import local
from gateway.storage.local import LocalStorage

JOB = "01890000-0000-7000-8000-000000000000"
DATA = bytes(range(256)) * 10
SHA = hashlib.sha256(DATA).hexdigest()
KEY = {"Authorization": "Bearer open-sesame"}
LIMIT = 100_000
HOUR = timedelta(hours=1)


class Index:
    def __init__(self) -> None:
        self.artifacts: dict[str, Artifact] = {}
        self.open = True

    async def takes_files(self, job_id: str) -> bool:
        assert job_id == JOB
        return self.open

    async def file(self, filename: str) -> Artifact | None:
        return self.artifacts.get(filename)


class Site:
    """A gateway that has only its file routes, with one picture in store."""

    def __init__(self, root: Path, *, key: str | None = "open-sesame") -> None:
        self.signer = Signer(bytes(32))
        self.storage = LocalStorage(root, self.signer, "http://gateway", max_bytes=LIMIT)
        self.index = Index()
        self.app = FastAPI()
        install(self.app)
        self.app.include_router(
            files_router(
                ["/api/images", "/api/masks", "/api/images"],
                jobs=self.index,
                storage=self.storage,
                signer=self.signer,
                key=RequireKey(key),
            )
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://gateway"
        )

    async def add(self, name: str, media_type: str = "image/png", data: bytes = DATA) -> str:
        key = f"generated/2026/03/09/{JOB}/{name}"

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        stored = await self.storage.write(key, media_type, chunks())
        self.index.artifacts[name] = Artifact(
            job_id=JOB,
            output="images",
            n=0,
            key=key,
            filename=name,
            media_type=media_type,
            bytes=stored.bytes,
            sha256=stored.sha256 or "",
        )
        return f"/api/images/{name}"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    await site.add("a.png")
    async with site.http:
        yield site


def code(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    return str(body["code"])


async def test_a_file_comes_whole_with_everything_a_client_may_cache_by(site: Site) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY)
    assert response.status_code == 200
    assert response.content == DATA
    expected = {
        "content-type": "image/png",
        "content-length": str(len(DATA)),
        "etag": f'"{SHA}"',
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=31536000, immutable",
        "x-content-type-options": "nosniff",
        "content-disposition": 'inline; filename="a.png"',
    }
    assert {name: response.headers[name] for name in expected} == expected


async def test_head_says_the_same_and_sends_nothing(site: Site) -> None:
    get = await site.http.get("/api/images/a.png", headers=KEY)
    head = await site.http.head("/api/images/a.png", headers=KEY | {"Range": "bytes=0-1"})
    assert head.status_code == 200
    assert head.content == b""
    assert dict(head.headers) == dict(get.headers)


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2550-", 2550, 2560),
        ("bytes=-7", 2553, 2560),
        ("bytes=-99999", 0, 2560),
        ("bytes=2559-99999999999999999", 2559, 2560),
    ],
)
async def test_one_range_is_answered_with_206(site: Site, asked: str, start: int, end: int) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY | {"Range": asked})
    assert response.status_code == 206
    assert response.content == DATA[start:end]
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/2560"
    assert response.headers["content-length"] == str(end - start)


@pytest.mark.parametrize("asked", ["bytes=2560-", "bytes=9999-10000", "bytes=-0"])
async def test_a_range_behind_the_end_is_416_with_the_size(site: Site, asked: str) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY | {"Range": asked})
    assert response.status_code == 416
    assert code(response) == "range_not_satisfiable"
    assert response.headers["content-range"] == "bytes */2560"


@pytest.mark.parametrize(
    "asked",
    ["bytes=5-1", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes", "", "bytes=٣-٤"],
)
async def test_a_range_that_is_malformed_or_several_is_ignored(site: Site, asked: str) -> None:
    headers = [(b"authorization", b"Bearer open-sesame"), (b"range", asked.encode())]
    response = await site.http.get("/api/images/a.png", headers=headers)
    assert response.status_code == 200
    assert response.content == DATA


async def test_if_range_sends_the_part_only_of_the_same_file(site: Site) -> None:
    part = {"Range": "bytes=0-9"}
    same = await site.http.get("/api/images/a.png", headers=KEY | part | {"If-Range": f'"{SHA}"'})
    assert (same.status_code, same.content) == (206, DATA[:10])
    for other in ('"another"', f'W/"{SHA}"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        response = await site.http.get(
            "/api/images/a.png", headers=KEY | part | {"If-Range": other}
        )
        assert (response.status_code, response.content) == (200, DATA)


@pytest.mark.parametrize("tags", [f'"{SHA}"', f'W/"{SHA}"', f'"x", "{SHA}"', "*"])
async def test_a_file_the_client_has_is_304(site: Site, tags: str) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY | {"If-None-Match": tags})
    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == f'"{SHA}"'


async def test_another_tag_is_no_304(site: Site) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY | {"If-None-Match": '"x"'})
    assert response.status_code == 200


async def test_an_empty_file_is_served(site: Site) -> None:
    await site.add("empty.png", data=b"")
    response = await site.http.get("/api/images/empty.png", headers=KEY)
    assert (response.status_code, response.content) == (200, b"")
    part = await site.http.get("/api/images/empty.png", headers=KEY | {"Range": "bytes=0-"})
    assert part.status_code == 416


@pytest.mark.parametrize("media_type", ["text/html", "image/svg+xml", "application/xhtml+xml"])
async def test_what_a_browser_would_run_is_only_a_download(site: Site, media_type: str) -> None:
    path = await site.add("doc.bin", media_type)
    response = await site.http.get(path, headers=KEY)
    assert response.headers["content-disposition"] == 'attachment; filename="doc.bin"'


async def test_without_key_and_link_it_is_401(site: Site) -> None:
    response = await site.http.get("/api/images/a.png")
    assert response.status_code == 401
    assert code(response) == "unauthorized"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", ["Bearer wrong", "Bearer ", "Basic open-sesame", "Bearer ü"])
async def test_a_wrong_key_is_401(site: Site, value: str) -> None:
    headers = [(b"authorization", value.encode())]
    response = await site.http.get("/api/images/a.png", headers=headers)
    assert response.status_code == 401


async def test_without_a_key_set_everything_is_open(tmp_path: Path) -> None:
    site = Site(tmp_path, key=None)
    path = await site.add("a.png")
    assert (await site.http.get(path)).status_code == 200
    assert (await site.http.put(f"/api/slots/generated/2026/03/09/{JOB}/b.png")).status_code == 403


async def test_a_signed_link_opens_without_the_key(site: Site) -> None:
    link = site.signer.link("/api/images/a.png", HOUR)
    assert (await site.http.get(link)).content == DATA
    assert (await site.http.head(link)).status_code == 200


async def test_a_link_that_is_altered_expired_or_another_files_is_403(site: Site) -> None:
    link = site.signer.link("/api/images/a.png", HOUR)
    expired = site.signer.link("/api/images/a.png", -2 * HOUR)
    other = link.replace("a.png", "b.png")
    moved = link.replace("images", "masks")
    unsigned = "/api/images/a.png?expires=99999999999"
    for address in (link[:-1], expired, other, moved, unsigned):
        response = await site.http.get(address)
        assert response.status_code == 403
        assert code(response) == "forbidden"


async def test_a_slots_signature_does_not_read(site: Site) -> None:
    slot = site.signer.slot("/api/images/a.png", HOUR)
    assert (await site.http.get(slot)).status_code == 403


async def test_a_name_nobody_knows_is_404(site: Site) -> None:
    response = await site.http.get("/api/images/b.png", headers=KEY)
    assert (response.status_code, code(response)) == (404, "not_found")


async def test_a_file_gone_from_storage_is_404_for_get_and_head(site: Site) -> None:
    await site.storage.delete(site.index.artifacts["a.png"].key)
    response = await site.http.get("/api/images/a.png", headers=KEY)
    assert (response.status_code, code(response)) == (404, "not_found")
    assert (await site.http.head("/api/images/a.png", headers=KEY)).status_code == 404


def slot_path(site: Site, name: str = "new.png", lifetime: timedelta = HOUR) -> str:
    slot = urlsplit(site.storage.slot(f"generated/2026/03/09/{JOB}/{name}", lifetime))
    return f"{slot.path}?{slot.query}"


async def test_a_slot_takes_a_file_and_tells_its_size_and_hash(site: Site) -> None:
    headers = {"Content-Type": "image/PNG; charset=x"}
    first = await site.http.put(slot_path(site), content=DATA, headers=headers)
    assert first.status_code == 201
    assert first.json() == {"bytes": len(DATA), "sha256": SHA}
    again = await site.http.put(slot_path(site), content=DATA, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    stored = await site.storage.stat(f"generated/2026/03/09/{JOB}/new.png")
    assert stored is not None
    assert stored.media_type == "image/png"


async def test_a_slot_without_a_usable_media_type_records_bytes(site: Site) -> None:
    await site.http.put(slot_path(site), content=DATA, headers={"Content-Type": "<b>"})
    stored = await site.storage.stat(f"generated/2026/03/09/{JOB}/new.png")
    assert stored is not None
    assert stored.media_type == "application/octet-stream"


async def test_a_slot_takes_no_more_than_the_limit_stated_or_not(site: Site) -> None:
    async def unstated() -> AsyncIterator[bytes]:
        yield bytes(LIMIT)
        yield b"x"

    for body in (bytes(LIMIT + 1), unstated()):
        response = await site.http.put(slot_path(site), content=body)
        assert (response.status_code, code(response)) == (413, "payload_too_large")
        assert response.headers["connection"] == "close"
    assert await site.storage.stat(f"generated/2026/03/09/{JOB}/new.png") is None
    assert (await site.http.put(slot_path(site), content=bytes(LIMIT))).status_code == 201


async def test_a_slot_of_a_job_that_has_ended_takes_nothing(site: Site) -> None:
    site.index.open = False
    response = await site.http.put(slot_path(site), content=DATA)
    assert response.status_code == 409
    assert "ended" in response.json()["detail"]


def tree(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


class FullDisk(local._Upload):
    """Writes to a device that is always full."""

    def __init__(self, incoming: Path) -> None:
        super().__init__(incoming)
        self._file.close()
        self._file = Path("/dev/full").open("wb")  # noqa: SIM115  # closed as any upload is


@pytest.mark.parametrize("size", [10, 90_000])
async def test_a_full_disk_is_507_and_nothing_of_the_file_stays(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    before = tree(tmp_path)
    monkeypatch.setattr(local, "_Upload", FullDisk)
    response = await site.http.put(slot_path(site), content=bytes(size))
    assert response.status_code == 507
    problem = response.json()
    assert problem["code"] == "storage_full"
    assert str(tmp_path) not in response.text
    assert tree(tmp_path) == before
    monkeypatch.undo()
    assert (await site.http.put(slot_path(site), content=DATA)).status_code == 201


async def test_a_slot_needs_its_own_signature_even_with_the_key(site: Site) -> None:
    good = slot_path(site)
    expired = slot_path(site, lifetime=-HOUR)
    other = good.replace("new.png", "other.png")
    bare = good.partition("?")[0]
    for address in (good[:-1], expired, other, bare):
        response = await site.http.put(address, content=b"x", headers=KEY)
        assert response.status_code == 403, address
        assert code(response) == "forbidden"


async def test_a_run_reads_a_file_by_its_link_alone(site: Site) -> None:
    await site.add("a.svg", "image/svg+xml")
    link = urlsplit(site.storage.link(f"generated/2026/03/09/{JOB}/a.svg", HOUR))
    answer = await site.http.get(f"{link.path}?{link.query}")
    assert (answer.status_code, answer.content) == (200, DATA)
    # whoever opens it in a browser gets no page of ours
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    bare = await site.http.get(link.path, headers=KEY)
    assert (bare.status_code, code(bare)) == (403, "forbidden")
    await site.storage.delete(f"generated/2026/03/09/{JOB}/a.svg")
    gone = await site.http.get(f"{link.path}?{link.query}")
    assert (gone.status_code, code(gone)) == (404, "not_found")


async def test_the_documentation_shows_reads_once_each_and_no_slots(site: Site) -> None:
    document = site.app.openapi()
    assert sorted(document["paths"]) == ["/api/images/{filename}", "/api/masks/{filename}"]
    assert list(document["paths"]["/api/images/{filename}"]) == ["get"]
    read = document["paths"]["/api/images/{filename}"]["get"]
    assert read["security"] == [{"ApiKey": []}]
    assert {"200", "206", "304", "401", "403", "404", "416"} <= set(read["responses"])
    ids = [path["get"]["operationId"] for path in document["paths"].values()]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("download", "said"),
    [
        ("1", 'attachment; filename="a.png"'),
        ("", 'attachment; filename="a.png"'),
        ("my mug", 'attachment; filename="my mug.png"'),
        ('"\r\nX-Evil: 1', 'attachment; filename="_X-Evil_ 1.png"'),
        ("x" * 10_000, f'attachment; filename="{"x" * 150}.png"'),
    ],
)
async def test_a_file_is_offered_for_saving_under_any_name(
    site: Site, download: str, said: str
) -> None:
    response = await site.http.get("/api/images/a.png", headers=KEY, params={"download": download})
    assert response.status_code == 200
    assert response.headers["content-disposition"] == said
    assert "x-evil" not in response.headers
