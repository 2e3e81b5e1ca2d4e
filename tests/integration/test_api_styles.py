"""Styles over HTTP, and what they do to the calls that name them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.styles import BUNDLED
from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, files_in, form, problem
from tests.support.reading import data_uri, picture

Json = dict[str, Any]
INK = {"id": "ink", "name": "Ink", "prompt": "an ink drawing of {prompt}"}
FOX = "a {red} fox"


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as running:
        yield running


async def made(served: Gateway, image: bytes | None = None, **texts: str) -> Json:
    answer = await form(served, "POST", "/api/styles", INK | texts, image)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def ids(served: Gateway, limit: int = 100) -> list[str]:
    found: list[str] = []
    query: dict[str, str] = {"limit": str(limit)}
    while True:
        page = (await served.http.get("/api/styles", params=query)).json()
        found += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


async def concept(served: Gateway, **params: Any) -> httpx.Response:
    return await served.http.post("/api/concept", json=params)


async def told(served: Gateway, **params: Any) -> tuple[Json, Json]:
    """The result of a concept, and what the backend was told."""
    answer = await concept(served, **params)
    assert answer.status_code == 200, answer.text
    return answer.json(), dict(served.backend.orders[-1].call.params)


async def test_every_installation_has_the_bundled_ones(served: Gateway) -> None:
    assert await ids(served) == sorted(BUNDLED)
    clay = (await served.http.get("/api/styles/clay")).json()
    assert (clay["name"], clay["bundled"], clay["created_at"]) == ("Clay model", True, None)
    assert clay["image_url"] is clay["image_link"] is None


async def test_pages_hold_bundled_and_own_ones_in_order(served: Gateway) -> None:
    for style_id in ("a-1", "a1", "zz", "clay-2"):
        await made(served, id=style_id)
    assert await ids(served, 2) == sorted([*BUNDLED, "a-1", "a1", "zz", "clay-2"])
    assert await ids(served, 1) == await ids(served)
    wrong = await served.http.get("/api/styles", params={"cursor": "NO"})
    assert problem(wrong) == (422, [("cursor", "invalid_cursor")])


async def test_a_removed_one_stays_removed_until_it_is_made_again(served: Gateway) -> None:
    assert (await served.http.delete("/api/styles/clay")).status_code == 204
    assert (await served.http.get("/api/styles/clay")).status_code == 404
    assert (await served.http.delete("/api/styles/clay")).status_code == 404
    assert (await form(served, "PUT", "/api/styles/clay", {"name": "x"})).status_code == 404
    assert await ids(served, 3) == sorted(BUNDLED.keys() - {"clay"})
    assert problem(await concept(served, prompt="a", styleId="clay"))[0] == 422
    again = await made(served, id="clay")
    assert (again["prompt"], again["bundled"]) == (INK["prompt"], True)
    assert await ids(served) == sorted(BUNDLED)


async def test_what_was_removed_or_changed_is_so_after_a_start(
    tmp_path: Path, database_url: str
) -> None:
    async with gateway(tmp_path / "before", database_url=database_url) as served:
        await served.http.delete("/api/styles/clay")
        await form(served, "PUT", "/api/styles/photo", {"name": "Snapshot"})
    async with gateway(tmp_path / "after", database_url=database_url) as served:
        assert await ids(served) == sorted(BUNDLED.keys() - {"clay"})
        photo = (await served.http.get("/api/styles/photo")).json()
        assert (photo["name"], photo["prompt"]) == ("Snapshot", BUNDLED["photo"].prompt)


async def test_changes_at_once_leave_one_picture(served: Gateway) -> None:
    colours = ("red", "green", "blue", "white")
    answers = await asyncio.gather(
        *(form(served, "PUT", "/api/styles/clay", {}, bytes_of(colour)) for colour in colours)
    )
    assert {answer.status_code for answer in answers} == {200}
    shown = (await served.http.get("/api/styles/clay/image")).content
    assert shown in [bytes_of(colour) for colour in colours]
    assert len(files_in(served)) == 1


async def test_one_id_made_twice_at_once_is_one_style(served: Gateway) -> None:
    answers = await asyncio.gather(
        *(form(served, "POST", "/api/styles", INK, bytes_of(c)) for c in ("red", "blue", "green"))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409]
    assert len(files_in(served)) == 1


async def test_a_taken_id_is_a_conflict_and_leaves_no_picture(served: Gateway) -> None:
    await made(served)
    for style_id in ("ink", "clay"):
        answer = await form(served, "POST", "/api/styles", INK | {"id": style_id}, bytes_of("red"))
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert files_in(served) == set()


async def test_its_picture_comes_and_goes(served: Gateway) -> None:
    style = await made(served, bytes_of("red"))
    assert style["image_url"] == "/api/styles/ink/image"
    assert (await served.stranger.get(style["image_link"])).content == bytes_of("red")
    await form(served, "PUT", "/api/styles/ink", {"name": "Red"}, bytes_of("blue"))
    assert (await served.http.get(style["image_url"])).content == bytes_of("blue")
    assert len(files_in(served)) == 1
    assert (await served.http.delete(style["image_url"])).status_code == 204
    assert (await served.http.get("/api/styles/ink")).json()["image_url"] is None
    for method in ("GET", "DELETE"):
        assert (await served.http.request(method, style["image_url"])).status_code == 404
    assert files_in(served) == set()
    await form(served, "PUT", "/api/styles/clay", {}, bytes_of("green"))
    assert (await served.http.delete("/api/styles/clay")).status_code == 204
    assert files_in(served) == set()


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("no place for it", "no_place_for_the_prompt"),
        ("{prompt} in {colour}", "no_place_for_the_prompt"),
        ("{{prompt}}", "no_place_for_the_prompt"),
        ("{prompt} {", "malformed"),
    ],
)
async def test_a_style_needs_a_place_for_the_prompt_and_nothing_else(
    served: Gateway, prompt: str, code: str
) -> None:
    answer = await form(served, "POST", "/api/styles", INK | {"prompt": prompt})
    assert problem(answer) == (422, [("prompt", code)])
    answer = await form(served, "PUT", "/api/styles/clay", {"prompt": prompt})
    assert problem(answer) == (422, [("prompt", code)])


async def test_the_model_is_told_the_style_and_the_caller_reads_his_own_prompt(
    served: Gateway,
) -> None:
    await made(served)
    result, call = await told(served, prompt=FOX, styleId="ink", seed=3)
    assert call["prompt"] == "an ink drawing of a {red} fox"
    assert result["concept_params"] == {
        "type": "text",
        "prompt": FOX,
        "styleId": "ink",
        "count": 2,
        "seed": 3,
    }
    assert result["concept_urls"] == [file["url"] for file in result["files"]]
    assert len(result["concept_urls"]) == 2
    assert "styleId" not in call


async def test_a_changed_style_is_the_one_that_is_used(served: Gateway) -> None:
    await form(served, "PUT", "/api/styles/clay", {"prompt": "plasticine: {prompt}"})
    assert (await told(served, prompt="a fox", styleId="clay"))[1]["prompt"] == "plasticine: a fox"


async def test_without_a_style_nothing_is_added(served: Gateway) -> None:
    result, call = await told(served, prompt=FOX)
    assert call["prompt"] == result["concept_params"]["prompt"] == FOX
    assert result["concept_params"]["styleId"] is None


async def test_a_picture_without_words_gets_the_workflows_own_in_the_style(
    served: Gateway,
) -> None:
    sent = {"type": "image", "image_url": data_uri(picture())}
    result, call = await told(served, **sent, styleId="clay", count=1)
    own = result["concept_params"]["prompt"]
    assert own.startswith("one object")
    assert call["prompt"] == BUNDLED["clay"].prompt.replace("{prompt}", own)


async def test_the_reference_picture_goes_along_where_the_workflow_takes_it(
    served: Gateway,
) -> None:
    await made(served, bytes_of("red"))
    await told(served, prompt=FOX, styleId="ink")
    (source,) = served.backend.orders[-1].call.inputs["style_image"]
    assert (source.media_type, source.bytes) == ("image/png", len(bytes_of("red")))
    (sent,) = served.backend.orders[-1].inputs["style_image"]
    assert (await served.stranger.get(httpx.URL(sent.url).raw_path.decode())).content == bytes_of(
        "red"
    )
    face = {"face_images": [data_uri(picture())], "prompt": "a portrait", "styleId": "ink"}
    for variant, pictures in (
        ("flux2-klein-9b-multiref", {"face_images", "style_image"}),
        ("qwen-edit-2511", {"face_images"}),
    ):
        answer = await served.http.post("/api/portrait", json=face | {"variant": variant})
        assert answer.status_code == 200, answer.text
        assert set(served.backend.orders[-1].call.inputs) == pictures
        assert answer.json()["portrait_params"]["prompt"] == "a portrait"
        assert answer.json()["portrait_params"]["styleId"] == "ink"


async def test_the_catalogue_does_not_offer_the_picture_as_a_parameter(served: Gateway) -> None:
    for variant in (await served.http.get("/api/tools/concept")).json()["variants"]:
        assert variant["params"] == ["type", "image_url", "prompt", "count", "seed"]
        assert variant["defaults"]["type"] == "text"
    sent = {"prompt": FOX, "style_image": data_uri(picture())}
    assert problem(await concept(served, **sent)) == (422, [("style_image", "extra_forbidden")])


async def test_a_job_that_goes_leaves_the_styles_picture(served: Gateway) -> None:
    style = await made(served, bytes_of("red"))
    result, _ = await told(served, prompt=FOX, styleId="ink")
    assert (await served.http.delete(f"/api/jobs/{result['job_id']}")).status_code == 204
    assert (await served.http.get(style["image_url"])).content == bytes_of("red")


@pytest.mark.parametrize(
    ("params", "field", "code"),
    [
        ({"prompt": FOX, "styleId": "nothing"}, "styleId", "unknown_style"),
        ({"prompt": FOX, "styleId": "No Slug"}, "styleId", "string_pattern_mismatch"),
        ({"prompt": FOX, "styleId": 5}, "styleId", "string_type"),
        ({"prompt": "x" * 8000, "styleId": "clay"}, "styleId", "string_too_long"),
        ({}, "prompt", "required_for_text"),
        ({"type": "text", "styleId": "clay"}, "prompt", "required_for_text"),
        ({"type": "image", "prompt": FOX}, "image_url", "required_for_image"),
        ({"prompt": FOX, "image_url": "/api/images/x.png"}, "image_url", "not_for_text"),
        ({"type": "video", "prompt": FOX}, "type", "literal_error"),
        ({"prompt": FOX, "count": 5}, "count", "less_than_equal"),
        ({"prompt": FOX, "count": 0}, "count", "greater_than_equal"),
        ({"prompt": FOX, "count": 1.5}, "count", "int_from_float"),
        ({"prompt": FOX, "seed": -1}, "seed", "greater_than_equal"),
        ({"prompt": FOX, "style": "clay"}, "style", "extra_forbidden"),
    ],
)
async def test_a_wrong_concept_is_refused_with_the_field(
    served: Gateway, params: Json, field: str, code: str
) -> None:
    answer = await concept(served, **params)
    assert problem(answer) == (422, [(field, code)])


async def test_an_unknown_style_names_the_known_ones(served: Gateway) -> None:
    await made(served)
    said = (await concept(served, prompt=FOX, styleId="nothing")).json()["errors"][0]["message"]
    for known in ("ink", "clay"):
        assert known in said


async def test_a_batch_names_the_item_whose_style_is_unknown(served: Gateway) -> None:
    items = [{"prompt": "a", "styleId": "clay"}, {"prompt": "a", "styleId": "nothing"}]
    answer = await served.http.post("/api/batches", json={"tool": "concept", "items": items})
    assert problem(answer) == (422, [("items.1.styleId", "unknown_style")])


async def test_the_policy_judges_words_and_style_together(served: Gateway) -> None:
    for path, texts in (
        ("/api/styles", INK | {"prompt": "{prompt}, undress her"}),
        ("/api/templates", {"name": "x", "prompt": "TRIGGER_WORD, undress her"}),
    ):
        answer = await form(served, "POST", path, texts, bytes_of("red"))
        assert answer.json()["code"] == "policy_violation", answer.text
        assert problem(answer) == (422, [("prompt", "policy_violation")])
    await made(served, prompt="{prompt} her clothes")
    answer = await concept(served, prompt="remove", styleId="ink")
    assert problem(answer) == (422, [("prompt", "policy_violation")])
    assert files_in(served) == set()


@pytest.mark.parametrize("mode", ["portrait", "concept"])
async def test_the_style_of_a_mode_is_a_style_where_its_tool_has_them(
    served: Gateway, mode: str
) -> None:
    sent: Json = {"mode": mode, "prompt": FOX, "style": "clay"}
    if mode == "portrait":
        sent["face_images"] = [data_uri(picture())]
    answer = await served.http.post("/generate", json=sent, headers={"Prefer": "wait=60"})
    assert answer.json()["status"] == "done", answer.text
    call = served.backend.orders[-1].call
    assert call.params["prompt"] == BUNDLED["clay"].prompt.replace("{prompt}", FOX)
    wrong = await served.http.post("/generate", json=sent | {"style": "nothing"})
    assert problem(wrong) == (422, [("style", "unknown_style")])
    slug = await served.http.post("/generate", json=sent | {"style": "Oil on canvas"})
    assert problem(slug) == (422, [("style", "string_pattern_mismatch")])
    twice = await served.http.post("/generate", json=sent | {"extra_params": {"styleId": "clay"}})
    assert problem(twice) == (422, [("extra_params.styleId", "conflict")])
    del sent["style"]
    extra = await served.http.post("/generate", json=sent | {"extra_params": {"styleId": "no"}})
    assert problem(extra) == (422, [("extra_params.styleId", "unknown_style")])


async def test_the_style_of_any_other_mode_is_words(served: Gateway) -> None:
    sent = {"mode": "free", "prompt": FOX, "style": "oil on canvas"}
    answer = await served.http.post("/generate", json=sent, headers={"Prefer": "wait=60"})
    assert answer.json()["status"] == "done", answer.text
    assert served.backend.orders[-1].call.params["prompt"] == f"{FOX}, oil on canvas"
