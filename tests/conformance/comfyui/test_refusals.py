"""Every row of the table of refusals: status, error.type, and the types under node_errors."""

from collections.abc import Callable
from typing import Any

import pytest

from .graphs import Graph, node, picture, text_to_image
from .wire import Comfy, Json

MISSING_NODE_TYPE = (0, 11, 2)
CYCLES_NAMED = (0, 19, 4)
V3_COMBOS_CHECKED = (0, 7, 1)


def with_input(number: str, name: str, value: object) -> Graph:
    graph = text_to_image(seed=1)
    graph[number]["inputs"][name] = value
    return graph


def without_input(number: str, name: str) -> Graph:
    graph = text_to_image(seed=1)
    del graph[number]["inputs"][name]
    return graph


def cycle() -> Graph:
    return {
        "1": node("ImageInvert", image=["3", 0]),
        "3": node("ImageInvert", image=["1", 0]),
        "2": node("SaveImage", images=["1", 0], filename_prefix="conformance/cycle"),
    }


REFUSED: list[tuple[str, Callable[[], Graph], str, str]] = [
    ("a missing input", lambda: without_input("3", "seed"), "3", "required_input_missing"),
    ("a value too small", lambda: with_input("3", "steps", 0), "3", "value_smaller_than_min"),
    ("a value too big", lambda: with_input("3", "cfg", 1e6), "3", "value_bigger_than_max"),
    ("a negative seed", lambda: with_input("3", "seed", -1), "3", "value_smaller_than_min"),
    ("a seed of 2^64", lambda: with_input("3", "seed", 2**64), "3", "value_bigger_than_max"),
    ("no number", lambda: with_input("3", "steps", "many"), "3", "invalid_input_type"),
    ("no choice", lambda: with_input("3", "scheduler", "x"), "3", "value_not_in_list"),
    ("no such file", lambda: with_input("4", "ckpt_name", "x.ckpt"), "4", "value_not_in_list"),
    ("no such LoRA", lambda: with_input("10", "lora_name", "x"), "10", "value_not_in_list"),
    ("a wrong type", lambda: with_input("3", "model", ["5", 0]), "3", "return_type_mismatch"),
    ("a link of three", lambda: with_input("8", "samples", ["3", 0, 1]), "8", "bad_linked_input"),
    (
        "a link to no node",
        lambda: with_input("9", "images", ["77", 0]),
        "9",
        "exception_during_validation",
    ),
    (
        "a link to no node, further up",
        lambda: with_input("3", "model", ["77", 0]),
        "3",
        "exception_during_inner_validation",
    ),
]


@pytest.mark.parametrize(("case", "graph", "where", "kind"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_graph_that_fails_validation_is_refused_with_the_node_and_the_kind(
    comfy: Comfy, case: str, graph: Callable[[], Graph], where: str, kind: str
) -> None:
    answer = comfy.post(graph())
    assert answer.status_code == 400, case
    body = answer.json()
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    assert set(body["error"]) == {"type", "message", "details", "extra_info"}
    found = body["node_errors"][where]
    assert kind in [error["type"] for error in found["errors"]]
    assert found["class_type"] == graph()[where]["class_type"]
    assert found["dependent_outputs"] == ["9"]


def test_an_error_names_the_input_and_what_was_received(comfy: Comfy) -> None:
    body = comfy.post(with_input("3", "steps", 0)).json()
    (error,) = body["node_errors"]["3"]["errors"]
    assert set(error) == {"type", "message", "details", "extra_info"}
    assert error["extra_info"]["input_name"] == "steps"
    assert error["extra_info"]["received_value"] == 0
    assert error["extra_info"]["input_config"][0] == "INT"


def test_a_missing_load_image_file_fails_a_custom_validation(comfy: Comfy) -> None:
    graph = {
        "1": node("LoadImage", image="nope.png"),
        "2": node("SaveImage", images=["1", 0], filename_prefix="conformance/nope"),
    }
    answer = comfy.post(graph)
    assert answer.status_code == 400
    (error,) = answer.json()["node_errors"]["1"]["errors"]
    assert error["type"] == "custom_validation_failed"
    assert error["details"] == "image - Invalid image file: nope.png"


def test_no_prompt_key_is_refused(comfy: Comfy) -> None:
    answer = comfy.http.post("/prompt", json={"client_id": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "no_prompt"


@pytest.mark.parametrize("graph", [{}, {"1": picture()["1"]}])
def test_a_graph_without_an_output_node_is_refused(comfy: Comfy, graph: Graph) -> None:
    answer = comfy.post(graph)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "prompt_no_outputs"
    assert answer.json()["node_errors"] == {}


@pytest.mark.parametrize(
    ("extra", "details"),
    [
        ({"1": {"inputs": {}}}, "Node ID '#1'"),
        ({"1": node("NobodyWroteThisNode")}, "Node ID '#1'"),
        ({"_meta": {"title": "x"}}, "Node ID '#_meta'"),
    ],
)
def test_an_unknown_or_missing_class_is_refused_without_node_errors(
    comfy: Comfy, extra: Json, details: str
) -> None:
    answer = comfy.post({**picture(), **extra})
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    newer = comfy.version >= MISSING_NODE_TYPE
    assert error["type"] == ("missing_node_type" if newer else "invalid_prompt")
    assert error["details"] == details
    assert answer.json()["node_errors"] == {}
    assert set(error["extra_info"]) == ({"node_id", "class_type", "node_title"} if newer else set())


def test_a_file_of_the_editor_is_refused_by_newer_versions_with_a_500(comfy: Comfy) -> None:
    answer = comfy.post({"nodes": [], "links": []})
    if comfy.version >= MISSING_NODE_TYPE:
        assert answer.status_code == 500
    else:
        assert answer.status_code == 400
        assert answer.json()["error"]["details"] == "Node ID '#nodes'"


def test_a_cycle_is_refused_and_named_only_by_newer_versions(comfy: Comfy) -> None:
    answer = comfy.post(cycle())
    assert answer.status_code == 400
    body = answer.json()
    assert body["error"]["type"] == "prompt_outputs_failed_validation"
    if comfy.version >= CYCLES_NAMED:
        kinds = {e["type"] for found in body["node_errors"].values() for e in found["errors"]}
        assert kinds == {"dependency_cycle"}
    else:
        assert body["node_errors"] == {}


def test_a_new_style_choice_is_checked_at_the_door_only_by_newer_versions(comfy: Comfy) -> None:
    graph = picture()
    video = node("SaveWEBM", images=["1", 0], filename_prefix="conformance/v", fps=24.0, crf=32.0)
    video["inputs"]["codec"] = "bogus"
    answer = comfy.post({"1": graph["1"], "2": video})
    if comfy.version >= V3_COMBOS_CHECKED:
        assert answer.status_code == 400
        (error,) = answer.json()["node_errors"]["2"]["errors"]
        assert error["type"] == "value_not_in_list"
    else:
        assert answer.status_code == 200
        entry = comfy.wait_history(answer.json()["prompt_id"])
        assert entry["status"]["messages"][-1][0] == "execution_error"


@pytest.mark.parametrize(
    "body", [b"not json", b'{"prompt": null}', b'{"prompt": [1]}', b'{"prompt": {}, "number": "x"}']
)
def test_a_malformed_body_is_a_500_whose_text_is_no_json(comfy: Comfy, body: bytes) -> None:
    answer = comfy.http.post("/prompt", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 500
    assert answer.text.startswith("500 Internal Server Error")


def test_a_body_beyond_the_stated_limit_is_refused_with_413(comfy: Comfy) -> None:
    limit = comfy.http.get("/features").json()["max_upload_size"]
    if limit > 200 * 1024 * 1024:
        pytest.skip("this server takes bodies too big to try")
    answer = comfy.http.post("/prompt", content=b'{"prompt": "' + b"x" * limit + b'"}')
    assert answer.status_code == 413
