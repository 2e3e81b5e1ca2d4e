"""Which websocket hears what, and what becomes of a connection that is lost."""

import time

from .graphs import long_run, picture
from .wire import Comfy, Listener


def types(listener: Listener, quiet: float = 0.7) -> set[str]:
    return {event.type for event in listener.rest(quiet)}


def test_another_client_id_hears_of_a_run_only_its_status(comfy: Comfy) -> None:
    with comfy.listen() as mine, comfy.listen() as other:
        prompt_id = comfy.submit(picture(), mine)
        mine.until_end(prompt_id)
        assert types(other) == {"status"}


def test_a_prompt_without_client_id_tells_its_progress_to_everybody(comfy: Comfy) -> None:
    with comfy.listen() as one, comfy.listen() as two:
        comfy.wait_history(comfy.submit(picture()))
        assert types(one) == types(two) == {"status", "progress_state"}


def test_events_for_a_client_that_is_not_connected_are_dropped(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        client_id = listener.client_id
    time.sleep(0.2)
    prompt_id = comfy.submit(picture(), client_id=client_id)
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "success"
    with comfy.listen(client_id) as late:
        assert types(late) <= {"status", "executing"}


def test_a_reconnect_in_mid_run_learns_the_node_and_then_hears_live_events(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        prompt_id = comfy.submit(long_run(), listener)
        listener.until_type("progress")
    time.sleep(0.3)
    with comfy.listen(listener.client_id) as again:
        first, second = again.next(), again.next()
        assert first.type == "status"
        assert (second.type, second.data) == ("executing", {"node": "3"})
        again.until_type("progress")
        comfy.http.post("/interrupt", json={"prompt_id": prompt_id})
        again.until_end(prompt_id)


def test_missed_events_are_never_sent_again_but_the_history_has_the_run(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        prompt_id = comfy.submit(long_run(), listener)
        listener.until_type("progress")
    time.sleep(0.3)
    comfy.http.post("/interrupt", json={"prompt_id": prompt_id})
    entry = comfy.wait_history(prompt_id)
    with comfy.listen(listener.client_id) as again:
        assert "execution_interrupted" not in types(again)
    assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_the_newest_socket_of_a_client_id_gets_the_events(comfy: Comfy) -> None:
    with comfy.listen() as older, comfy.listen(older.client_id) as newer:
        prompt_id = comfy.submit(picture(), newer)
        newer.until_end(prompt_id)
        assert "executing" not in types(older)


def test_when_the_older_socket_of_a_client_id_closes_the_newer_one_falls_silent(
    comfy: Comfy,
) -> None:
    with comfy.listen() as older, comfy.listen(older.client_id) as newer:
        newer.rest(0.3)
        older.close()
        time.sleep(0.3)
        prompt_id = comfy.submit(picture(), newer)
        comfy.wait_history(prompt_id)
        assert types(newer) == set()


def test_closing_before_reconnecting_with_the_same_id_loses_nothing(comfy: Comfy) -> None:
    with comfy.listen() as first:
        pass
    time.sleep(0.2)
    with comfy.listen(first.client_id) as second:
        prompt_id = comfy.submit(picture(), second)
        assert second.until_end(prompt_id)
