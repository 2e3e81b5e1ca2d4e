"""A gateway whose files lie in a bucket: at its start, at work, and while the store is away."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import PNG, SMALL, Gateway, gateway
from tests.support.s3 import S3Server, rclone


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with rclone(tmp_path / "buckets") as running:
        yield running


def settings_for(server: S3Server, **changed: str) -> dict[str, Any]:
    values = {"PROJECT_NAME": "studio", **server.env(), **changed}
    return {name.lower(): value for name, value in values.items()}


async def generated(at: Gateway) -> dict[str, str]:
    answer = await at.http.post("/api/generate", json=SMALL)
    assert answer.status_code == 200, answer.text
    result: dict[str, str] = answer.json()
    return result


async def test_a_result_lies_in_the_bucket_and_comes_back_by_its_route(
    tmp_path: Path, server: S3Server
) -> None:
    async with gateway(tmp_path / "work", **settings_for(server)) as at:
        result = await generated(at)
        (key,) = await asyncio.to_thread(server.keys)
        assert key.startswith("studio/generated/")
        assert result["r2_path"] == f"s3://{server.bucket}/{key}"
        assert (await at.http.get(result["image_url"])).content == PNG
        health = (await at.http.get("/health")).json()
        assert health["detail"] is None
        assert (await at.http.delete(f"/api/jobs/{result['job_id']}")).status_code == 204
        assert await asyncio.to_thread(server.keys) == []
    assert not (tmp_path / "work" / "data" / "files").exists()


async def test_a_store_that_is_away_at_the_start_is_told_and_used_when_it_is_there(
    tmp_path: Path, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.to_thread(server.stop)
    told = asyncio.Event()

    class Watching(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "Files cannot be kept" in record.getMessage():
                told.set()

    watching = Watching()
    logging.getLogger("gateway").addHandler(watching)
    try:
        async with gateway(tmp_path / "work", **settings_for(server)) as at:
            await told.wait()
            health = (await at.http.get("/health")).json()
            assert health["status"] == "degraded"
            assert f"s3://{server.bucket}/" in health["detail"]
            await asyncio.to_thread(server.start)
            result = await generated(at)
            assert (await at.http.get(result["image_url"])).content == PNG
    finally:
        logging.getLogger("gateway").removeHandler(watching)
    said = [r.getMessage() for r in caplog.records if "Files cannot be kept" in r.getMessage()]
    assert len(said) == 1
    assert "cannot be reached" in said[0]
    assert server.secret_access_key not in caplog.text


async def test_a_wrong_secret_is_told_at_the_start_by_what_to_do(
    tmp_path: Path, server: S3Server
) -> None:
    wrong = settings_for(server, S3_SECRET_ACCESS_KEY="another-secret-no-text-may-show")
    async with gateway(tmp_path / "work", **wrong) as at:
        health = (await at.http.get("/health")).json()
        assert "the secret access key does not fit the access key" in health["detail"]
        assert "another-secret" not in health["detail"]
