"""Accepted prompts that break a ComfyUI for good: what a client must never send.

Observed on real servers of both versions, each of which had to be restarted afterwards; the
simulator imitates them so that a client can be tested against a broken ComfyUI.
"""

import time
import uuid

import httpx
import pytest

from .graphs import Graph, long_run, node, picture
from .wire import Comfy, Listener

pytestmark = pytest.mark.simulator_only


def orphan_without_inputs() -> Graph:
    return {**picture(), "7": {"class_type": "EmptyImage"}}


def undeclared_link_to_a_missing_node() -> Graph:
    graph = picture()
    graph["1"]["inputs"]["bogus"] = ["77", 0]
    return graph


def poison(comfy: Comfy, graph: Graph, listener: Listener) -> str:
    listener.rest(0.2)
    prompt_id = str(uuid.uuid4())
    answer = comfy.post(graph, prompt_id=prompt_id, client_id=listener.client_id)
    assert answer.status_code == 200
    assert answer.json()["node_errors"] == {}
    return prompt_id


@pytest.mark.parametrize(
    ("graph", "heard"),
    [
        (orphan_without_inputs(), ["execution_start"]),
        (undeclared_link_to_a_missing_node(), ["execution_start", "execution_cached"]),
    ],
    ids=["orphan without inputs", "undeclared link to a missing node"],
)
def test_a_poisonous_prompt_is_accepted_and_nothing_ever_runs_again(
    disposable: Comfy, graph: Graph, heard: list[str]
) -> None:
    with disposable.listen() as listener:
        poisoned = poison(disposable, graph, listener)
        events = [e.type for e in listener.rest(1) if e.type != "status"]
        assert events == heard
        later = disposable.submit(picture(), listener)
        assert {e.type for e in listener.rest(1)} == {"status"}
    assert disposable.queue() == ([poisoned], [later])
    assert disposable.history(poisoned) == disposable.history(later) == {}


def test_a_wedged_server_still_answers_and_an_interrupt_does_not_help(disposable: Comfy) -> None:
    with disposable.listen() as listener:
        poisoned = poison(disposable, orphan_without_inputs(), listener)
        listener.rest(0.5)
    for path in ("/prompt", "/queue", "/system_stats", "/object_info/KSampler", "/history"):
        assert disposable.http.get(path).status_code == 200
    for body in ({"prompt_id": poisoned}, {}):
        assert disposable.http.post("/interrupt", json=body).status_code == 200
    time.sleep(0.5)
    assert disposable.queue() == ([poisoned], [])


def test_null_extra_data_without_a_client_id_wedges_old_versions_only(disposable: Comfy) -> None:
    answer = disposable.post(picture(), extra_data=None)
    if disposable.version >= (0, 3, 69):
        assert answer.status_code == 500
        disposable.wait_history(disposable.submit(picture()))
        return
    assert answer.status_code == 200
    later = disposable.submit(picture())
    time.sleep(1)
    assert disposable.queue() == ([answer.json()["prompt_id"]], [later])


def test_equal_numbers_with_equal_ids_are_a_500_yet_queued_and_end_the_worker(
    disposable: Comfy,
) -> None:
    with disposable.listen() as listener:
        blocker = disposable.submit(long_run(), listener)
        listener.until_type("progress")
        twin = str(uuid.uuid4())
        answers = [disposable.post(picture(), prompt_id=twin, number=50) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 500, 500]
        assert disposable.queue() == ([blocker], [twin] * 3)
        disposable.http.post("/interrupt", json={"prompt_id": blocker})
        listener.until_end(blocker)
    later = disposable.submit(picture())
    time.sleep(1)
    running, pending = disposable.queue()
    assert running == []
    assert later in pending
    assert disposable.history(twin) == {}


def still_answers(comfy: Comfy) -> bool:
    try:
        return comfy.http.get("/queue").status_code == 200
    except httpx.TransportError:
        return False


def test_a_client_id_that_is_a_list_ends_the_whole_process(disposable: Comfy) -> None:
    disposable.post(picture(), client_id=[1])
    deadline = time.monotonic() + 10
    while still_answers(disposable):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_orphan_whose_link_leads_nowhere_is_harmless(disposable: Comfy) -> None:
    graph = {**picture(), "7": node("ImageInvert", image=["77", 0])}
    _, entry = disposable.run(graph)
    assert entry["status"]["status_str"] == "success"
