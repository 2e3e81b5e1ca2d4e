"""Forms that are wrong: each is refused with a problem that names the field, and leaves nothing."""

import errno
import os
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.datastructures import UploadFile

from tests.support.gateway import Gateway, gateway
from tests.support.library import bytes_of, files_in, form, problem


class Route(NamedTuple):
    method: str
    path: str
    texts: dict[str, str]


TEMPLATE = {"name": "Mug", "prompt": "a TRIGGER_WORD"}
STYLE = {"id": "ink", "name": "Ink", "prompt": "{prompt}, ink"}
ROUTES = [
    Route("POST", "/api/templates", TEMPLATE),
    Route("POST", "/api/styles", STYLE),
    Route("PUT", "/api/styles/clay", {"name": "Clay"}),
]
each_route = pytest.mark.parametrize("route", ROUTES, ids=["template", "style", "change"])
MEBIBYTE = 1024 * 1024
LONG_TEXT = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"x" * 70_000


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace", max_image_size_mb=1) as running:
        yield running
        assert files_in(running) == set()
        assert (await running.http.get("/api/templates")).json()["items"] == []
        clay = (await running.http.get("/api/styles/clay")).json()
        assert (clay["name"], clay["updated_at"]) == ("Clay model", None)


def huge() -> bytes:
    """A PNG of a few bytes that says it is 60000 pixels square."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


async def no_file_chosen(
    served: Gateway, method: str, path: str, texts: dict[str, str]
) -> httpx.Response:
    """Send a form as a browser does in which no file was chosen."""
    disposition = "--b\r\nContent-Disposition: form-data; name="
    parts = [f'{disposition}"{name}"\r\n\r\n{text}\r\n' for name, text in texts.items()]
    parts.append(f'{disposition}"image"; filename=""\r\n\r\n\r\n--b--\r\n')
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    return await served.http.request(method, path, content="".join(parts), headers=headers)


@each_route
@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"not a picture", "wrong_kind"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "wrong_kind"),
        (b"", "wrong_kind"),
        (b"\x89PNG\r\n\x1a\n", "unreadable_image"),
        (bytes_of("red", side=200)[:-40], "unreadable_image"),
        (huge(), "too_large"),
        (bytes_of("red") + bytes(MEBIBYTE), "too_large"),
    ],
    ids=["text", "svg", "empty", "head", "cut", "bomb", "large"],
)
async def test_what_is_no_picture_is_refused(
    served: Gateway, route: Route, content: bytes, code: str
) -> None:
    answer = await form(served, *route, content)
    assert problem(answer) == (422, [("image", code)])


@each_route
async def test_a_body_beyond_every_limit_is_a_413(served: Gateway, route: Route) -> None:
    answer = await form(served, *route, bytes(3 * MEBIBYTE))
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


@each_route
async def test_a_body_that_does_not_say_its_length_is_counted(
    served: Gateway, route: Route
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
        for _ in range(5 * 16):
            yield bytes(MEBIBYTE // 16)

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await served.http.request(route.method, route.path, content=endless(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


@each_route
@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"name": ""}, "name", "string_too_short"),
        ({"name": " "}, "name", "blank"),
        ({"name": "x" * 201}, "name", "string_too_long"),
        ({"name": "a\x07b"}, "name", "control_character"),
        ({"prompt": "x" * 8001}, "prompt", "string_too_long"),
        ({"prompt": "a\0b"}, "prompt", "nul_character"),
        ({"prompt": "a {b c}"}, "prompt", "malformed"),
        ({"prompt": "".join(f"{{a{n}}}" for n in range(101))}, "prompt", "too_many_variables"),
        ({"image": "data:image/png;base64,"}, "image", "file_expected"),
        ({"colour": "red"}, "colour", "extra_forbidden"),
    ],
)
async def test_a_wrong_text_is_named(
    served: Gateway, route: Route, change: dict[str, str], field: str, code: str
) -> None:
    picture = None if "image" in change else bytes_of("red")
    answer = await form(served, route.method, route.path, route.texts | change, picture)
    assert problem(answer) == (422, [(field, code)])


@pytest.mark.parametrize("keyword", ["", "a{b", "{a b}"])
async def test_a_wrong_keyword_is_named(served: Gateway, keyword: str) -> None:
    sent = TEMPLATE | {"trigger_keyword": keyword}
    status, errors = problem(await form(served, "POST", "/api/templates", sent, bytes_of("red")))
    assert (status, [field for field, _ in errors]) == (422, ["trigger_keyword"])


@pytest.mark.parametrize("style_id", ["", "Ink", "a_b", "-a", "a--b", "a b", "x" * 65, "ä"])
async def test_a_style_id_is_a_slug(served: Gateway, style_id: str) -> None:
    status, errors = problem(await form(served, "POST", "/api/styles", STYLE | {"id": style_id}))
    assert (status, [field for field, _ in errors]) == (422, ["id"])


@pytest.mark.parametrize(
    ("path", "texts", "missing"),
    [
        ("/api/templates", {}, ["name", "prompt", "image"]),
        ("/api/templates", TEMPLATE, ["image"]),
        ("/api/styles", {}, ["id", "name", "prompt"]),
    ],
)
async def test_what_is_required_is_named(
    served: Gateway, path: str, texts: dict[str, str], missing: list[str]
) -> None:
    answer = await no_file_chosen(served, "POST", path, texts)
    assert problem(answer) == (422, [(field, "missing") for field in missing])


async def test_a_change_that_changes_nothing_is_refused(served: Gateway) -> None:
    answer = await no_file_chosen(served, "PUT", "/api/styles/clay", {})
    assert problem(answer) == (422, [("body", "empty")])


@each_route
async def test_a_part_that_comes_twice_is_refused(served: Gateway, route: Route) -> None:
    parts: list[tuple[str, Any]] = [(name, (None, text)) for name, text in route.texts.items()]
    parts.append(("name", (None, "again")))
    answer = await served.http.request(route.method, route.path, files=parts)
    assert problem(answer) == (422, [("name", "sent_twice")])


@each_route
@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("", b"x", 415),
        ("multipart/form-data", b"x", 422),
        ("multipart/form-data; boundary=b", b"nothing of the kind", 422),
        ("multipart/form-data; boundary=b", b"--b\r\nNo-Name: 1\r\n\r\nx\r\n--b--", 422),
        ("multipart/form-data; boundary=b", LONG_TEXT, 422),
    ],
)
async def test_what_is_no_form_is_refused(
    served: Gateway, route: Route, content_type: str, body: bytes, status: int
) -> None:
    headers = {"Content-Type": content_type}
    answer = await served.http.request(route.method, route.path, content=body, headers=headers)
    codes = {415: "unsupported_media_type", 422: "invalid_parameters"}
    assert (answer.status_code, answer.json()["code"]) == (status, codes[status]), answer.text


async def test_a_form_of_texts_alone_may_be_urlencoded(tmp_path: Path) -> None:
    async with gateway(tmp_path / "own") as served:
        answer = await served.http.post("/api/styles", data=STYLE)
        assert answer.status_code == 201, answer.text
        assert answer.json()["prompt"] == STYLE["prompt"]


async def test_a_full_disk_is_a_507(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_: UploadFile, __: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(UploadFile, "write", full)
    answer = await form(served, "POST", "/api/templates", TEMPLATE, bytes_of("red"))
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")


async def test_nothing_is_taken_without_a_key(served: Gateway) -> None:
    stranger: httpx.AsyncClient = served.stranger
    for method, path, texts in ROUTES:
        answer = await stranger.request(method, path, data=texts)
        assert answer.status_code == 401
