import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from gateway.clock import SystemClock
from gateway.errors import InvalidParameters, StorageFull
from gateway.inputs import MAX_PIXELS, Inline, Inputs, largest_files
from gateway.job import Artifact, Source, new_job_id
from gateway.media import ImageUrl, MaskUrl, ModelUrl, VideoUrl
from gateway.security.signing import SignedFileNames, Signer
from gateway.storage.base import NoRoom, StorageError
from gateway.storage.local import LocalStorage
from gateway.tool import ToolParams
from gpu_server.protocol import InputFile
from tests.support.reading import data_uri, picture

JOB = "01890000-0000-7000-8000-000000000000"
PUBLIC = "https://media.example.com/gw"
MEBIBYTE = 1024 * 1024


class Params(ToolParams):
    image_url: ImageUrl | None = None
    mask_url: MaskUrl | None = None
    video_url: VideoUrl | None = None
    model_url: ModelUrl | None = None
    face_images: Annotated[tuple[ImageUrl, ...], Field(max_length=5)] = ()


@dataclass
class Files:
    """The artifacts of callers."""

    owned: dict[tuple[str, str], Artifact] = field(default_factory=dict)

    async def file_of(self, caller: str, filename: str) -> Artifact | None:
        return self.owned.get((caller, filename))

    def add(self, filename: str, media_type: str = "image/png", caller: str = "alice") -> Artifact:
        made = Artifact(
            job_id=JOB,
            output="images",
            n=0,
            key=f"generated/2026/03/09/{JOB}/{filename}",
            filename=filename,
            media_type=media_type,
            bytes=5,
            sha256="a" * 64,
        )
        self.owned[caller, filename] = made
        return made


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path, Signer(bytes(32)), "http://127.0.0.1:8000")


@pytest.fixture
def inputs(files: Files, storage: LocalStorage) -> Inputs:
    return Inputs(
        files=files,
        storage=storage,
        names=SignedFileNames(Signer(bytes(32))),
        clock=SystemClock(),
        paths=frozenset({"/api/images", "/api/masks"}),
        own=(PUBLIC, "http://127.0.0.1:8000", "http://localhost:8000"),
        max_inline_mb=1,
    )


async def only(inputs: Inputs, **params: Any) -> Source | Inline:
    found = await inputs.check(Params(**params), "alice")
    ((one,),) = found.values()
    return one


async def refused(inputs: Inputs, **params: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidParameters) as caught:
        await inputs.check(Params(**params), "alice")
    return [(error.field, error.code) for error in caught.value.errors]


@pytest.mark.parametrize(
    "address",
    [
        "/api/images/mug.png",
        "/api/images/mug.png?expires=1&signature=x",
        "/api/masks/mug.png",
        f"{PUBLIC}/api/images/mug.png",
        f"{PUBLIC}/api/images/mug.png?expires=1",
        "http://127.0.0.1:8000/api/images/mug.png",
        "http://LOCALHOST:8000/api/images/mug.png",
        f"local://files/generated/2026/03/09/{JOB}/mug.png",
    ],
)
async def test_a_file_of_ours_is_known_by_every_address_it_was_given_out_under(
    inputs: Inputs, files: Files, address: str
) -> None:
    made = files.add("mug.png")
    assert await only(inputs, image_url=address) == Source(
        key=made.key, media_type="image/png", sha256=made.sha256, bytes=5
    )


@pytest.mark.parametrize(
    "address",
    [
        "/api/images/none.png",
        "/api/images/",
        "/api/slots/mug.png",
        "/api/jobs/mug.png",
        "/api/images/../images/mug.png",
        "/api/images/bob.png",
        f"{PUBLIC}/api/slots/generated/2026/03/09/{JOB}/mug.png",
        "http://127.0.0.1:8000/healthz",
        f"local://files/generated/2026/03/10/{JOB}/mug.png",
        "local://files/mug.png",
        "local://elsewhere/mug.png",
        "local://files/../../etc/passwd",
    ],
)
async def test_what_is_no_file_of_this_caller_is_refused_alike(
    inputs: Inputs, files: Files, address: str
) -> None:
    files.add("mug.png")
    files.add("bob.png", caller="bob")
    assert await refused(inputs, image_url=address) == [("image_url", "unknown_file")]


async def test_a_file_that_was_removed_is_refused(inputs: Inputs, files: Files) -> None:
    made = files.add("mug.png")
    files.owned["alice", "mug.png"] = replace(made, removed_at=datetime.now(UTC))
    assert await refused(inputs, image_url="/api/images/mug.png") == [("image_url", "file_removed")]


@pytest.mark.parametrize(
    ("media_type", "fits"),
    [
        ("image/png", {"image_url", "mask_url"}),
        ("video/mp4", {"video_url"}),
        ("model/gltf-binary", {"model_url"}),
        ("text/plain", set[str]()),
    ],
)
async def test_a_file_of_another_kind_is_refused(
    inputs: Inputs, files: Files, media_type: str, fits: set[str]
) -> None:
    files.add("a.bin", media_type)
    for param in ("image_url", "mask_url", "video_url", "model_url"):
        sent = {param: "/api/images/a.bin"}
        if param in fits:
            assert isinstance(await only(inputs, **sent), Source)
        else:
            assert await refused(inputs, **sent) == [(param, "wrong_kind")]


async def test_every_wrong_address_is_named_with_its_place(inputs: Inputs, files: Files) -> None:
    files.add("mug.png")
    faces = ("/api/images/mug.png", "http://10.0.0.1/a.png", "r2://bucket/key")
    assert await refused(inputs, image_url="/api/images/x", face_images=faces) == [
        ("image_url", "unknown_file"),
        ("face_images.1", "url_refused"),
        ("face_images.2", "no_such_store"),
    ]


@pytest.mark.parametrize(
    ("param", "address", "media_type"),
    [
        ("image_url", "https://example.com/a.jpg?x=1", "image/jpeg"),
        ("image_url", "https://example.com/a", "image/png"),
        ("image_url", "http://example.com/a.mp4", "image/png"),
        ("video_url", "https://example.com/a.webm", "video/webm"),
        ("model_url", "https://example.com/a", "model/gltf-binary"),
    ],
)
async def test_a_foreign_address_is_kept_as_it_is(
    inputs: Inputs, param: str, address: str, media_type: str
) -> None:
    assert await only(inputs, **{param: address}) == Source(url=address, media_type=media_type)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:9000/a.png",
        "http://127.1/a.png",
        "http://2130706433/a.png",
        "http://[::1]/a.png",
        "http://192.168.1.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost/a.png",
        "http://user:password@example.com/a.png",
        "http://example.com:99999/a.png",
        "https://[/a.png",
        "http://xn--/a.png",
        "https://XN--0.com/a.png",
    ],
)
async def test_where_nothing_is_ever_fetched_from_is_refused_at_once(
    inputs: Inputs, address: str
) -> None:
    assert await refused(inputs, image_url=address) == [("image_url", "url_refused")]


@pytest.mark.parametrize("scheme", ["r2", "s3", "gs", "S3"])
async def test_a_store_that_is_not_configured_is_said_to_be_none(
    inputs: Inputs, scheme: str
) -> None:
    assert await refused(inputs, mask_url=f"{scheme}://bucket/key") == [
        ("mask_url", "no_such_store")
    ]


@pytest.mark.parametrize(
    ("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")]
)
async def test_a_picture_inside_the_call_is_what_its_content_is(
    inputs: Inputs, kind: str, media_type: str
) -> None:
    data = picture(kind=kind)
    # what the sender calls it proves nothing
    found = await only(inputs, image_url=data_uri(data, "text/plain"))
    assert found == Inline(media_type=media_type, data=data)


async def test_percent_signs_in_a_data_uri_are_understood(inputs: Inputs) -> None:
    data = picture()
    sent = data_uri(data).replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    assert await only(inputs, image_url=sent.replace("image%2F", "image/")) == Inline(
        media_type="image/png", data=data
    )


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "no base64": (lambda: "data:image/svg+xml,<svg/>", "not_base64"),
    "no comma": (lambda: "data:image/png;base64", "not_base64"),
    "no comma for long": (lambda: "data:" + "x" * 5000, "not_base64"),
    "not in the alphabet": (lambda: "data:image/png;base64,%%%", "not_base64"),
    "not ASCII": (lambda: "data:image/png;base64,ä", "not_base64"),
    "cut off": (lambda: data_uri(picture())[:-3], "not_base64"),
    "empty": (lambda: "data:image/png;base64,", "wrong_kind"),
    "a web page": (lambda: data_uri(b"<html>"), "wrong_kind"),
    "a video": (lambda: data_uri(b"\0\0\0\x18ftypisom"), "wrong_kind"),
    "a header alone": (lambda: data_uri(picture()[:10]), "unreadable_image"),
    "too many bytes": (lambda: data_uri(picture() + bytes(MEBIBYTE)), "too_large"),
    "too many pixels": (
        lambda: data_uri(
            picture()[:16] + (MAX_PIXELS // 2).to_bytes(4) + (3).to_bytes(4) + picture()[24:]
        ),
        "too_large",
    ),
}


@pytest.mark.parametrize(("make", "code"), BAD.values(), ids=BAD)
async def test_a_data_uri_that_holds_no_picture_is_refused(
    inputs: Inputs, make: Callable[[], str], code: str
) -> None:
    assert await refused(inputs, image_url=make()) == [("image_url", code)]


async def test_a_file_of_exactly_the_limit_is_taken(inputs: Inputs) -> None:
    data = picture()
    whole = data + bytes(MEBIBYTE - len(data))
    assert await only(inputs, image_url=data_uri(whole)) == Inline(
        media_type="image/png", data=whole
    )


STARTS = ["https://", "http://[", "http://a@", "data:", "data:image/png;base64,", "local://files/"]
STARTS += ["/api/images/", "/", "http://127.0.0.1:8000/", f"{PUBLIC}/", "r2://", "http://1.", ""]


@given(start=st.sampled_from(STARTS), rest=st.text(st.characters(codec=None), max_size=40))
@example(start="https://", rest="exa\ud800mple.com/a.png")
@example(start="https://example.com/", rest="\ud800")
@example(start="https://example.com:", rest="99999999999999999999")
@example(start="data:image/png;base64,", rest="%ff%")
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_address_however_odd_is_an_error_of_ours(
    inputs: Inputs, start: str, rest: str
) -> None:
    try:
        params = Params(image_url=start + rest)
    except ValidationError:
        return
    try:
        found = await inputs.check(params, "alice")
    except InvalidParameters as refused:
        json.dumps([error.model_dump() for error in refused.errors]).encode()
    else:
        ((one,),) = found.values()
        assert isinstance(one, Source)
        # what is kept goes into a row and onto the wire
        InputFile(url=one.url or "", media_type=one.media_type).model_dump_json()


async def test_what_came_inside_a_call_is_stored_for_its_job(
    inputs: Inputs, storage: LocalStorage, files: Files
) -> None:
    files.add("mug.png")
    red, blue = picture("red"), picture("blue", kind="JPEG")
    job_id = new_job_id()
    faces = (data_uri(red), "/api/images/mug.png", data_uri(blue), data_uri(red))
    checked = await inputs.check(Params(face_images=faces), "alice")
    kept = (await inputs.keep(checked, job_id))["face_images"]
    assert [source.stored for source in kept] == [True, False, True, True]
    assert kept[1].key == files.owned["alice", "mug.png"].key
    assert len({source.key for source in kept}) == 4
    for source, data in zip((kept[0], kept[2]), (red, blue), strict=True):
        assert source.key is not None
        assert source.key.startswith("inputs/")
        assert f"/{job_id}/" in source.key
        assert b"".join([piece async for piece in storage.read(source.key)]) == data
        assert source.sha256 == hashlib.sha256(data).hexdigest()
        assert source.bytes == len(data)
    assert (kept[2].media_type, (kept[2].key or "")[-4:]) == ("image/jpeg", ".jpg")

    await inputs.discard({"face_images": kept})
    assert [await storage.stat(s.key or "") for s in kept if s.stored] == [None] * 3


async def test_a_large_file_inside_a_call_is_stored_whole(
    inputs: Inputs, storage: LocalStorage
) -> None:
    large = replace(inputs, max_inline_mb=3)
    data = picture() + bytes(range(256)) * 10_000
    checked = await large.check(Params(image_url=data_uri(data)), "alice")
    (source,) = (await large.keep(checked, JOB))["image_url"]
    assert b"".join([piece async for piece in storage.read(source.key or "")]) == data


async def test_a_full_disk_and_a_store_that_is_away_are_told_apart(
    inputs: Inputs, storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = await inputs.check(Params(image_url=data_uri(picture())), "alice")
    fault: StorageError = NoRoom("full")

    async def failing(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(storage, "write", failing)
    with pytest.raises(StorageFull):
        await inputs.keep(checked, JOB)
    fault = StorageError("away")
    with pytest.raises(StorageError):
        await inputs.keep(checked, JOB)


async def test_what_cannot_be_discarded_is_left_to_the_sweep(
    inputs: Inputs,
    storage: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(_: str) -> None:
        raise StorageError("away")

    monkeypatch.setattr(storage, "delete", failing)
    await inputs.discard({"image_url": (Source(media_type="image/png", key="k", stored=True),)})
    assert "stay for the sweep" in caplog.text


def test_the_files_of_a_call_may_be_as_long_as_their_base64() -> None:
    longest = len(data_uri(bytes(MEBIBYTE)))
    assert largest_files(Params, 1) >= 9 * longest
    assert largest_files(Params, 1) < 9 * (longest + 500)
    assert largest_files(ToolParams, 10) == 0
