"""How much a caller may keep, over HTTP: uploads, calls and batches."""

import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway import quota
from tests.support.gateway import PNG, SMALL, Gateway, gateway
from tests.support.library import bytes_of, files_in
from tests.support.receiver import PATIENCE_S

MEBIBYTE = 1024 * 1024


def noise(size: int) -> bytes:
    """A picture of about so many bytes, which nothing compresses."""
    side = int((size / 3) ** 0.5)
    file = io.BytesIO()
    Image.effect_noise((side, side), 100).convert("RGB").save(file, "BMP")
    picture = Image.open(io.BytesIO(file.getvalue()))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=0)
    return out.getvalue()


LARGE = noise(700_000)


@pytest.fixture(autouse=True)
def every_sum_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "FRESH_S", 0)
    monkeypatch.setattr(quota, "SHARE_OF_TIME", float("inf"))


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    env: dict[str, Any] = {"database_url": database_url, "max_stored_mb_per_caller": 1}
    async with gateway(tmp_path / "workspace", **env) as running:
        yield running


async def upload(served: Gateway, content: bytes = LARGE) -> httpx.Response:
    return await served.http.post("/api/files", files={"file": ("a.png", content)})


async def usage(served: Gateway) -> dict[str, Any]:
    answer = await served.http.get("/api/usage")
    assert answer.status_code == 200
    return dict(answer.json())


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


async def test_uploads_and_results_are_told_apart_and_together(served: Gateway) -> None:
    nothing = {"stored_bytes": 0, "uploads_bytes": 0, "results_bytes": 0, "limit_bytes": MEBIBYTE}
    assert await usage(served) == nothing
    picture = bytes_of("red", side=300)
    kept = (await upload(served, picture)).json()
    made = (await served.http.post("/api/generate", json=SMALL)).json()
    assert await usage(served) == {
        "stored_bytes": len(picture) + len(PNG),
        "uploads_bytes": len(picture),
        "results_bytes": len(PNG),
        "limit_bytes": MEBIBYTE,
    }
    await served.http.delete(f"/api/files/{kept['id']}")
    await served.http.delete(f"/api/jobs/{made['job_id']}")
    assert await usage(served) == nothing


async def test_without_a_limit_none_is_told(tmp_path: Path) -> None:
    async with gateway(tmp_path / "workspace") as unlimited:
        assert (await usage(unlimited))["limit_bytes"] is None
        assert (await unlimited.stranger.get("/api/usage")).status_code == 401


async def test_an_upload_beyond_the_limit_is_refused_until_room_is_made(served: Gateway) -> None:
    first = await upload(served)
    assert first.status_code == 201, first.text
    before = files_in(served)
    second = await upload(served)
    assert code(second) == (403, "quota_exceeded")
    assert "of at most 1.0 MB" in second.json()["detail"]
    assert files_in(served) == before
    await served.http.delete(f"/api/files/{first.json()['id']}")
    assert (await upload(served)).status_code == 201


async def test_an_upload_that_does_not_say_its_length_is_broken_off(served: Gateway) -> None:
    assert (await upload(served)).status_code == 201
    before = files_in(served)

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for start in range(0, len(LARGE), 65_536):
            yield LARGE[start : start + 65_536]
        yield b"\r\n--b--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await served.http.post("/api/files", content=body(), headers=headers)
    assert code(answer) == (403, "quota_exceeded")
    assert files_in(served) == before


async def test_whoever_keeps_all_one_may_begins_nothing_new(served: Gateway) -> None:
    kept = (await upload(served, noise(1_040_000))).json()
    await upload(served, noise(8_000))
    while (await usage(served))["stored_bytes"] < MEBIBYTE:
        # small results fill the rest, and the last one goes beyond it
        assert (await served.http.post("/api/generate", json=SMALL)).status_code == 200
    batch = {"tool": "generate", "items": [SMALL]}
    card = {"card_id": "a", "prompt": "a mug", "media_type": "image"}
    refused = [
        await served.http.post("/api/generate", json=SMALL),
        await served.http.post("/api/generate/async", json=SMALL),
        await served.http.post("/api/batches", json=batch),
        await served.http.post("/api/media/generate", data=card),
        await served.http.post("/generate", json={"mode": "free", "prompt": "a mug"}),
        await upload(served, bytes_of("red")),
    ]
    assert {code(answer) for answer in refused} == {(403, "quota_exceeded")}
    await served.http.delete(f"/api/files/{kept['id']}")
    assert (await served.http.post("/api/generate", json=SMALL)).status_code == 200
    made = await served.http.post("/api/batches", json=batch)
    assert made.status_code == 202
    await served.http.get(made.json()["status_url"], params={"wait": PATIENCE_S})


async def test_a_call_already_taken_is_found_again_beyond_the_limit(served: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    first = await served.http.post("/api/generate", json=SMALL, headers=headers)
    await upload(served, noise(1_030_000))
    while (await usage(served))["stored_bytes"] < MEBIBYTE:
        await served.http.post("/api/generate", json=SMALL)
    again = await served.http.post("/api/generate", json=SMALL, headers=headers)
    assert again.json()["job_id"] == first.json()["job_id"]


async def test_removed_files_make_room_while_their_jobs_stay(served: Gateway) -> None:
    made = (await served.http.post("/api/generate", json=SMALL)).json()
    db = served.context.jobs._rows
    job = await served.context.jobs.get(made["job_id"])
    assert job is not None
    await db.let_files_go(job.id, job.created_at, by="retention")
    assert (await usage(served))["results_bytes"] == 0
