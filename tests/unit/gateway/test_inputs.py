import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.errors import InvalidParameters
from gateway.inputs import Inputs
from gateway.job import Source
from gpu_server.protocol import InputFile
from tests.support.caller_files import JOB, PUBLIC, Files, Params, Uploaded, only, refused


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


@pytest.mark.parametrize(
    "address",
    [
        "/api/uploads/mug.png",
        "/api/uploads/mug.png?expires=1&signature=x",
        f"{PUBLIC}/api/uploads/mug.png",
        "http://localhost:8000/api/uploads/mug.png?expires=1",
        f"local://files/uploads/2026/03/09/{JOB}/mug.png",
        f"LOCAL://files/uploads/2026/03/09/{JOB}/mug.png",
    ],
)
async def test_an_upload_is_known_by_every_address_it_was_given_out_under(
    inputs: Inputs, uploads: Uploaded, address: str
) -> None:
    made = uploads.add("mug.png")
    assert await only(inputs, image_url=address) == Source(
        key=made.key, media_type="image/png", sha256=made.sha256, bytes=5, size=(4, 3)
    )


async def test_an_upload_is_its_callers_of_its_kind_and_for_its_time(
    inputs: Inputs, uploads: Uploaded
) -> None:
    uploads.add("bob.png", caller="bob")
    uploads.add("film.mp4", media_type="video/mp4")
    uploads.add("old.png", expires_at=datetime(2026, 3, 10, tzinfo=UTC))
    uploads.add("mug.png")
    for name, code in (
        ("bob.png", "unknown_file"),
        ("none.png", "unknown_file"),
        ("", "unknown_file"),
        ("film.mp4", "wrong_kind"),
        ("old.png", "file_removed"),
        ("mug.png/x", "unknown_file"),
    ):
        assert await refused(inputs, image_url=f"/api/uploads/{name}") == [("image_url", code)]
    # under another key than its own, and under the route of results
    other = f"local://files/uploads/2026/03/08/{JOB}/mug.png"
    for address in (other, "/api/images/mug.png"):
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
        "http://example.com:8080/a.png",
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
