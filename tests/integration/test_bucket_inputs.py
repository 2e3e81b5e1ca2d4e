"""Files in buckets as inputs, through real processes: ours, those all may name, and no others."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.reading import colour_of, picture
from tests.support.s3 import S3Server, rclone
from tests.support.stack import Stack, wait_ready

MINUTE_S = 60
DOUBLED = (64, 32)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone(tmp_path_factory.mktemp("buckets")) as server:
        yield server


@pytest.fixture(scope="module")
def shared(bucket: S3Server) -> S3Server:
    """A bucket with a folder that everybody may read."""
    made = bucket.new_bucket()
    for key in ("pictures/mug 1.png", "private/mug.png"):
        made.client().put_object(Bucket=made.bucket, Key=key, Body=picture("green"))
    return made


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, bucket: S3Server, shared: S3Server
) -> Iterator[Stack]:
    settings = {"PROJECT_NAME": "mugs", "INPUT_BUCKETS": f"s3://{shared.bucket}/pictures"}
    stack = Stack(tmp_path_factory.mktemp("stack"), **bucket.env(), **settings)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        wait_ready(client, "checkpoint")
        yield client


def upscaled(client: httpx.Client, address: str) -> httpx.Response:
    body = {"image_url": address, "scale": 2, "variant": "realesrgan"}
    return client.post("/api/upscale", json=body)


def code(answer: httpx.Response) -> str:
    assert answer.status_code == 422, answer.text
    return str(answer.json()["errors"][0]["code"])


@pytest.fixture
def card(client: httpx.Client) -> dict[str, Any]:
    sent = {"file": ("mug.png", picture("green"), "image/png")}
    answer = client.post("/api/media/upload", files=sent)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def presigned(server: S3Server, key: str) -> str:
    """An address as its owner gets it of the store."""
    client = server.client()
    named = {"Bucket": server.bucket, "Key": key}
    return str(client.generate_presigned_url("get_object", Params=named, ExpiresIn=MINUTE_S))


def test_a_file_in_our_bucket_is_its_callers_by_every_address(
    client: httpx.Client, bucket: S3Server, card: dict[str, Any]
) -> None:
    address = card["address"]
    assert address.startswith(f"s3://{bucket.bucket}/mugs/uploads/")
    key = urlsplit(address).path.lstrip("/")
    for each in (address, presigned(bucket, key), card["media_url"]):
        answer = upscaled(client, each)
        assert answer.status_code == 200, answer.text
        made = client.get(answer.json()["image_url"])
        assert colour_of(made.content)[0] == DOUBLED
        # and a result is the next one's input
        again = upscaled(client, answer.json()["r2_path"])
        assert again.status_code == 200, again.text


def test_what_lies_in_our_bucket_without_being_the_callers_is_not_read(
    client: httpx.Client, bucket: S3Server, card: dict[str, Any]
) -> None:
    name = card["address"].rpartition("/")[2]
    other = card["address"].replace(name, "0" * 32 + ".png")
    unknown = (
        other,
        other.replace("/mugs/", "/others/"),
        f"s3://{bucket.bucket}/",
        f"s3://{bucket.bucket}/mugs/../secret.png",
        card["address"] + "?versionId=1",
        presigned(bucket, urlsplit(other).path.lstrip("/")),
    )
    for address in unknown:
        assert code(upscaled(client, address)) == "unknown_file", address


def test_a_bucket_everybody_may_read_is_read_within_its_folder(
    client: httpx.Client, shared: S3Server
) -> None:
    for key in ("pictures/mug%201.png", "pictures/mug 1.png".replace(" ", "%20")):
        answer = upscaled(client, f"s3://{shared.bucket}/{key}")
        assert answer.status_code == 200, answer.text
    for key in ("private/mug.png", "pictures/../private/mug.png", "pictures%2f..%2fprivate"):
        assert code(upscaled(client, f"s3://{shared.bucket}/{key}")) == "no_such_store"
    missing = upscaled(client, f"s3://{shared.bucket}/pictures/none.png")
    assert (missing.status_code, missing.json()["code"]) == (422, "file_not_found")
    assert missing.json()["detail"] == "image_url: there is no such file in the bucket"


def test_the_stores_own_address_is_nobodys_to_name(
    client: httpx.Client, bucket: S3Server, shared: S3Server
) -> None:
    for address in (
        f"{bucket.endpoint}/",
        f"{bucket.endpoint}/minio/health/live",
        f"{bucket.endpoint}/{shared.bucket}/private/mug.png",
        presigned(shared, "private/mug.png"),
    ):
        assert code(upscaled(client, address)) == "url_refused", address
