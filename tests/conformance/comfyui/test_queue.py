import time
import uuid

import pytest

from .graphs import fresh_prefix, long_run, picture
from .wire import Comfy, Listener, images

CANCEL_ROUTES = (0, 25, 1)


def start_long_run(comfy: Comfy, listener: Listener) -> str:
    prompt_id = comfy.submit(long_run(), listener)
    listener.until_type("progress")
    return prompt_id


def test_the_queue_tells_running_and_pending_apart(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        pending = [comfy.submit(picture()) for _ in range(2)]
        assert set(comfy.http.get("/queue").json()) == {"queue_running", "queue_pending"}
        assert comfy.queue()[0] == [running]
        assert sorted(comfy.queue()[1]) == sorted(pending)
        assert comfy.http.get("/prompt").json() == {"exec_info": {"queue_remaining": 3}}


def test_prompts_run_by_number_then_in_the_order_they_came(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        blocker = start_long_run(comfy, listener)
        plain = comfy.submit(picture(), listener)
        front = comfy.submit(picture(), listener, front=True)
        second_front = comfy.submit(picture(), listener, front=True)
        last = comfy.submit(picture(), listener, number=1e9)
        first = comfy.submit(picture(), listener, number=-1e9)
        comfy.http.post("/interrupt", json={"prompt_id": blocker})
        started = [
            event.data["prompt_id"]
            for event in listener.until_end(last)
            if event.type == "execution_start"
        ]
    assert started == [first, second_front, front, plain, last]


def test_a_pending_prompt_can_be_deleted_and_leaves_no_history(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        start_long_run(comfy, listener)
        pending, kept = comfy.submit(picture()), comfy.submit(picture())
        answer = comfy.http.post("/queue", json={"delete": [pending]})
        assert (answer.status_code, answer.content) == (200, b"")
        assert comfy.queue()[1] == [kept]
        assert comfy.history(pending) == {}


def test_deleting_a_running_or_unknown_prompt_is_answered_200_and_changes_nothing(
    comfy: Comfy,
) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        answer = comfy.http.post("/queue", json={"delete": [running, str(uuid.uuid4())]})
        assert (answer.status_code, answer.content) == (200, b"")
        assert comfy.queue()[0] == [running]


def test_clear_removes_what_is_pending_and_leaves_what_runs(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        for _ in range(3):
            comfy.submit(picture())
        assert comfy.http.post("/queue", json={"clear": True}).status_code == 200
        assert comfy.queue() == ([running], [])


def test_interrupting_a_pending_prompt_has_no_effect(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        pending = comfy.submit(picture())
        answer = comfy.http.post("/interrupt", json={"prompt_id": pending})
        assert answer.status_code == 200
        listener.until_type("progress")
        assert comfy.queue() == ([running], [pending])


def test_interrupting_an_unknown_prompt_has_no_effect(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        unknown = {"prompt_id": str(uuid.uuid4())}
        assert comfy.http.post("/interrupt", json=unknown).status_code == 200
        listener.until_type("progress")
        assert comfy.queue()[0] == [running]


@pytest.mark.parametrize("named", [True, False])
def test_an_interrupt_stops_a_sampler_within_a_few_steps(comfy: Comfy, *, named: bool) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        body = {"prompt_id": running} if named else {}
        asked = time.monotonic()
        assert comfy.http.post("/interrupt", json=body).status_code == 200
        after = listener.until_end(running)
    assert time.monotonic() - asked < 5
    assert sum(event.type == "progress" for event in after) <= 20


def test_the_next_prompt_is_untouched_by_an_interrupt(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        following = comfy.submit(picture(), listener)
        comfy.http.post("/interrupt", json={"prompt_id": running})
        listener.until_end(following)
    assert comfy.history(following)["status"]["status_str"] == "success"


def test_an_interrupt_while_nothing_runs_does_not_reach_the_next_prompt(comfy: Comfy) -> None:
    comfy.http.post("/interrupt", json={})
    _, entry = comfy.run(picture())
    assert entry["status"]["status_str"] == "success"


def test_free_memory_empties_the_cache_of_results(comfy: Comfy) -> None:
    graph = picture(fresh_prefix())
    _, first = comfy.run(graph)
    answer = comfy.http.post("/free", json={"unload_models": True, "free_memory": True})
    assert answer.status_code == 200
    time.sleep(1)
    events, second = comfy.run(graph)
    (cached,) = [event for event in events if event.type == "execution_cached"]
    assert cached.data["nodes"] == []
    assert images(first) != images(second)


def test_free_is_answered_at_once_while_a_prompt_runs(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        asked = time.monotonic()
        assert comfy.http.post("/free", json={"unload_models": True}).status_code == 200
        assert time.monotonic() - asked < 2
        listener.until_type("progress")
        assert comfy.queue()[0] == [running]


def test_free_with_an_empty_body_is_a_500(comfy: Comfy) -> None:
    assert comfy.http.post("/free").status_code == 500


def test_newer_versions_cancel_by_id_whether_pending_running_or_neither(comfy: Comfy) -> None:
    if comfy.version < CANCEL_ROUTES:
        assert comfy.http.post(f"/api/jobs/{uuid.uuid4()}/cancel").status_code in {404, 405}
        return
    with comfy.listen() as listener:
        running = start_long_run(comfy, listener)
        pending = comfy.submit(picture())
        for prompt_id in (pending, running):
            answer = comfy.http.post(f"/api/jobs/{prompt_id}/cancel")
            assert (answer.status_code, answer.json()) == (200, {"cancelled": True})
        listener.until_end(running)
    assert comfy.history(pending) == {}
    assert comfy.history(running)["status"]["messages"][-1][0] == "execution_interrupted"
    answer = comfy.http.post(f"/api/jobs/{running}/cancel")
    assert (answer.status_code, answer.json()) == (200, {"cancelled": False})
