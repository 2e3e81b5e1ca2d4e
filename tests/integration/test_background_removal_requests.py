"""The first clients' routes of background removal: a file in, a request to ask after."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gpu_server.protocol import Failure
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway
from tests.support.library import bytes_of, files_in, problem
from tests.support.receiver import PATIENCE_S

BASE = "/api/background-removal"
PICTURE = bytes_of("red", side=200)
NOBODY = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose jobs end when the test opens the gate."""
    async with gateway(tmp_path / "workspace", ScriptedBackend()) as running:
        yield running


async def submit(
    served: Gateway, content: bytes = PICTURE, name: str = "mug.png", **headers: str
) -> httpx.Response:
    files = {"file": (name, content)}
    sent = {field.replace("_", "-"): value for field, value in headers.items()}
    return await served.http.post(f"{BASE}/submit", files=files, headers=sent)


async def submitted(served: Gateway) -> str:
    answer = await submit(served)
    assert answer.status_code == 202, answer.text
    body = answer.json()
    assert body == {"request_id": body["request_id"], "status": "submitted"}
    assert answer.headers["location"] == f"{BASE}/status/{body['request_id']}"
    return str(body["request_id"])


async def status(served: Gateway, request_id: str, wait: float = 0) -> dict[str, Any]:
    answer = await served.http.get(f"{BASE}/status/{request_id}", params={"wait": wait})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def kept(served: Gateway) -> list[dict[str, Any]]:
    return list((await served.http.get("/api/files")).json()["items"])


async def test_a_file_is_taken_and_its_result_found_by_the_request(served: Gateway) -> None:
    request_id = await submitted(served)
    done = await status(served, request_id, PATIENCE_S)
    assert done == {"status": "completed", "result_url": done["result_url"], "error": None}
    assert done["result_url"].startswith("/api/cutouts/")
    assert (await served.stranger.get(done["result_url"])).status_code == 200
    # the tool's own route shows the same job
    job = (await served.http.get(f"{BASE}/{request_id}")).json()
    assert (job["tool"], job["status"]) == ("background-removal", "completed")


async def test_its_file_is_an_upload_that_stays_until_it_is_deleted(served: Gateway) -> None:
    request_id = await submitted(served)
    await status(served, request_id, PATIENCE_S)
    assert (await served.http.delete(f"/api/jobs/{request_id}")).status_code == 204
    ((upload,), names) = (await kept(served), files_in(served))
    assert (upload["name"], upload["width"]) == ("mug.png", 200)
    assert any(name.endswith(upload["url"].rpartition("/")[2]) for name in names)
    assert (await served.http.delete(f"/api/files/{upload['id']}")).status_code == 204
    assert files_in(served) == set()


async def test_a_request_under_way_is_cancelled_and_one_that_has_ended_is_not(
    held: Gateway,
) -> None:
    request_id = await submitted(held)
    await held.backend.begun.wait()
    assert (await status(held, request_id))["status"] in {"pending", "processing"}
    for _ in range(2):
        answer = await held.http.post(f"{BASE}/cancel/{request_id}")
        assert (answer.status_code, answer.json()) == (200, {"cancelled": True})
    gone = await status(held, request_id)
    assert gone == {"status": "cancelled", "result_url": None, "error": None}
    held.backend.gate.set()
    other = await submitted(held)
    await status(held, other, PATIENCE_S)
    answer = await held.http.post(f"{BASE}/cancel/{other}")
    assert (answer.status_code, answer.json()) == (200, {"cancelled": False})


async def test_a_failed_request_says_why(served: Gateway) -> None:
    served.backend.fails = Failure(kind="fatal", code="node_failed", message="No.")
    failed = await status(served, await submitted(served), PATIENCE_S)
    assert (failed["status"], failed["result_url"]) == ("failed", None)
    assert failed["error"]


@pytest.mark.parametrize("request_id", [NOBODY, "x", "0" * 200])
async def test_an_unknown_request_is_a_404(served: Gateway, request_id: str) -> None:
    assert (await served.http.get(f"{BASE}/status/{request_id}")).status_code == 404
    assert (await served.http.post(f"{BASE}/cancel/{request_id}")).status_code == 404


async def test_the_job_of_another_tool_is_a_404_and_stays_as_it_is(held: Gateway) -> None:
    job = (await held.http.post("/api/generate/async", json=SMALL)).json()["job_id"]
    assert (await held.http.get(f"{BASE}/status/{job}")).status_code == 404
    assert (await held.http.post(f"{BASE}/cancel/{job}")).status_code == 404
    assert (await held.http.get(f"/api/jobs/{job}")).json()["status"] != "cancelled"


async def test_the_same_file_with_the_same_key_is_one_request_and_one_upload(
    served: Gateway,
) -> None:
    answers = [await submit(served, Idempotency_Key="k") for _ in range(2)]
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    await status(served, answers[0].json()["request_id"], PATIENCE_S)
    assert len(await kept(served)) == 1
    other = await submit(served, bytes_of("blue"), Idempotency_Key="k")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(await kept(served)) == 1


@pytest.mark.parametrize("content", [b"not a picture", b"", PICTURE[:-40], b"\0\0\0\x18ftypmp42"])
async def test_what_is_no_picture_is_refused_and_nothing_of_it_stays(
    served: Gateway, content: bytes
) -> None:
    found, errors = problem(await submit(served, content))
    assert (found, [field for field, _ in errors]) == (422, ["file"])
    assert (await kept(served), files_in(served)) == ([], set())
    assert (await served.http.get("/api/jobs")).json()["items"] == []


async def test_a_moving_picture_is_refused_at_once(served: Gateway) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    answer = await submit(served, file.getvalue(), "moving.gif")
    assert problem(answer) == (422, [("file", "animated_image")])
    assert (await kept(served), files_in(served)) == ([], set())


async def test_a_call_that_becomes_no_job_keeps_no_file(tmp_path: Path) -> None:
    backend = ScriptedBackend(states={"background-removal-birefnet": "missing"})
    async with gateway(tmp_path / "workspace", backend) as served:
        answer = await submit(served)
        assert (answer.status_code, answer.json()["code"]) == (503, "missing_model")
        assert (await kept(served), files_in(served)) == ([], set())


async def test_several_files_at_once_are_requests_of_their_own(served: Gateway) -> None:
    answers = await asyncio.gather(*(submit(served, name=f"{n}.png") for n in range(4)))
    ids = {answer.json()["request_id"] for answer in answers}
    assert len(ids) == 4
    states = [await status(served, request_id, PATIENCE_S) for request_id in ids]
    assert [state["status"] for state in states] == ["completed"] * 4


async def test_nothing_is_taken_told_or_cancelled_without_a_key(held: Gateway) -> None:
    request_id = await submitted(held)
    for method, path in (
        ("POST", f"{BASE}/submit"),
        ("GET", f"{BASE}/status/{request_id}"),
        ("POST", f"{BASE}/cancel/{request_id}"),
    ):
        assert (await held.stranger.request(method, path)).status_code == 401
    assert (await status(held, request_id))["status"] != "cancelled"
