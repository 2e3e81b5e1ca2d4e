"""Prompts that ComfyUI accepts and dies of; the simulator must die of them in the same way."""

import pytest

from .client import PATIENCE, Graph, Simulator, ending, node, picture

ORPHAN_WITHOUT_INPUTS = picture(1) | {"9": {"class_type": "EmptyImage"}}
UNDECLARED_LINK = picture(2)
UNDECLARED_LINK["2"]["inputs"]["bogus"] = ["77", 0]


@pytest.mark.parametrize(
    ("graph", "events"),
    [
        (ORPHAN_WITHOUT_INPUTS, ["execution_start"]),
        (UNDECLARED_LINK, ["execution_start", "execution_cached"]),
    ],
    ids=["an orphan without inputs", "an undeclared link to a missing node"],
)
def test_a_poison_is_accepted_and_nothing_runs_again(
    own: Simulator, graph: Graph, events: list[str]
) -> None:
    listener = own.listen()
    poison = own.submit(graph, client_id=listener.client_id)
    seen: list[str] = []
    while seen[-len(events) :] != events:
        message = listener.next()
        assert isinstance(message, dict)
        if message["type"] != "status":
            seen.append(message["type"])
    second = own.submit(picture(3))
    assert own.queue() == ([poison], [second])
    assert own.http.get("/prompt").status_code == 200
    own.http.post("/interrupt", json={})
    assert own.queue() == ([poison], [second])
    listener.socket.close()


def test_null_extra_data_is_a_poison_without_a_client_id(own: Simulator) -> None:
    poison = own.submit(picture(4), extra_data=None)
    second = own.submit(picture(5))
    own.wait_until_running(poison)
    assert own.queue() == ([poison], [second])


def test_null_extra_data_with_a_client_id_is_a_500(sim: Simulator) -> None:
    body = {"prompt": picture(6), "extra_data": None, "client_id": "a"}
    assert sim.http.post("/prompt", json=body).status_code == 500
    assert ending(sim.run(picture(6))) == "execution_success"


def test_equal_numbers_and_ids_break_the_heap(own: Simulator) -> None:
    own.knobs(slow_nodes={"EmptyImage": 2000})
    running = own.submit(picture(7))
    own.wait_until_running(running)
    # Two different graphs: equal ones would compare as equal and raise nothing.
    first, second = ({"prompt": picture(n), "number": 5, "prompt_id": "twin"} for n in (8, 9))
    assert own.http.post("/prompt", json=first).status_code == 200
    assert own.http.post("/prompt", json=second).status_code == 500
    assert own.queue()[1] == ["twin", "twin"]


def test_an_unhashable_client_id_ends_the_process(own: Simulator) -> None:
    own.submit(picture(9), client_id=[1])
    assert own.process.wait(PATIENCE) is not None


def test_a_link_out_of_range_does_not_wedge(sim: Simulator) -> None:
    graph = {"1": node("PreviewAny", source=["2", 5]), "2": node("EmptyImage")}
    assert sim.http.post("/prompt", json={"prompt": graph}).status_code == 400
    assert ending(sim.run(picture(10))) == "execution_success"
