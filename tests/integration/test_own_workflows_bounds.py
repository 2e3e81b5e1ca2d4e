"""`/api/workflows` over HTTP at the ends of what a graph, a template and a number can be."""

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.security.policy import Bounds, PolicyCall
from tests.support.gateway import Gateway, gateway
from tests.support.own_workflows import Json

RUN = "/api/workflows/mine/run/async"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


def workflow(**params: Json) -> Json:
    made = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "label": "a"}}
    kept = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    body: Json = {"name": "mine", "graph": {"1": made, "2": kept}}
    return body | {"manifest": {"params": params}} if params else body


async def only_error(served: Gateway, path: str, body: object) -> Json:
    answer = await served.http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    return error


async def test_a_template_that_says_its_value_without_end_is_not_taken(served: Gateway) -> None:
    body = workflow(prompt={"bind": {"to": "1.label", "template": "{value} " * 1500}})
    assert (await only_error(served, "/api/workflows", body))["field"].startswith(
        "manifest.params.prompt.bind"
    )


async def test_a_value_that_its_template_makes_too_long_is_named(served: Gateway) -> None:
    body = workflow(prompt={"bind": {"to": "1.label", "template": "{value} " * 10}})
    assert (await served.http.post("/api/workflows", json=body)).status_code == 201
    assert (await only_error(served, RUN, {"prompt": "x" * 8000}))["field"] == "prompt"
    taken = await served.http.post(RUN, json={"prompt": "a mug"})
    assert taken.status_code == 202, taken.text


async def test_a_number_that_becomes_infinite_is_named(served: Gateway) -> None:
    body = workflow(a={"bind": {"to": "1.width", "scale": 1e300}})
    assert (await served.http.post("/api/workflows", json=body)).status_code == 201
    assert (await only_error(served, RUN, {"a": 1e10}))["field"] == "a"


async def test_a_graph_with_more_text_than_is_looked_at_is_not_taken(served: Gateway) -> None:
    body = workflow()
    body["graph"]["1"]["inputs"]["label"] = "a mug " * 20_000
    assert (await only_error(served, "/api/workflows", body))["field"] == "graph"


@pytest.mark.parametrize("graph", [None, [], 5])
async def test_a_graph_that_is_none_is_named_as_the_graph(served: Gateway, graph: Any) -> None:
    error = await only_error(served, "/api/workflows", {"name": "mine", "graph": graph})
    assert (error["field"], error["code"]) == ("graph", "not_a_graph")


@pytest.mark.parametrize("cursor", ["zzzz", "a", "ä", "bWluZQ"])
async def test_a_cursor_of_no_list_is_refused(served: Gateway, cursor: str) -> None:
    answer = await served.http.get("/api/workflows", params={"cursor": cursor})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == ("cursor", "invalid_cursor")


async def test_a_long_text_is_judged_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[threading.Thread] = []

    def judged(_: Bounds, _call: PolicyCall) -> None:
        where.append(threading.current_thread())

    monkeypatch.setattr(Bounds, "_judge", judged)
    for text in ("a mug", "a mug " * 10_000):
        call = PolicyCall(tool="t", variant="v1", caller="c", params={"prompt": text})
        await Bounds().check(call)
    here = threading.current_thread()
    assert [thread is here for thread in where] == [True, False]
