"""What holds of buckets alone: who may do what, what a refusal says, what else lies in a bucket."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.storage.base import Storage, StorageError
from gateway.storage.s3 import S3Storage
from tests.conformance.storage.conftest import (
    PROJECT,
    Place,
    bucket_at,
    of_buckets,
    of_moto,
    of_rclone,
)
from tests.conformance.storage.test_sizes import MIB, made
from tests.conformance.storage.test_storage import HOUR, KEY, content, listed, put, read

ODD_KEYS = (
    "",
    "/",
    "a.png",
    KEY.upper(),
    KEY.replace("0a1b2c", "größe"),
    KEY.replace("0a1b2c", "猫"),
    KEY.replace("0a1b2c", "a b"),
    KEY.replace("0a1b2c", "..%2fa"),
    f"../{KEY}",
    f"/{KEY}",
    f"{PROJECT}/../{KEY}",
    f"{KEY}?x=1",
    f"{KEY}\n",
)

CALLS: dict[str, Callable[[Storage], Awaitable[object]]] = {
    "stat": lambda storage: storage.stat(KEY),
    "read": lambda storage: anext(aiter(storage.read(KEY))),
    "write": lambda storage: storage.write(KEY, "image/png", made(5)),
    "write in parts": lambda storage: storage.write(KEY, "image/png", made(9 * MIB)),
    "delete": lambda storage: storage.delete(KEY),
    "pages": lambda storage: anext(aiter(storage.pages())),
}


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_what_is_no_key_is_refused(place: Place, key: str) -> None:
    for refused in (place.storage.slot, place.storage.link):
        with pytest.raises(StorageError, match="not a storage key"):
            refused(key, HOUR)
    with pytest.raises(StorageError, match="not a storage key"):
        await place.storage.write(key, "image/png", made(5))
    with pytest.raises(KeyError):
        await read(place, key)
    assert await place.storage.stat(key) is None
    await place.storage.delete(key)


@of_buckets
async def test_a_download_is_called_what_the_link_says_in_any_language(place: Place) -> None:
    await place.storage.write(KEY, "image/png", made(5))
    # "größe 猫 & co.png" as RFC 6266 writes it
    name = "attachment; filename=\"a & b%.png\"; filename*=UTF-8''gr%C3%B6%C3%9Fe%20%E7%8C%AB.png"
    link = place.storage.link(KEY, HOUR, disposition=name)
    answer = await place.http.get(link)
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == name
    altered = link.replace("attachment", "inline")
    assert altered != link
    if place.bucket.kind == "rclone":
        assert (await place.http.get(altered)).status_code == 403


@of_buckets
async def test_an_address_shows_the_project_and_leads_back_to_the_key(place: Place) -> None:
    assert isinstance(place.storage, S3Storage)
    address = place.storage.address(KEY)
    assert address == f"s3://{place.bucket.bucket}/{PROJECT}/{KEY}"
    for own in (address, place.storage.link(KEY, HOUR), place.storage.slot(KEY, HOUR)):
        assert place.storage.key_of(own) == KEY
    foreign = (
        address.replace(PROJECT, "another"),
        address.replace("s3://", "gs://"),
        address.replace(place.bucket.bucket, "elsewhere"),
        f"{address}/../{KEY}",
        f"https://example.com/{PROJECT}/{KEY}",
        f"http://[{place.bucket.bucket}/{PROJECT}/{KEY}",
        f"{place.bucket.endpoint}@example.com/{place.bucket.bucket}/{PROJECT}/{KEY}",
        f"{place.bucket.endpoint}/{place.bucket.bucket}/{PROJECT}/../{KEY}",
        "",
    )
    assert [place.storage.key_of(address) for address in foreign] == [None] * len(foreign)


@of_buckets
async def test_links_hold_no_secret_and_last_seven_days_at_most(place: Place) -> None:
    for signed in (place.storage.slot, place.storage.link):
        url = signed(KEY, timedelta(days=30))
        asked = parse_qs(urlsplit(url).query)
        assert asked["X-Amz-Expires"] == [str(7 * 86_400)]
        assert asked["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
        assert asked["X-Amz-SignedHeaders"] == ["host"]
        assert place.bucket.secret_access_key not in url
        assert url.count(place.bucket.access_key_id) == 1  # in the scope of the credential


@of_rclone
async def test_a_link_with_another_signature_gives_nothing(place: Place) -> None:
    await put(place, KEY, b"abc")
    link = place.storage.link(KEY, HOUR)
    head, _, signature = link.rpartition("=")
    wrong = f"{head}={'0' * len(signature)}"
    for address in (wrong, head, link.partition("?")[0], link.replace("Expires=3600", "Expires=9")):
        answer = await place.http.get(address)
        assert answer.status_code in {400, 403}, address
        assert answer.content != b"abc"


@of_rclone
async def test_a_slot_compares_the_body_with_its_md5(place: Place) -> None:
    def md5(data: bytes) -> dict[str, str]:
        return {"Content-MD5": base64.b64encode(hashlib.md5(data).digest()).decode()}

    slot = place.storage.slot(KEY, HOUR)
    refused = await place.http.put(slot, content=b"abc", headers=md5(b"abd"))
    assert refused.status_code == 400
    assert await place.storage.stat(KEY) is None
    assert (await place.http.put(slot, content=b"abc", headers=md5(b"abc"))).is_success
    stored = await place.storage.stat(KEY)
    assert stored is not None
    assert stored.md5 == hashlib.md5(b"abc").hexdigest()


@of_rclone
@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_secret_is_told_without_telling_it(place: Place, call: str) -> None:
    secret = "another-secret-no-text-may-show"
    storage = S3Storage(bucket_at(place.bucket, secret=secret), project=PROJECT)
    async with storage.running():
        with pytest.raises(StorageError) as caught:
            await CALLS[call](storage)
        trouble = await storage.trouble()
    assert trouble is not None
    for said in (str(caught.value), trouble, repr(storage), repr(bucket_at(place.bucket))):
        assert "secret-no-text-may-show" not in said
        assert place.bucket.access_key_id not in said
        assert "X-Amz" not in said
    assert "secret access key does not fit" in trouble


@of_buckets
@pytest.mark.parametrize("call", CALLS)
async def test_a_bucket_that_is_not_there_is_told(place: Place, call: str) -> None:
    storage = S3Storage(bucket_at(place.bucket, name="no-such-bucket"), project=PROJECT)
    async with storage.running():
        with pytest.raises(StorageError, match="bucket does not exist"):
            await CALLS[call](storage)
        assert "the bucket does not exist" in (await storage.trouble() or "")


@of_buckets
async def test_a_store_that_is_away_is_told_and_used_again_when_it_is_back(place: Place) -> None:
    await put(place, KEY, b"abc")
    await asyncio.to_thread(place.bucket.stop)
    try:
        for call in CALLS.values():
            with pytest.raises(StorageError, match="cannot be reached"):
                await call(place.storage)
        assert isinstance(place.storage, S3Storage)
        assert "cannot be reached" in (await place.storage.trouble() or "")
    finally:
        await asyncio.to_thread(place.bucket.start)
    assert await read(place, KEY) == b"abc"


@of_buckets
async def test_more_than_a_thousand_keys_are_listed_page_by_page(place: Place) -> None:
    folder = KEY.rpartition("/")[0]
    keys = {f"{folder}/{n:04}.png" for n in range(1005)}
    several = asyncio.Semaphore(10)

    async def one(key: str) -> None:
        async with several:
            assert (await put(place, key, b"a")).is_success

    await asyncio.gather(*map(one, keys))
    pages = [page async for page in place.storage.pages()]
    assert len(pages) > 1
    assert {file.key for page in pages for file in page} == keys


@of_buckets
async def test_what_else_lies_in_the_bucket_is_not_listed(place: Place) -> None:
    await put(place, KEY, b"abc")
    client = place.bucket.client()
    for name in (f"another/{KEY}", KEY, f"{PROJECT}/readme.txt", f"{PROJECT}2/{KEY}", "größe.png"):
        client.put_object(Bucket=place.bucket.bucket, Key=name, Body=b"x")
    assert set(await listed(place)) == {KEY}


@of_moto
async def test_a_part_by_link_is_206_and_what_is_unchanged_304(place: Place) -> None:
    data = content(100)
    await put(place, KEY, data)
    link = place.storage.link(KEY, HOUR)
    part = await place.http.get(link, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["content-range"] == "bytes 10-19/100"
    same = await place.http.get(link, headers={"If-None-Match": part.headers["etag"]})
    assert same.status_code == 304
    behind = await place.http.get(link, headers={"Range": "bytes=100-"})
    assert behind.status_code == 416


@of_rclone
async def test_a_part_by_link_may_come_as_200_and_is_still_that_part(place: Place) -> None:
    data = content(100)
    await put(place, KEY, data)
    part = await place.http.get(place.storage.link(KEY, HOUR), headers={"Range": "bytes=10-19"})
    assert part.headers["content-range"] == "bytes 10-19/100"
    assert part.content == data[10:20]
