"""Each knob does what the table in docs/simulator.md says, and nothing when it is off."""

import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import websocket

from .client import Simulator, ending, free_port, node, picture, saved_files, text_to_image


def types(events: list[dict[str, object]]) -> list[object]:
    return [event["type"] for event in events if event["type"] != "status"]


def test_it_says_what_it_is(sim: Simulator) -> None:
    state = sim.state()
    assert state["simulator"] is True
    assert state["version"]
    argv = sim.http.get("/system_stats").json()["system"]["argv"]
    assert "simulator" in argv


def test_a_change_keeps_the_other_settings(sim: Simulator) -> None:
    sim.knobs(step_ms=7)
    settings = sim.knobs(hide=["ae.safetensors"])["settings"]
    assert (settings["step_ms"], settings["hide"]) == (7, ["ae.safetensors"])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"nope": 1}, "nope"), ({"step_ms": -1}, "step_ms"), ({"drop_sockets": 1}, "drop_sockets")],
)
def test_an_impossible_setting_is_refused_by_name_and_changes_nothing(
    sim: Simulator, change: dict[str, object], named: str
) -> None:
    before = sim.state()["settings"]
    answer = sim.http.post("/_sim", json={"output_bytes": 5, **change})
    assert answer.status_code == 422
    assert named in answer.json()["error"]
    assert sim.state()["settings"] == before


def test_a_body_that_is_no_object_of_settings_is_refused(sim: Simulator) -> None:
    assert sim.http.post("/_sim", content=b"x").status_code == 422
    assert sim.http.post("/_sim", json=[1]).status_code == 422


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path, SIM_STEP_MS="3", SIM_HIDE='["ae.safetensors"]')
    settings = simulator.state()["settings"]
    simulator.stop()
    assert (settings["step_ms"], settings["hide"]) == (3, ["ae.safetensors"])


def test_a_wrong_environment_is_named_and_nothing_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu_server.simulator", "--port", str(free_port())]
    run = subprocess.run(
        [*command, "--dir", str(tmp_path)],
        env={"SIM_STEP_MS": "soon", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "step_ms" in run.stderr


def test_counts_prove_that_a_prompt_ran_once(sim: Simulator) -> None:
    before = sim.state()["counts"]
    sim.run(picture(0x10), prompt_id="counted-once")
    sim.http.post("/upload/image", files={"image": ("a.png", b"x")})
    state = sim.state()
    counts = state["counts"]
    assert counts["executions"] - before["executions"] == 1
    assert counts["prompts"] - before["prompts"] == 1
    assert counts["uploads"] - before["uploads"] == 1
    assert state["executed_ids"].count("counted-once") == 1


def test_connections_are_counted_while_open_and_in_all(sim: Simulator) -> None:
    before = sim.state()["counts"]
    with sim.listening():
        counts = sim.state()["counts"]
    assert counts["connections"] - before["connections"] == 1
    assert counts["open_connections"] >= 1


def test_a_hidden_model_is_missing_at_the_door(sim: Simulator) -> None:
    sim.knobs(hide=["tiny-sd15.ckpt"])
    answer = sim.http.post("/prompt", json={"prompt": text_to_image()})
    assert answer.status_code == 400
    (error,) = answer.json()["node_errors"]["4"]["errors"]
    assert error["type"] == "value_not_in_list"
    assert "tiny-sd15.ckpt" not in sim.http.get("/models/checkpoints").json()


def test_a_file_dropped_into_the_model_folder_can_be_used(sim: Simulator) -> None:
    folder = sim.folder / "models" / "loras" / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.safetensors").write_bytes(b"")
    assert "mine/own.safetensors" in sim.http.get("/models/loras").json()
    entry = sim.run(text_to_image(lora_name="mine/own.safetensors"))
    assert ending(entry) == "execution_success"


def test_a_step_takes_its_time(sim: Simulator) -> None:
    sim.knobs(step_ms=100)
    began = time.monotonic()
    sim.run(text_to_image(steps=5, seed=77))
    assert time.monotonic() - began >= 0.5


def test_a_slow_node_blocks_and_the_interrupt_is_seen_by_the_next_one(sim: Simulator) -> None:
    sim.knobs(slow_nodes={"EmptyImage": 400})
    with sim.listening() as listener:
        prompt_id = sim.submit(picture(0x20), client_id=listener.client_id)
        sim.wait_until_running(prompt_id)
        sim.http.post("/interrupt", json={"prompt_id": prompt_id})
        events = listener.until_end(prompt_id)
    (interrupted,) = [e["data"] for e in events if e["type"] == "execution_interrupted"]
    assert interrupted["node_id"] == "2"
    assert interrupted["executed"] == ["1"]


def test_a_failing_node_fails_as_often_as_asked(sim: Simulator) -> None:
    failure = {"exception_type": "ValueError", "message": "no luck", "times": 1}
    sim.knobs(failing_nodes={"EmptyImage": failure})
    failed = sim.run(picture(0x30))
    event, data = failed["status"]["messages"][-1]
    assert event == "execution_error"
    assert (data["exception_type"], data["exception_message"]) == ("ValueError", "no luck\n")
    assert ending(sim.run(picture(0x30))) == "execution_success"


def test_a_blocked_node_sends_an_error_yet_the_run_succeeds(sim: Simulator) -> None:
    sim.knobs(failing_nodes={"EmptyImage": {"exception_type": "ExecutionBlocked"}})
    events, entry = sim.events(picture(0x31))
    assert "execution_error" in types(events)
    assert ending(entry) == "execution_success"
    assert entry["outputs"] == {}


def test_out_of_memory_hits_so_many_prompts(sim: Simulator) -> None:
    sim.knobs(out_of_memory=2)
    kinds = [
        sim.run(picture(color))["status"]["messages"][-1][1].get("exception_type")
        for color in (0x40, 0x41, 0x42)
    ]
    assert kinds == ["torch.OutOfMemoryError", "torch.OutOfMemoryError", None]


def test_a_partial_rejection_is_a_200_with_node_errors(sim: Simulator) -> None:
    sim.knobs(partial_reject=1)
    graph = picture(0x50) | {"3": node("PreviewImage", images=["1", 0])}
    answer = sim.http.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 200
    assert list(answer.json()["node_errors"]) == ["2"]
    entry = sim.finished(answer.json()["prompt_id"])
    assert list(entry["outputs"]) == ["3"]
    assert sim.http.post("/prompt", json={"prompt": graph}).json()["node_errors"] == {}


@pytest.mark.parametrize("size", [1_500_000, 20_000_000])
def test_a_saved_picture_can_be_padded_to_a_size(sim: Simulator, size: int) -> None:
    sim.knobs(output_bytes=size)
    graph = picture(0x60)
    (pixels,) = sim.pixels(graph)
    assert pixels.shape == (16, 16, 3)
    entry = sim.run(graph)
    (file,) = saved_files(entry)
    assert 0 <= len(sim.download(file)) - size < 64


def test_an_answer_can_come_late_for_work_that_is_done(sim: Simulator) -> None:
    sim.knobs(delay_ms={"/prompt": 60_000})
    with pytest.raises(httpx.ReadTimeout):
        sim.http.post(
            "/api/prompt", json={"prompt": picture(0x70), "prompt_id": "late"}, timeout=1.0
        )
    assert ending(sim.finished("late")) == "execution_success"


def test_a_request_can_stay_unread(sim: Simulator) -> None:
    sim.knobs(hold_ms={"/prompt": 60_000})
    with pytest.raises(httpx.ReadTimeout):
        sim.http.post("/prompt", json={"prompt": picture(0x71), "prompt_id": "held"}, timeout=0.5)
    assert sim.history("held") == {}
    assert sim.queue() == ([], [])


def test_previews_are_jpegs_after_each_step(sim: Simulator) -> None:
    sim.knobs(previews=True)
    with sim.listening() as listener:
        prompt_id = sim.submit(text_to_image(seed=78), client_id=listener.client_id)
        frames: list[bytes] = []
        message = listener.next()
        end = {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}}
        while message != end:
            frames += [message] if isinstance(message, bytes) else []
            message = listener.next()
    assert [frame[:10] for frame in frames] == [b"\0\0\0\1\0\0\0\1\xff\xd8"] * 3


def test_every_socket_can_be_dropped_at_once(sim: Simulator) -> None:
    first, second = sim.listen(), sim.listen()
    sim.knobs(drop_sockets=True)
    assert first.until_lost() == second.until_lost() == []
    first.socket.close()
    second.socket.close()


def test_sockets_drop_once_after_the_progress_of_a_step(sim: Simulator) -> None:
    sim.knobs(drop_at_step=2)
    listener = sim.listen()
    prompt_id = sim.submit(text_to_image(seed=79), client_id=listener.client_id)
    seen = listener.until_lost()
    assert seen.count("progress") == 2
    assert seen[-1] == "progress"
    assert ending(sim.finished(prompt_id)) == "execution_success"
    assert sim.state()["settings"]["drop_at_step"] is None
    listener.socket.close()


def test_sockets_drop_once_after_an_event(sim: Simulator) -> None:
    sim.knobs(drop_after_event="execution_cached")
    listener = sim.listen()
    prompt_id = sim.submit(picture(0x80), client_id=listener.client_id)
    assert listener.until_lost()[-1] == "execution_cached"
    sim.finished(prompt_id)
    listener.socket.close()
    events, _ = sim.events(picture(0x81))
    assert types(events)[-1] == "executing"


def test_new_sockets_can_be_refused(sim: Simulator) -> None:
    sim.knobs(refuse_sockets=True)
    with pytest.raises(websocket.WebSocketBadStatusException):
        sim.listen()
    sim.knobs(refuse_sockets=False)
    sim.listen().socket.close()


def test_executed_can_come_after_the_end(sim: Simulator) -> None:
    sim.knobs(late_executed=True)
    with sim.listening() as listener:
        prompt_id = sim.submit(picture(0x90), client_id=listener.client_id)
        assert "executed" not in types(listener.until_end(prompt_id))
        late = listener.next()
    assert isinstance(late, dict)
    assert late["type"] == "executed"
    assert late["data"]["prompt_id"] == prompt_id


@pytest.mark.parametrize("gap", [False, True])
def test_history_can_come_after_the_end(sim: Simulator, *, gap: bool) -> None:
    sim.knobs(history_delay_ms=1500, history_gap=gap)
    with sim.listening() as listener:
        prompt_id = sim.submit(picture(0x91), client_id=listener.client_id)
        listener.until_end(prompt_id)
    assert sim.history(prompt_id) == {}
    assert sim.queue() == ([] if gap else [prompt_id], [])
    assert ending(sim.finished(prompt_id)) == "execution_success"
    assert sim.queue() == ([], [])


def test_an_idle_wedge_accepts_prompts_and_takes_none(sim: Simulator) -> None:
    sim.run(picture(0xA0))
    sim.knobs(wedge="idle")
    prompt_id = sim.submit(picture(0xA1))
    assert sim.queue() == ([], [prompt_id])
    assert sim.state()["worker_alive"] is False
    assert sim.http.get("/prompt").json() == {"exec_info": {"queue_remaining": 1}}


@pytest.mark.parametrize(("when", "last"), [("start", "execution_start"), ("running", "executing")])
def test_a_wedge_in_a_prompt_leaves_it_running_for_ever(
    sim: Simulator, when: str, last: str
) -> None:
    sim.knobs(wedge=when)
    with sim.listening() as listener:
        prompt_id = sim.submit(picture(0xB0), client_id=listener.client_id)
        seen: list[str] = []
        while last not in seen:
            message = listener.next()
            assert isinstance(message, dict)
            seen.append(message["type"])
    second = sim.submit(picture(0xB1))
    assert sim.queue() == ([prompt_id], [second])
    assert sim.history(prompt_id) == {}


def test_a_lost_queue_forgets_everything_and_works_again(sim: Simulator) -> None:
    done = sim.submit(picture(0xC0))
    sim.finished(done)
    sim.knobs(step_ms=300)
    running = sim.submit(text_to_image(steps=50, seed=80))
    sim.wait_until_running(running)
    pending = sim.submit(picture(0xC1))
    sim.knobs(lose_queue=True, step_ms=0)
    assert sim.queue() == ([], [])
    assert [sim.history(one) for one in (done, running, pending)] == [{}, {}, {}]
    answer = sim.http.post("/prompt", json={"prompt": picture(0xC2)}).json()
    assert answer["number"] == 0
    assert ending(sim.finished(answer["prompt_id"])) == "execution_success"
    assert sim.history(running) == {}


def test_a_reset_brings_a_wedged_simulator_back(sim: Simulator) -> None:
    sim.knobs(wedge="start", step_ms=9)
    sim.submit(picture(0xD0))
    state = sim.knobs(reset=True)
    assert state["worker_alive"] is True
    assert state["settings"]["step_ms"] == 0
    assert ending(sim.run(picture(0xD1))) == "execution_success"
