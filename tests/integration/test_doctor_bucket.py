"""Doctor and a bucket: one that works, and each way in which one does not."""

import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.doctor import bucket
from gateway.doctor.findings import Report
from tests.support.asgi import serving
from tests.support.doctor import doctored, everything, found, told
from tests.support.s3 import S3Server, moto, rclone
from tests.support.stack import free_port

EACH = ("reachable", "clock", "put", "head", "read", "signed GET", "wrong signature")
WORKING = {*EACH, "signed PUT", "delete", "broken uploads"}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


@pytest.fixture
def server(servers: S3Server) -> S3Server:
    """An rclone with a bucket of the test's own."""
    return servers.new_bucket()


async def looked(folder: Path, server: S3Server, **changes: Any) -> Report:
    return await doctored(folder, **{**server.env(), **changes})


def storage(report: Report) -> dict[str, str]:
    return {f.check: f.verdict for f in report.findings if f.group == "storage"}


async def test_a_bucket_that_works_passes_every_check_and_keeps_nothing(
    tmp_path: Path, server: S3Server
) -> None:
    seen = await looked(tmp_path, server, project_name="studio")
    assert storage(seen) == dict.fromkeys(WORKING, "ok")
    assert f"s3://{server.bucket}/studio/doctor/" in told(found(seen, "storage", "put"))
    assert server.keys() == []
    assert server.secret_access_key not in everything(seen)
    assert "not needed" in told(found(seen, "gateway", "PUBLIC_URL"))


async def test_a_bucket_that_is_missing_is_named(tmp_path: Path, server: S3Server) -> None:
    seen = await looked(tmp_path, server, storage_url="s3://no-such-bucket")
    finding = found(seen, "storage", "reachable")
    assert finding.verdict == "failed"
    assert "no bucket no-such-bucket" in finding.said
    assert "STORAGE_URL" in told(finding)


async def test_a_wrong_secret_and_a_wrong_key_are_told_apart(
    tmp_path: Path, server: S3Server
) -> None:
    seen = await looked(tmp_path, server, s3_secret_access_key="a-secret-of-another-store")
    finding = found(seen, "storage", "reachable")
    assert finding.verdict == "failed"
    assert "S3_SECRET_ACCESS_KEY" in told(finding)
    assert "a-secret-of-another-store" not in everything(seen)
    seen = await looked(tmp_path, server, s3_access_key_id="another-key")
    assert "S3_ACCESS_KEY_ID" in told(found(seen, "storage", "reachable"))


async def test_an_endpoint_where_nobody_listens_is_said(tmp_path: Path, server: S3Server) -> None:
    seen = await looked(tmp_path, server, s3_endpoint_url=f"http://127.0.0.1:{free_port()}")
    finding = found(seen, "storage", "reachable")
    assert finding.verdict == "failed"
    assert "S3_ENDPOINT_URL" in told(finding)


async def test_settings_of_the_store_that_are_missing_are_named(tmp_path: Path) -> None:
    seen = await doctored(tmp_path, storage_url="r2://pictures")
    finding = found(seen, "storage", "settings")
    for name in ("R2_ENDPOINT_URL", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
        assert name in finding.said


async def test_uploads_that_broke_off_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "LEFT_AFTER", timedelta(hours=-1))
    with moto() as server:
        key = f"uploads/2026/01/02/{'0' * 8}-0000-4000-8000-{'0' * 12}/{secrets.token_hex(8)}.bin"
        for _ in range(3):
            server.client().create_multipart_upload(Bucket=server.bucket, Key=key)
        seen = await looked(tmp_path, server)
        assert found(seen, "storage", "broken uploads").said.startswith("3 uploads")
        # moto takes any signature, which must not pass for a store that is private
        assert found(seen, "storage", "wrong signature").verdict == "failed"
        assert server.keys() == []


async def test_input_buckets_are_tried_each(tmp_path: Path, server: S3Server) -> None:
    other = server.new_bucket()
    seen = await looked(
        tmp_path, server, input_buckets=f"s3://{other.bucket}/catalogue/,s3://no-such-bucket"
    )
    assert found(seen, "storage", f"s3://{other.bucket}/catalogue/").verdict == "ok"
    assert "no bucket" in found(seen, "storage", "s3://no-such-bucket").said


@pytest.fixture
async def odd(server: S3Server) -> AsyncIterator["Between"]:
    """The server behind something that spoils what passes."""
    between = Between(server.endpoint)
    async with httpx.AsyncClient(trust_env=False) as http, serving(between) as url:
        between.http, between.url = http, url
        yield between


class Between:
    """Passes requests on as they are, signatures included, but for what a test spoils."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.url = ""
        self.http: httpx.AsyncClient | None = None
        self.date: str | None = None
        self.refused: set[str] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        assert self.http is not None
        if scope["method"] in self.refused:
            status, headers = 403, {"content-type": "application/xml"}
            content = b"<Error><Code>AccessDenied</Code></Error>"
        else:
            query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
            answer = await self.http.request(
                scope["method"],
                f"{self.endpoint}{scope['raw_path'].decode()}{query}",
                headers=[(name.decode(), value.decode()) for name, value in scope["headers"]],
                content=body,
            )
            status, content = answer.status_code, answer.content
            headers = {k: v for k, v in answer.headers.items() if k != "transfer-encoding"}
        if self.date is not None:
            headers["date"] = self.date
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        sent = b"" if scope["method"] == "HEAD" else content
        await send({"type": "http.response.body", "body": sent})


async def test_a_clock_that_is_off_is_said(tmp_path: Path, server: S3Server, odd: Between) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    odd.date = ahead.strftime("%a, %d %b %Y %H:%M:%S GMT")
    seen = await looked(tmp_path, server, s3_endpoint_url=odd.url)
    finding = found(seen, "storage", "clock")
    assert finding.verdict == "failed"
    assert "behind the store's" in finding.said
    assert server.keys() == []


async def test_a_key_that_may_not_delete_is_told_what_was_left(
    tmp_path: Path, server: S3Server, odd: Between
) -> None:
    odd.refused = {"DELETE"}
    seen = await looked(tmp_path, server, s3_endpoint_url=odd.url)
    finding = found(seen, "storage", "delete")
    assert finding.verdict == "failed"
    left = server.keys()
    assert left
    assert all(key in finding.said for key in left)
    assert "read, write, list and delete" in told(finding)


async def test_a_key_that_may_only_read_fails_at_put(
    tmp_path: Path, server: S3Server, odd: Between
) -> None:
    odd.refused = {"PUT", "POST"}
    seen = await looked(tmp_path, server, s3_endpoint_url=odd.url)
    assert "S3_ACCESS_KEY_ID" in told(found(seen, "storage", "put"))
    assert storage(seen)["reachable"] == "ok"
    assert server.keys() == []
