import json
import uuid
from typing import Any

import pytest

from .graphs import Graph, failing, long_run, node, picture
from .wire import Comfy, images

UUID_IDS = (0, 24, 1)
"""The first version that insists on canonical UUIDs as prompt ids."""


def test_an_accepted_prompt_is_answered_with_its_id_a_number_and_no_errors(comfy: Comfy) -> None:
    answer = comfy.post(picture())
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"prompt_id", "number", "node_errors"}
    assert isinstance(body["number"], int)
    assert body["node_errors"] == {}


def test_our_own_prompt_id_is_kept(comfy: Comfy) -> None:
    mine = str(uuid.uuid4())
    assert comfy.post(picture(), prompt_id=mine).json()["prompt_id"] == mine
    assert comfy.wait_history(mine)["prompt"][1] == mine


def test_without_a_prompt_id_the_server_invents_a_uuid(comfy: Comfy) -> None:
    answer = comfy.http.post("/prompt", json={"prompt": picture()}).json()
    assert str(uuid.UUID(answer["prompt_id"])) == answer["prompt_id"]
    comfy.wait_history(answer["prompt_id"])


@pytest.mark.parametrize(
    "odd",
    ["my-run", "a/b", str(uuid.uuid4()).upper(), uuid.uuid4().hex],
    ids=["words", "path", "upper", "hex"],
)
def test_a_prompt_id_that_is_no_canonical_uuid_works_in_old_versions_only(
    comfy: Comfy, odd: str
) -> None:
    answer = comfy.post(picture(), prompt_id=odd)
    if comfy.version >= UUID_IDS:
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_prompt_id"
        assert answer.json()["node_errors"] == {}
    else:
        assert answer.json()["prompt_id"] == odd
        assert comfy.wait_history(odd)


def test_a_null_prompt_id_is_the_word_none_in_old_versions_and_a_new_uuid_later(
    comfy: Comfy,
) -> None:
    prompt_id = comfy.post(picture(), prompt_id=None).json()["prompt_id"]
    comfy.wait_history(prompt_id)
    if comfy.version >= UUID_IDS:
        assert uuid.UUID(prompt_id)
    else:
        assert prompt_id == "None"


def test_the_number_counts_up_and_rejected_prompts_use_one_up_too(comfy: Comfy) -> None:
    first = comfy.post(picture()).json()["number"]
    assert comfy.post({}).status_code == 400
    assert comfy.post(picture()).json()["number"] == first + 2


def test_a_number_of_our_own_is_kept_and_does_not_move_the_counter(comfy: Comfy) -> None:
    first = comfy.post(picture()).json()["number"]
    assert comfy.post(picture(), number=-7.5).json()["number"] == -7.5
    assert comfy.post(picture()).json()["number"] == first + 1


def test_duplicate_prompt_ids_both_run_and_the_later_one_owns_the_history(comfy: Comfy) -> None:
    prompt_id = str(uuid.uuid4())
    with comfy.listen() as listener:
        first, second = picture(), picture()
        for graph in (first, second):
            comfy.submit(graph, listener, prompt_id=prompt_id)
        for _ in range(2):
            events = listener.until_end(prompt_id)
            assert any(event.type == "executed" for event in events)
    assert comfy.history(prompt_id)["prompt"][2] == second


def test_a_finished_prompt_id_may_be_used_again_and_its_history_is_replaced(comfy: Comfy) -> None:
    prompt_id = str(uuid.uuid4())
    comfy.run(failing(), prompt_id=prompt_id)
    _, entry = comfy.run(picture(), prompt_id=prompt_id)
    assert entry["status"]["status_str"] == "success"


def test_one_invalid_output_beside_a_valid_one_is_answered_200_with_node_errors(
    comfy: Comfy,
) -> None:
    graph = {**picture(), "7": node("SaveImage", filename_prefix="conformance/never")}
    answer = comfy.post(graph)
    assert answer.status_code == 200
    errors = answer.json()["node_errors"]
    assert [error["type"] for error in errors["7"]["errors"]] == ["required_input_missing"]
    entry = comfy.wait_history(answer.json()["prompt_id"])
    assert list(entry["outputs"]) == ["2"]
    assert entry["status"]["status_str"] == "success"
    assert entry["prompt"][4] == ["2"]


def test_partial_execution_targets_choose_among_the_output_nodes(comfy: Comfy) -> None:
    graph = picture()
    graph["3"] = node("SaveImage", images=["1", 0], filename_prefix="conformance/unwanted")
    _, entry = comfy.run(graph, partial_execution_targets=["2", "1"])
    assert list(entry["outputs"]) == ["2"]
    _, entry = comfy.run(graph | {"4": graph["2"]}, partial_execution_targets=None)
    assert {"2", "3"} <= set(entry["outputs"])


@pytest.mark.parametrize("targets", [[], ["1"], ["99"]])
def test_targets_that_name_no_output_node_are_refused(comfy: Comfy, targets: list[str]) -> None:
    answer = comfy.post(picture(), partial_execution_targets=targets)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "prompt_no_outputs"


def test_extra_data_is_kept_with_the_client_id_merged_in(comfy: Comfy) -> None:
    pnginfo = {"workflow": {"a": 1}, "ours": "x"}
    with comfy.listen() as listener:
        extra = {"extra_pnginfo": pnginfo}
        prompt_id = comfy.submit(picture(), listener, extra_data=extra)
        listener.until_end(prompt_id)
        kept = comfy.history(prompt_id)["prompt"][3]
        assert kept["extra_pnginfo"] == pnginfo
        assert kept["client_id"] == listener.client_id
    assert ("create_time" in kept) == (comfy.version >= (0, 3, 69))


def test_undeclared_inputs_and_meta_are_ignored(comfy: Comfy) -> None:
    graph = picture()
    graph["1"]["_meta"] = {"title": "A title"}
    graph["1"]["inputs"]["nobody_declared_this"] = "x"
    _, entry = comfy.run(graph)
    assert entry["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    ("name", "given"),
    [("width", "64"), ("width", 64.9), ("batch_size", True), ("color", "255")],
)
def test_literals_are_converted_rather_than_refused(comfy: Comfy, name: str, given: object) -> None:
    graph = picture()
    graph["1"]["inputs"][name] = given
    _, entry = comfy.run(graph)
    assert len(images(entry)) == 1


def test_queued_prompts_are_kept_as_number_id_graph_extra_outputs(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        graph: Graph = long_run()
        prompt_id = comfy.submit(graph, listener)
        listener.until_type("progress")
        items: list[Any] = comfy.http.get("/queue").json()["queue_running"]
    assert len(items) == 1
    number, running, kept, extra, outputs = items[0]
    assert isinstance(number, int)
    assert running == prompt_id
    assert json.dumps(kept, sort_keys=True) == json.dumps(graph, sort_keys=True)
    assert extra["client_id"] == listener.client_id
    assert outputs == ["9"]
