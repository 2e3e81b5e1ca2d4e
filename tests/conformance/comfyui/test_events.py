"""What a run says on its websocket, and in which order."""

import time
import uuid

import pytest

from .graphs import failing, fresh_prefix, long_run, node, picture, text_to_image
from .wire import Comfy, Event, images

THROTTLED = (0, 9, 2)
RAM_CACHE = (0, 22)


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def test_the_first_message_is_the_queue_status_with_the_client_id(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        first = listener.next()
    assert first.type == "status"
    assert first.data["sid"] == listener.client_id
    assert isinstance(first.data["status"]["exec_info"]["queue_remaining"], int)


def test_without_a_client_id_the_server_invents_one(comfy: Comfy) -> None:
    with comfy.listen("") as listener:
        assert listener.next().data["sid"]


def test_a_successful_run_tells_its_nodes_in_order_and_ends_with_executing_null(
    comfy: Comfy,
) -> None:
    events, _ = comfy.run(picture())
    assert types(events) == [
        "execution_start",
        "execution_cached",
        "progress_state",
        "executing",
        "progress_state",
        "progress_state",
        "executing",
        "executed",
        "progress_state",
        "execution_success",
        "executing",
    ]
    assert [e.node for e in events if e.type == "executing"] == ["1", "2", None]
    assert len({e.data["prompt_id"] for e in events}) == 1


def test_status_counts_the_queue_before_and_after_a_run(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        prompt_id = comfy.submit(picture(), listener)
        events = [listener.next(), *listener.until_end(prompt_id)]
    counts = [
        e.data["status"]["exec_info"]["queue_remaining"] for e in events if e.type == "status"
    ]
    assert counts == [0, 1, 1, 0]
    assert types(events)[-2:] == ["status", "executing"]


def test_a_sampler_reports_its_steps_with_node_and_prompt(comfy: Comfy) -> None:
    events, entry = comfy.run(text_to_image(seed=uuid.uuid4().int % 2**32, steps=4))
    steps = [e.data for e in events if e.type == "progress"]
    values = [step["value"] for step in steps]
    if comfy.version < THROTTLED:
        assert values == [1, 2, 3, 4]
    assert (values[0], values[-1]) == (1, 4)
    assert values == sorted(set(values))
    assert {step["max"] for step in steps} == {4}
    assert {step["node"] for step in steps} == {"3"}
    assert {step["prompt_id"] for step in steps} == {entry["prompt"][1]}
    before = [events[i - 1] for i, e in enumerate(events) if e.type == "progress"]
    assert set(types(before)) == {"progress_state"}
    assert [e.data["nodes"]["3"]["value"] for e in before] == values


def test_newer_versions_tell_no_more_than_ten_steps_a_second(comfy: Comfy) -> None:
    began = time.monotonic()
    events, _ = comfy.run(text_to_image(seed=uuid.uuid4().int % 2**32, steps=30))
    told = sum(event.type == "progress" for event in events)
    if comfy.version < THROTTLED:
        assert told == 30
    else:
        assert told <= 2 + (time.monotonic() - began) * 10


def test_progress_state_describes_every_node_started_so_far(comfy: Comfy) -> None:
    events, entry = comfy.run(picture())
    states = [e.data["nodes"] for e in events if e.type == "progress_state"]
    assert [sorted(state) for state in states] == [["1"], ["1"], ["1", "2"], ["1", "2"]]
    assert [state["1"]["state"] for state in states] == ["running"] + ["finished"] * 3
    assert states[0]["1"] == {
        "value": 0.0,
        "max": 1.0,
        "state": "running",
        "node_id": "1",
        "prompt_id": entry["prompt"][1],
        "display_node_id": "1",
        "parent_node_id": None,
        "real_node_id": "1",
    }


def test_executed_carries_the_same_files_as_the_history(comfy: Comfy) -> None:
    events, entry = comfy.run(picture(batch=2))
    (done,) = [e for e in events if e.type == "executed"]
    assert done.data["output"] == entry["outputs"]["2"]
    assert done.data["node"] == done.data["display_node"] == "2"
    assert len(images(entry)) == 2


def test_a_preview_node_reports_temporary_files(comfy: Comfy) -> None:
    graph = picture()
    graph["2"] = node("PreviewImage", images=["1", 0])
    _, entry = comfy.run(graph)
    (file,) = images(entry)
    assert file["type"] == "temp"
    assert comfy.view(file).startswith(b"\x89PNG")


def test_a_cached_run_executes_nothing_and_answers_the_old_file_names(comfy: Comfy) -> None:
    graph = picture()
    _, first = comfy.run(graph)
    events, second = comfy.run(graph)
    assert types(events) == [
        "execution_start",
        "execution_cached",
        "executed",
        "progress_state",
        "execution_success",
        "executing",
    ]
    assert sorted(events[1].data["nodes"]) == ["1", "2"]
    assert second["outputs"] == first["outputs"]


def test_a_new_file_name_prefix_executes_the_save_node_alone(comfy: Comfy) -> None:
    graph = text_to_image(seed=uuid.uuid4().int % 2**32)
    _, first = comfy.run(graph)
    graph["9"]["inputs"]["filename_prefix"] = fresh_prefix()
    events, second = comfy.run(graph)
    (cached,) = [e for e in events if e.type == "execution_cached"]
    assert sorted(cached.data["nodes"], key=int) == ["3", "4", "5", "6", "7", "8", "10"]
    assert [e.node for e in events if e.type == "executing"] == ["9", None]
    assert images(first) != images(second)
    assert comfy.view(images(second)[0])


def test_only_the_nodes_of_the_previous_run_are_cached(comfy: Comfy) -> None:
    system = comfy.http.get("/system_stats").json()["system"]
    if any(argument.startswith("--cache") for argument in system["argv"]):
        pytest.skip("this server was started with a cache setting of its own")
    if comfy.version >= RAM_CACHE and system["ram_total"] > 128 * 2**30:
        pytest.skip("newer versions keep older results while 128 GiB of memory are free")
    first, other = picture(), picture()
    comfy.run(first)
    comfy.run(other)
    events, _ = comfy.run(first)
    (cached,) = [e for e in events if e.type == "execution_cached"]
    assert cached.data["nodes"] == []


def test_a_failing_node_ends_the_run_with_an_execution_error(comfy: Comfy) -> None:
    events, _ = comfy.run(failing())
    assert types(events)[-2:] == ["execution_error", "executing"]
    assert "execution_success" not in types(events)
    error = events[-2].data
    assert set(error) == {
        "prompt_id",
        "node_id",
        "node_type",
        "executed",
        "exception_message",
        "exception_type",
        "traceback",
        "current_inputs",
        "current_outputs",
        "timestamp",
    }
    assert (error["node_id"], error["node_type"]) == ("2", "SaveImage")
    assert error["executed"] == ["1"]
    assert isinstance(error["traceback"], list)
    assert error["exception_message"].endswith("\n")


def test_an_interrupted_run_says_so_and_then_ends(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        prompt_id = comfy.submit(long_run(), listener)
        listener.until_type("progress")
        comfy.http.post("/interrupt", json={"prompt_id": prompt_id})
        events = [e for e in listener.until_end(prompt_id) if e.type != "status"]
    assert types(events)[-2:] == ["execution_interrupted", "executing"]
    stopped = events[-2].data
    assert set(stopped) == {"prompt_id", "node_id", "node_type", "executed", "timestamp"}
    assert (stopped["node_id"], stopped["node_type"]) == ("3", "KSampler")
    assert "execution_success" not in types(events)


def test_feature_flags_are_answered_when_they_come_first_and_never_later(comfy: Comfy) -> None:
    flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
    with comfy.listen() as listener:
        listener.next()
        listener.send(flags)
        answer = listener.next()
        assert answer.type == "feature_flags"
        assert answer.data == comfy.http.get("/features").json()
        listener.send(flags)
        assert "feature_flags" not in types(listener.rest(0.3))


def test_other_messages_from_the_client_are_ignored(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        listener.send({"type": "hello"})
        prompt_id = comfy.submit(picture(), listener)
        assert listener.until_end(prompt_id)


@pytest.mark.parametrize("with_metadata", [False, True])
def test_previews_can_be_asked_for_per_prompt_in_newer_versions(
    comfy: Comfy, *, with_metadata: bool
) -> None:
    with comfy.listen() as listener:
        if with_metadata:
            flags = {"supports_preview_metadata": True}
            listener.send({"type": "feature_flags", "data": flags})
        graph = text_to_image(seed=uuid.uuid4().int % 2**32)
        wanted = {"preview_method": "latent2rgb"}
        prompt_id = comfy.submit(graph, listener, extra_data=wanted)
        events = listener.until_end(prompt_id)
    previews = [e.data for e in events if e.type == "binary"]
    if comfy.version < (0, 4, 1):
        assert previews == []
        return
    assert [p["event"] for p in previews] == [4 if with_metadata else 1] * 2
    assert all(b"\xff\xd8\xff" in p["payload"][:400] for p in previews)
