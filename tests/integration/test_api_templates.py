"""Templates over HTTP: forms in, pictures kept and given up, gaps filled."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, files_in, form, problem

Json = dict[str, Any]
TEXTS = {"name": "Mug", "prompt": "a photo of TRIGGER_WORD on a {surface}"}
NOBODY = "01890000-0000-7000-8000-000000000000"


@pytest.fixture
async def served(tmp_path: Path, database_url: str) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", database_url=database_url) as running:
        yield running


async def made(served: Gateway, **texts: str) -> Json:
    answer = await form(served, "POST", "/api/templates", TEXTS | texts, bytes_of("red"))
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/api/templates/{answer.json()['id']}"
    return dict(answer.json())


async def resolve(served: Gateway, template: Json, **body: Any) -> httpx.Response:
    return await served.http.post(f"/api/templates/{template['id']}/resolve", json=body)


async def test_what_was_made_is_read_again(served: Gateway) -> None:
    template = await made(served)
    assert template.items() >= TEXTS.items()
    assert (template["trigger_keyword"], template["variables"]) == ("TRIGGER_WORD", ["surface"])
    read = await served.http.get(f"/api/templates/{template['id'].upper()}")
    assert (read.status_code, read.json()) == (200, template)


async def test_the_answer_of_resolve_is_the_documented_one(served: Gateway) -> None:
    template = await made(served)
    answer = await resolve(
        served, template, trigger_word="TOK_HANDBAG", variables={"surface": "table", "more": "x"}
    )
    assert answer.json() == {
        "template_id": template["id"],
        "template_name": "Mug",
        "original_prompt": "a photo of TRIGGER_WORD on a {surface}",
        "resolved_prompt": "a photo of TOK_HANDBAG on a table",
        "trigger_word": "TOK_HANDBAG",
    }


async def test_a_keyword_of_ones_own_is_the_one_that_is_replaced(served: Gateway) -> None:
    template = await made(
        served, prompt="[it], {trigger_word}: no TRIGGER_WORD", trigger_keyword="[it]"
    )
    answer = await resolve(served, template, trigger_word="TOK")
    assert answer.json()["resolved_prompt"] == "TOK, TOK: no TRIGGER_WORD"


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"trigger_word": "TOK"}, "variables.surface", "unresolved"),
        ({"trigger_word": "TOK", "variables": {"Surface": "x"}}, "variables.surface", "unresolved"),
        ({"variables": {"surface": "x"}}, "trigger_word", "missing"),
        ({"trigger_word": " "}, "trigger_word", "blank"),
        ({"trigger_word": "TOK", "variables": {"surface": 5}}, "variables.surface", "string_type"),
        ({"trigger_word": "TOK", "variables": ["x"]}, "variables", "dict_type"),
        ({"trigger_word": "TOK", "variables": {"surface": "x" * 8000}}, "variables",
         "string_too_long"),
        ({"trigger_word": "TOK", "word": "x"}, "word", "extra_forbidden"),
    ],
)  # fmt: skip
async def test_what_cannot_be_resolved_is_named(
    served: Gateway, body: Json, field: str, code: str
) -> None:
    answer = await resolve(served, await made(served), **body)
    assert problem(answer) == (422, [(field, code)])


async def test_the_picture_is_served_by_key_and_by_its_link(served: Gateway) -> None:
    template = await made(served)
    red = bytes_of("red")
    by_key = await served.http.get(template["image_url"])
    assert (by_key.content, by_key.headers["content-type"]) == (red, "image/png")
    assert by_key.headers["x-content-type-options"] == "nosniff"
    assert (await served.stranger.get(template["image_link"])).content == red
    assert (await served.stranger.get(template["image_url"])).status_code == 401
    other = await made(served)
    forged = f"{other['image_url']}?{template['image_link'].partition('?')[2]}"
    assert (await served.stranger.get(forged)).status_code == 403
    part = await served.http.get(template["image_url"], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, red[:4])
    known = {"If-None-Match": by_key.headers["etag"]}
    assert (await served.http.get(template["image_url"], headers=known)).status_code == 304
    assert (await served.http.head(template["image_url"])).headers["content-length"] == str(
        len(red)
    )


async def test_only_what_is_sent_changes(served: Gateway) -> None:
    template = await made(served)
    answer = await form(served, "PUT", f"/api/templates/{template['id']}", {"name": "Cup"})
    changed = answer.json()
    assert changed.pop("updated_at") > template.pop("updated_at")
    assert changed == template | {"name": "Cup"}
    assert (await served.http.get(template["image_url"])).content == bytes_of("red")


async def test_another_picture_takes_the_place_of_the_first_and_none_is_left_over(
    served: Gateway,
) -> None:
    template = await made(served)
    before = files_in(served)
    answer = await form(
        served, "PUT", f"/api/templates/{template['id']}", {}, bytes_of("blue", "JPEG")
    )
    assert answer.json()["image_url"] == template["image_url"]
    shown = await served.http.get(template["image_url"])
    assert (shown.content, shown.headers["content-type"]) == (
        bytes_of("blue", "JPEG"),
        "image/jpeg",
    )
    assert len(files_in(served)) == len(before) == 1
    assert files_in(served).isdisjoint(before)


async def test_changes_at_once_leave_one_picture(served: Gateway) -> None:
    template = await made(served)
    colours = ("green", "blue", "white", "black")
    path = f"/api/templates/{template['id']}"
    answers = await asyncio.gather(
        *(form(served, "PUT", path, {}, bytes_of(colour)) for colour in colours)
    )
    assert {answer.status_code for answer in answers} == {200}
    shown = (await served.http.get(template["image_url"])).content
    assert shown in [bytes_of(colour) for colour in colours]
    assert len(files_in(served)) == 1


async def test_deleted_it_is_gone_with_its_picture(served: Gateway) -> None:
    template = await made(served)
    path = f"/api/templates/{template['id']}"
    assert (await served.http.delete(path)).status_code == 204
    assert files_in(served) == set()
    for method, address in (
        ("GET", path), ("DELETE", path), ("GET", template["image_url"]),
        ("PUT", path), ("GET", "/api/templates/nothing"), ("GET", f"/api/templates/{NOBODY}"),
    ):  # fmt: skip
        answer = await served.http.request(method, address)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), address
    assert (await resolve(served, template, trigger_word="TOK")).status_code == 404


async def test_the_list_goes_from_the_newest_to_the_oldest_page_by_page(served: Gateway) -> None:
    names = [f"Mug {n}" for n in range(5)]
    for name in names:
        await made(served, name=name)
    found: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await served.http.get("/api/templates", params=query)).json()
        found += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert (found, cursor) == (names[::-1], None)
    wrong = await served.http.get("/api/templates", params={"cursor": "x"})
    assert problem(wrong) == (422, [("cursor", "invalid_cursor")])


async def test_its_picture_is_the_input_of_a_tool_by_path_and_by_link(served: Gateway) -> None:
    template = await made(served)
    for address in (
        template["image_url"],
        template["image_link"],
        f"http://127.0.0.1:8000{template['image_url']}",
    ):
        answer = await served.http.post("/api/upscale", json={"image_url": address})
        assert answer.status_code == 200, answer.text
    (source,) = served.backend.orders[-1].call.inputs["image_url"]
    assert (source.media_type, source.bytes) == ("image/png", len(bytes_of("red")))
    assert await served.http.delete(f"/api/jobs/{answer.json()['job_id']}")
    assert (await served.http.get(template["image_url"])).status_code == 200
    await served.http.delete(f"/api/templates/{template['id']}")
    gone = await served.http.post("/api/upscale", json={"image_url": template["image_url"]})
    assert problem(gone) == (422, [("image_url", "unknown_file")])
