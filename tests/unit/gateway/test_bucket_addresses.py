"""Addresses of files in buckets, as callers write them."""

import pytest

from gateway.storage.addresses import NotAnAddress, parse

LONGEST = "k" * 1024


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "key"),
    [
        ("r2://pictures/a.png", "r2", "pictures", "a.png"),
        ("s3://my.bucket-1/a/b/c.png", "s3", "my.bucket-1", "a/b/c.png"),
        ("gs://bucket_2/a.png", "gs", "bucket_2", "a.png"),
        ("GS://bucket/a.png", "gs", "bucket", "a.png"),
        ("https://storage.googleapis.com/bucket/a/b.png", "gs", "bucket", "a/b.png"),
        ("HTTPS://Storage.GoogleAPIs.com:443/bucket/b.png", "gs", "bucket", "b.png"),
        ("s3://bucket/with space.png", "s3", "bucket", "with space.png"),
        ("s3://bucket/with%20space.png", "s3", "bucket", "with space.png"),
        ("s3://bucket/gr%C3%B6%C3%9Fe.png", "s3", "bucket", "größe.png"),
        ("s3://bucket/größe 猫.png", "s3", "bucket", "größe 猫.png"),
        ("s3://bucket/a%2520b.png", "s3", "bucket", "a%20b.png"),
        ("s3://bucket/a%3Fb%23c.png", "s3", "bucket", "a?b#c.png"),
        ("s3://bucket/a@b:c.png", "s3", "bucket", "a@b:c.png"),
        ("s3://bucket/...", "s3", "bucket", "..."),
        (f"s3://bucket/{LONGEST}", "s3", "bucket", LONGEST),
    ],
)
def test_an_address_is_read_and_written_in_one_way(
    text: str, scheme: str, bucket: str, key: str
) -> None:
    found = parse(text)
    assert (found.scheme, found.bucket, found.key) == (scheme, bucket, key)
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r2",
        "r2:",
        "r2://",
        "r2://bucket",
        "r2://bucket/",
        "r2:///a.png",
        "r2://b/a.png",
        "r2://Bucket/a.png",
        "r2://bucket:9000/a.png",
        "r2://key:secret@bucket/a.png",
        "r2://buc%6bet/a.png",
        "r2://-bucket/a.png",
        "s3://bucket/a.png?versionId=1",
        "s3://bucket/a.png#part",
        "s3://bucket//a.png",
        "s3://bucket/a//b.png",
        "s3://bucket/a/",
        "s3://bucket/../other/a.png",
        "s3://bucket/a/..",
        "s3://bucket/./a.png",
        "s3://bucket/%2e%2e/a.png",
        "s3://bucket/a%2F..%2Fb.png",
        "s3://bucket/a\\b.png",
        "s3://bucket/a%5Cb.png",
        "s3://bucket/a%00.png",
        "s3://bucket/a\n.png",
        "s3://bucket/a%0d%0aHost:x",
        "s3://bucket/a\u202egnp.exe",
        "s3://bucket/100%.png",
        "s3://bucket/a%zz.png",
        "s3://bucket/%ff.png",
        f"s3://bucket/{LONGEST}k",
        f"s3://bucket/{'ö' * 513}",
        "ftp://bucket/a.png",
        "file:///etc/passwd",
        "local://files/a.png",
        "http://storage.googleapis.com/bucket/a.png",
        "https://storage.googleapis.com/a.png",
        "https://storage.googleapis.com.example.com/bucket/a.png",
        "https://storage.googleapis.com@example.com/bucket/a.png",
        "https://key@storage.googleapis.com/bucket/a.png",
        "https://storage.googleapis.com:8443/bucket/a.png",
        "https://storage.googleapis.com/bucket/a.png?X-Goog-Signature=1",
    ],
)
def test_whatever_could_be_read_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(NotAnAddress) as caught:
        parse(text)
    assert "secret" not in str(caught.value)
