"""`/api/workflows` over HTTP, with a backend that takes everything: what is refused, and how."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate

from gateway.api.workflow_views import SendWorkflow
from gateway.own_workflows.example import EXAMPLE
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.own_workflows import Json
from tests.support.receiver import receiver

NODE = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
MAKES = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


def workflow(name: str = "mine", **change: Any) -> Json:
    """Two nodes: one makes a picture, one keeps it."""
    made = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    kept = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    return {"name": name, "graph": {"1": made, "2": kept}, **change}


def marked(title: str, **inputs: Any) -> Json:
    made = workflow()
    made["graph"]["1"]["_meta"] = {"title": title}
    made["graph"]["1"]["inputs"] |= inputs
    return made


async def refused(served: Gateway, body: object, status: int = 422) -> Json:
    answer = await served.http.post("/api/workflows", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


async def only_error(served: Gateway, body: object) -> Json:
    (error,) = (await refused(served, body))["errors"]
    return error


async def test_a_file_of_the_editor_is_refused_with_the_way_to_the_right_one(
    served: Gateway,
) -> None:
    editor = {"last_node_id": 2, "nodes": [{"id": 1, "type": "KSampler"}], "links": []}
    for graph in (editor, json.dumps(editor)):
        error = await only_error(served, workflow(graph=graph))
        assert (error["field"], error["code"]) == ("graph", "ui_format")
        assert "File → Export (API)" in error["message"]


async def test_the_text_of_the_file_is_as_good_as_the_object(served: Gateway) -> None:
    sent = workflow()
    answer = await served.http.post(
        "/api/workflows", json=sent | {"graph": json.dumps(sent["graph"])}
    )
    assert answer.status_code == 201
    again = await served.http.post("/api/workflows", json=sent)
    assert (again.status_code, again.json()["version"]) == (200, 1)


BROKEN: list[tuple[Any, str, str]] = [
    ({}, "graph", "workflow_invalid"),
    ("no JSON", "graph", "json_invalid"),
    ({"1": 5}, "graph", "workflow_invalid"),
    ({"1": {"inputs": {}}}, "graph", "workflow_invalid"),
    ({"1": {"class_type": "A", "inputs": {"x": ["9", 0]}}}, "graph.1", "workflow_invalid"),
    ({"1": {"class_type": "A", "inputs": {"x": ["1", 0]}}}, "graph", "workflow_invalid"),
    ({"1.2": MAKES}, "graph.1.2", "bad_node_id"),
    ({"1": MAKES | {"_meta": 1}}, "graph.1", "workflow_invalid"),
    ({"1": MAKES}, "graph", "no_outputs"),
    ({str(n): MAKES for n in range(2001)}, "graph", "too_large"),
    ({"1": {**NODE, "inputs": {"a": "x" * 2_000_000}}}, "graph", "too_large"),
    (
        {"1": MAKES, "2": {**NODE, "inputs": {**NODE["inputs"], "filename_prefix": ["1", 0]}}},
        "graph.2.inputs.filename_prefix",
        "linked_prefix",
    ),
    (
        {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}, "2": NODE},
        "graph.1.inputs.image",
        "unmarked_file",
    ),
]


async def test_a_graph_that_cannot_be_names_the_place(served: Gateway) -> None:
    for graph, field, code in BROKEN:
        error = await only_error(served, workflow(graph=graph))
        assert (error["field"], error["code"]) == (field, code)
    assert (await refused(served, workflow(graph=[1, 2])))["errors"]


async def test_json_nobody_can_keep_is_refused(served: Gateway) -> None:
    deep: Any = 1
    for _ in range(150):
        deep = [deep]
    body = workflow()
    body["graph"]["1"]["inputs"]["width"] = {"__value__": deep}
    assert (await only_error(served, body))["code"] == "too_deep"
    body["graph"]["1"]["inputs"]["width"] = "\ud800"
    text = json.dumps(body)
    answer = await served.http.post(
        "/api/workflows", content=text, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422
    much = workflow(graph="[" * 100_000)
    assert (await only_error(served, much))["code"] == "json_invalid"


MARKS = [
    ("input: width size", "write input: width_size"),
    ("input: Width", "write input: width"),
    ("input:", "write input: prompt"),
    ("input: size", "it has width, height, batch_size"),
    ("input: size.depth", "it has width, height, batch_size"),
    ("output: Ä", "write output: prompt"),
]


async def test_a_mark_that_cannot_be_followed_says_what_to_write(served: Gateway) -> None:
    for title, said in MARKS:
        error = await only_error(served, marked(title))
        assert (error["field"], error["code"]) == ("graph.1", "bad_mark")
        assert error["message"].startswith("node 1 (EmptyImage)")
        assert said in error["message"]


async def test_a_name_every_call_has_already_is_no_parameter(served: Gateway) -> None:
    for name in ("priority", "variant", "webhook_url", "copy", "model_dump", "output_format"):
        error = await only_error(served, marked(f"input: {name}.width"))
        assert (error["field"], error["code"]) == (f"params.{name}", "reserved")


MANIFESTS: list[tuple[Json, str]] = [
    ({"params": {"w": {"bind": "1.depth"}}}, "graph.1.inputs.depth"),
    ({"params": {"w": {"bind": "7.width"}}}, "graph.7.inputs.width"),
    ({"params": {"w": {"bind": "1.width", "shema": {}}}}, "manifest.params.w.shema"),
    (
        {"params": {"w": {"bind": "1.width", "schema": {"default": 1}}}},
        "manifest.params.w.schema.default",
    ),
    (
        {"params": {"w": {"bind": "1.width", "schema": {"type": "string"}}}},
        "params.w.schema.type",
    ),
    ({"params": {"w": {"bind": "1.width", "limits": {"minimum": 65}}}}, "params.w"),
    ({"params": {"w": {"bind": "2.filename_prefix"}}}, "params.w"),
    ({"params": {}, "outputs": {"x": {"node": "9", "kind": "image"}}}, "outputs.x"),
    ({"outputs": {"x": {"node": "2", "kind": "image", "max": 17}}}, "outputs.x.max"),
    (
        {
            "params": {"n": {"bind": "1.batch_size"}},
            "outputs": {"x": {"node": "2", "kind": "image", "max": "n"}},
        },
        "outputs.x.max",
    ),
    ({"params": 5}, "manifest.params"),
    ({"params": {}, "fixed": 5}, "manifest.fixed"),
]


async def test_a_manifest_that_does_not_fit_names_the_place(served: Gateway) -> None:
    for manifest, field in MANIFESTS:
        assert (await only_error(served, workflow(manifest=manifest)))["field"] == field


async def test_a_name_is_a_path_anyone_can_type(served: Gateway) -> None:
    for name in ("", "Mine", "a_b", "-a", "a" * 65, "a/b", "../x"):
        assert (await only_error(served, workflow(name)))["field"] == "name"


async def test_texts_of_the_graph_and_of_calls_are_held_to_the_policy(served: Gateway) -> None:
    encode = {"class_type": "CLIPTextEncode", "inputs": {"text": "undress her", "clip": ["1", 0]}}
    body = workflow()
    body["graph"]["3"] = encode
    problem = await refused(served, body)
    assert problem["code"] == "policy_violation"
    assert problem["errors"][0]["field"] == "3.text"
    assert "undress" not in problem["detail"].replace("undressed", "")
    encode["inputs"]["text"] = "a mug"
    encode["_meta"] = {"title": "input: prompt"}
    assert (await served.http.post("/api/workflows", json=body)).status_code == 201
    answer = await served.http.post("/api/workflows/mine/run", json={"prompt": "undress her"})
    assert answer.json()["code"] == "policy_violation"
    assert answer.json()["errors"][0]["field"] == "prompt"


async def test_there_are_as_many_as_the_setting_says(tmp_path: Path) -> None:
    async with gateway(tmp_path / "w", own_workflows_max=1) as served:
        assert (await served.http.post("/api/workflows", json=workflow("one"))).is_success
        assert (await refused(served, workflow("two"), 409))["code"] == "conflict"
        changed = workflow("one")
        changed["graph"]["1"]["inputs"]["width"] = 128
        assert (await served.http.post("/api/workflows", json=changed)).json()["version"] == 2
        assert (await served.http.delete("/api/workflows/one")).status_code == 204
        assert (await served.http.delete("/api/workflows/one")).status_code == 404
        assert (await served.http.post("/api/workflows", json=workflow("two"))).is_success


async def test_they_can_be_switched_off_and_are_where_nobody_needs_a_key(tmp_path: Path) -> None:
    async with gateway(tmp_path / "off", own_workflows=False) as served:
        assert (await refused(served, workflow(), 403))["code"] == "not_enabled"
        answer = await served.http.post("/api/workflows/mine/run", json={})
        assert answer.json()["code"] == "not_enabled"
        assert (await served.http.get("/api/workflows")).json()["items"] == []
    async with gateway(tmp_path / "open", key=None) as served:
        assert (await refused(served, workflow(), 403))["code"] == "not_enabled"
    async with gateway(tmp_path / "on", key=None, own_workflows=True) as served:
        assert (await served.http.post("/api/workflows", json=workflow())).status_code == 201


async def test_the_list_comes_in_pages_by_name(served: Gateway) -> None:
    for name in ("c", "a", "b"):
        await served.http.post("/api/workflows", json=workflow(name))
    first = (await served.http.get("/api/workflows", params={"limit": 2})).json()
    assert [item["name"] for item in first["items"]] == ["a", "b"]
    cursor = first["next_cursor"]
    last = (await served.http.get("/api/workflows", params={"cursor": cursor})).json()
    assert ([item["name"] for item in last["items"]], last["next_cursor"]) == (["c"], None)


async def test_the_document_has_each_of_them_and_its_example_runs(served: Gateway) -> None:
    assert (await served.http.post("/api/workflows", json=EXAMPLE)).status_code == 201
    document = (await served.http.get("/openapi.json")).json()
    validate(document)
    run = document["paths"]["/api/workflows/half-size/run"]["post"]
    content = run["requestBody"]["content"]["application/json"]
    schema = document["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    assert schema["required"] == ["picture"]
    assert {"factor", "picture", "webhook_url"} <= schema["properties"].keys()
    (example,) = content["examples"].values()
    answer = await served.http.post("/api/workflows/half-size/run", json=example["value"])
    assert answer.status_code == 200, answer.text
    ids = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(set(ids)) == len(ids)


async def test_a_stranger_sees_nobodys_workflows_but_by_a_signed_link(served: Gateway) -> None:
    await served.http.post("/api/workflows", json=EXAMPLE | {"name": "private"})
    assert "workflows/private" not in (await served.stranger.get("/openapi.json")).text
    docs = (await served.http.get("/api/workflows")).json()["docs_url"]
    page = await served.stranger.get(docs)
    assert page.status_code == 200
    query = docs.partition("?")[2]
    assert query in page.text
    assert "workflows/private" in (await served.stranger.get(f"/openapi.json?{query}")).text
    forged = query[:-4] + "AAAA"
    assert "workflows/private" not in (await served.stranger.get(f"/openapi.json?{forged}")).text
    for path in ("/api/workflows", "/api/workflows/private", "/api/outputs"):
        assert (await served.stranger.get(path)).status_code in {401, 404}
    assert (await served.stranger.post("/api/workflows/private/run", json={})).status_code == 401


async def test_what_a_caller_writes_never_becomes_a_files_name(served: Gateway) -> None:
    body = workflow()
    body["graph"]["2"]["inputs"]["filename_prefix"] = "../../etc/passwd"
    assert (await served.http.post("/api/workflows", json=body)).status_code == 201
    manifest = (await served.http.get("/api/workflows/mine")).json()["manifest"]
    assert manifest["fixed"] == {"2.filename_prefix": "jobs/{run_id}/2"}


def test_the_example_of_the_documentation_is_what_is_taken() -> None:
    assert SendWorkflow.model_validate(EXAMPLE).name == "half-size"


async def test_a_webhook_tells_of_their_jobs_too_even_when_they_are_gone(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    async with (
        gateway(tmp_path / "w", backend, webhook_allow_private=True) as served,
        receiver() as there,
    ):
        await served.http.post("/api/workflows", json=workflow())
        body = {"webhook_url": there.url}
        taken = await served.http.post("/api/workflows/mine/run/async", json=body)
        assert taken.headers["location"] == f"/api/workflows/mine/run/{taken.json()['job_id']}"
        await served.http.delete("/api/workflows/mine")
        backend.gate.set()
        await there.until(1)
        job = (await served.http.get(taken.headers["location"])).json()
    said = json.loads(there.received[0].body)
    assert said["data"]["tool"] == "workflows/mine"
    assert said["data"]["result"]["outputs"] == job["result"]["outputs"]
    assert len(job["result"]["outputs"]["images"]) == 16
