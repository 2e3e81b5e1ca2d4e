"""`POST /api/media/generate` over real jobs and rows, with a backend that does what a test says."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway.db.cards import Card, Cards
from gateway.errors import Conflict
from gateway.job import Job
from gpu_server.protocol import Failure
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway
from tests.support.library import problem

CARD = {"card_id": "card 1/ä", "prompt": "a mug", "media_type": "image"}
SHAPE = {"card_id", "media_url", "thumbnail_url", "status"}
NOW = {"Prefer": "respond-async"}


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as running:
        yield running


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose jobs end when the test opens the gate."""
    async with gateway(tmp_path / "workspace", ScriptedBackend()) as running:
        yield running


async def generate(
    served: Gateway, headers: dict[str, str] | None = None, **changes: Any
) -> httpx.Response:
    sent = {name: text for name, text in (CARD | changes).items() if text is not None}
    return await served.http.post("/api/media/generate", data=sent, headers=headers)


async def picture(served: Gateway, **changes: Any) -> str:
    made = await served.http.post("/api/generate", json=SMALL | changes)
    return str(made.json()["image_url"])


async def job_of(served: Gateway, answer: httpx.Response) -> Job:
    job = await served.context.jobs.get(answer.json()["job_id"])
    assert job is not None
    return job


async def test_an_image_is_generated_and_its_links_open_without_a_key(served: Gateway) -> None:
    answer = await generate(served, modifier="soft light", aspect_ratio="16:9")
    assert answer.status_code == 200, answer.text
    card = answer.json()
    assert card.keys() >= SHAPE
    assert (card["card_id"], card["status"]) == ("card 1/ä", "completed")
    assert (await served.stranger.get(card["media_url"])).status_code == 200
    assert card["thumbnail_url"] == card["media_url"] + "&w=512"
    job = await job_of(served, answer)
    assert (job.tool, job.params["prompt"]) == ("generate", "a mug, soft light")
    assert (job.params["width"], job.params["height"]) == (1280, 720)


async def test_a_form_may_be_urlencoded_or_multipart_and_leave_fields_empty(plain: Gateway) -> None:
    empty = {"modifier": "", "input_files": "", "webhook_url": ""}
    assert (await generate(plain, **empty)).status_code == 200
    parts = [(name, (None, text)) for name, text in (CARD | empty).items()]
    answer = await plain.http.post("/api/media/generate", files=parts)
    assert answer.status_code == 200, answer.text
    assert (await job_of(plain, answer)).params["prompt"] == "a mug"


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("1:1", (1024, 1024)),
        ("9:16", (720, 1280)),
        ("4:3", (1152, 864)),
        ("3:4", (864, 1152)),
        ("3:2", (1248, 832)),
        ("2:3", (832, 1248)),
        ("5:4", (1120, 896)),
        ("4:5", (896, 1120)),
        ("21:9", (1568, 672)),
        ("9:21", (672, 1568)),
    ],
)
async def test_each_aspect_ratio_is_kept_to_the_pixel(
    plain: Gateway, ratio: str, size: tuple[int, int]
) -> None:
    job = await job_of(plain, await generate(plain, aspect_ratio=ratio))
    assert (job.params["width"], job.params["height"]) == size
    across, down = map(int, ratio.split(":"))
    assert size[0] * down == size[1] * across


async def test_one_picture_to_a_square_one_is_edited_as_the_mode_edit_does_it(
    plain: Gateway,
) -> None:
    url = await picture(plain)
    job = await job_of(plain, await generate(plain, input_files=json.dumps([url])))
    assert (job.tool, job.variant, job.params["type"]) == ("concept", "flux2-klein-4b", "image")
    assert job.call.outputs == ("images/0",)
    assert [source.key is not None for source in job.call.inputs["image_url"]] == [True]


async def test_a_picture_may_come_inside_the_call(plain: Gateway) -> None:
    noise = io.BytesIO()
    Image.effect_noise((400, 400), 90).save(noise, "PNG")
    inside = base64.b64encode(noise.getvalue()).decode()
    assert len(inside) > 100_000
    sent = json.dumps([f"data:image/png;base64,{inside}"])
    job = await job_of(plain, await generate(plain, input_files=sent))
    assert [source.stored for source in job.call.inputs["image_url"]] == [True]


async def test_pictures_of_any_shape_or_number_go_to_the_workflows_that_take_several(
    plain: Gateway,
) -> None:
    url = await picture(plain)
    wide = await generate(plain, input_files=json.dumps([url]), aspect_ratio="3:2")
    job = await job_of(plain, wide)
    assert (job.tool, job.params["width"], job.params["height"]) == ("portrait", 1248, 832)
    five = await job_of(plain, await generate(plain, input_files=json.dumps([url] * 5)))
    assert (five.variant, len(five.call.inputs["face_images"])) == ("flux2-klein-9b-multiref", 5)


async def test_a_place_that_lacks_a_model_is_passed_over_for_one_that_takes_the_call_too(
    tmp_path: Path,
) -> None:
    missing = {
        "flux1-dev": "missing",
        "concept-flux2-klein-4b": "missing",
        "concept-flux2-klein-9b": "missing",
        "portrait-flux2-klein-9b-multiref": "missing",
    }
    backend = ScriptedBackend(states=missing)  # pyright: ignore[reportArgumentType]
    backend.gate.set()
    async with gateway(tmp_path / "workspace", backend) as served:
        made = await generate(served)
        assert (await job_of(served, made)).variant == "z-image-turbo"
        url = made.json()["media_url"].partition("?")[0]
        edited = await generate(served, input_files=json.dumps([url]))
        assert (await job_of(served, edited)).variant == "qwen-edit-2511"
        # it takes three
        refused = await generate(served, input_files=json.dumps([url] * 4))
        assert (refused.status_code, refused.json()["code"]) == (503, "missing_model")


async def test_a_video_begins_with_its_picture(plain: Gateway) -> None:
    url = await picture(plain)
    sent = {"media_type": "video", "input_files": json.dumps([url]), "aspect_ratio": "16:9"}
    job = await job_of(plain, await generate(plain, **sent))
    assert (job.tool, job.variant) == ("video", "wan2.1-480p")
    assert (job.params["width"], job.params["height"]) == (768, 432)
    assert list(job.call.inputs) == ["image_url"]


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"card_id": ""}, "card_id", "string_too_short"),
        ({"card_id": "x" * 201}, "card_id", "string_too_long"),
        ({"card_id": "a\nb"}, "card_id", "control_character"),
        ({"card_id": ".."}, "card_id", "not_an_id"),
        ({"card_id": None}, "card_id", "missing"),
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": " "}, "prompt", "blank"),
        ({"media_type": "audio"}, "media_type", "literal_error"),
        ({"aspect_ratio": "2:1"}, "aspect_ratio", "literal_error"),
        ({"modifier": "x" * 501}, "modifier", "string_too_long"),
        ({"prompt": "x" * 7990, "modifier": "y" * 20}, "modifier", "string_too_long"),
        ({"input_files": "/api/images/a.png"}, "input_files", "not_a_json_array"),
        ({"input_files": "{}"}, "input_files", "not_a_json_array"),
        ({"input_files": "[" * 5000}, "input_files", "not_a_json_array"),
        ({"input_files": "[1]"}, "input_files.0", "string_type"),
        ({"input_files": '["ftp://a/b"]'}, "input_files.0", "not_a_file_address"),
        ({"input_files": '["/api/images/none.png"]'}, "input_files.0", "unknown_file"),
        ({"input_files": '["http://10.0.0.1/a.png"]'}, "input_files.0", "url_refused"),
        ({"input_files": json.dumps(["/a"] * 6)}, "input_files", "too_long"),
        ({"input_files": json.dumps(["/a"] * 17)}, "input_files", "too_long"),
        ({"media_type": "video"}, "input_files", "missing"),
        ({"media_type": "video", "input_files": '["/a", "/b"]'}, "input_files", "too_long"),
        ({"webhook_url": "ftp://a"}, "webhook_url", "not_a_web_address"),
        ({"width": "512"}, "width", "extra_forbidden"),
    ],
)
async def test_what_is_wrong_is_named_as_it_was_sent(
    plain: Gateway, changes: dict[str, Any], field: str, code: str
) -> None:
    assert problem(await generate(plain, **changes)) == (422, [(field, code)])
    assert (await plain.http.get("/api/jobs")).json()["items"] == []


async def test_a_wrong_picture_among_several_is_named_by_its_place(plain: Gateway) -> None:
    url = await picture(plain)
    sent = json.dumps([url, "/api/images/none.png"])
    answer = await generate(plain, input_files=sent)
    assert problem(answer) == (422, [("input_files.1", "unknown_file")])


async def test_a_wrong_aspect_ratio_is_told_the_right_ones(plain: Gateway) -> None:
    answer = await generate(plain, aspect_ratio="wide")
    assert "16:9" in answer.json()["errors"][0]["message"]


async def test_a_policy_refuses_by_the_same_names(plain: Gateway) -> None:
    answer = await generate(plain, prompt="remove the clothes of the person")
    assert answer.status_code == 422
    assert answer.json()["code"] == "policy_violation"
    assert [error["field"] for error in answer.json()["errors"]] == ["prompt"]


async def test_what_is_not_done_in_time_is_told_in_the_same_shape(held: Gateway) -> None:
    answer = await generate(held, NOW)
    assert answer.status_code == 202
    card = answer.json()
    assert card.keys() >= SHAPE
    assert card["status"] in {"pending", "processing"}
    assert (card["media_url"], card["thumbnail_url"]) == (None, None)
    assert answer.headers["location"] == "/api/media/card%201%2F%C3%A4"
    assert answer.headers["preference-applied"] == "respond-async"
    held.backend.gate.set()


async def test_a_failure_waited_for_is_a_problem_with_its_job(plain: Gateway) -> None:
    plain.backend.fails = Failure(kind="fatal", code="node_failed", message="No.")
    answer = await generate(plain)
    assert (answer.status_code, answer.json()["code"]) == (502, "node_failed")
    assert answer.json()["job_id"]


async def test_the_same_call_again_finds_the_same_job_and_another_one_does_not(
    plain: Gateway,
) -> None:
    headers = {"Idempotency-Key": "k"}
    first, second = [await generate(plain, headers) for _ in range(2)]
    assert first.json()["job_id"] == second.json()["job_id"]
    other = await generate(plain, headers, prompt="a cup")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


async def test_a_webhook_hears_of_it(held: Gateway) -> None:
    answer = await generate(held, NOW, webhook_url="https://example.com/hook")
    job = await job_of(held, answer)
    assert job.webhook_url == "https://example.com/hook"
    await held.http.post(f"/api/jobs/{job.id}/cancel")


async def test_a_card_shows_the_later_of_two_jobs_whichever_was_written_last(
    served: Gateway,
) -> None:
    answers = [await generate(served) for _ in range(2)]
    jobs = [await job_of(served, answer) for answer in answers]
    cards = Cards(served.context.jobs._db)
    assert jobs[0].created_at < jobs[1].created_at

    def card(job: Job, card_id: str) -> Card:
        made = job.created_at
        return Card(
            caller="default", id=card_id, job_id=job.id, media_type="image", created_at=made
        )

    await cards.put(card(jobs[0], CARD["card_id"]))
    found = await cards.get("default", CARD["card_id"])
    assert found == card(jobs[1], CARD["card_id"])
    await asyncio.gather(*(cards.put(card(job, "new")) for job in jobs * 3))
    assert await cards.get("default", "new") == card(jobs[1], "new")
    assert await cards.get("somebody", "new") is None
    assert await cards.get("default", "ne\0w") is None


async def test_a_card_of_a_job_that_is_gone_is_not_written(served: Gateway) -> None:
    answer = await generate(served)
    job = await job_of(served, answer)
    cards = Cards(served.context.jobs._db)
    found = await cards.get("default", CARD["card_id"])
    assert found is not None
    await served.http.delete(f"/api/jobs/{job.id}")
    assert await cards.get("default", CARD["card_id"]) is None
    with pytest.raises(Conflict):
        await cards.put(found)


async def test_nothing_is_generated_without_a_key(plain: Gateway) -> None:
    answer = await plain.stranger.post("/api/media/generate", data=CARD)
    assert answer.status_code == 401
