"""Several clients at once, a client too slow, and what a kill leaves behind."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .client import Simulator, ending, node, picture, saved_files, text_to_image


def test_every_client_sees_its_own_runs_and_nobody_elses(sim: Simulator) -> None:
    def work(number: int) -> None:
        with sim.listening() as listener:
            for turn in range(5):
                graph = text_to_image(seed=1000 * number + turn, steps=2)
                prompt_id = sim.submit(graph, client_id=listener.client_id)
                events = listener.until_end(prompt_id)
                seen = {e["data"]["prompt_id"] for e in events if e["type"] != "status"}
                assert seen == {prompt_id}
                assert sim.history(prompt_id)["status"]["status_str"] == "success"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    executed = sim.state()["executed_ids"]
    assert len(executed) == len(set(executed))


def test_prompts_run_one_at_a_time_in_the_order_of_their_numbers(sim: Simulator) -> None:
    sim.knobs(slow_nodes={"EmptyImage": 300})
    first = sim.submit(picture(1))
    sim.wait_until_running(first)
    later = [sim.submit(picture(2 + n), number=number) for n, number in enumerate((30, 10, 20))]
    for prompt_id in later:
        sim.finished(prompt_id)
    assert sim.state()["executed_ids"][-4:] == [first, later[1], later[2], later[0]]


def test_the_server_answers_while_a_node_computes(sim: Simulator) -> None:
    sim.knobs(slow_nodes={"EmptyImage": 1000})
    prompt_id = sim.submit(picture(0x77))
    sim.wait_until_running(prompt_id)
    for path in ("/prompt", "/queue", "/object_info", "/system_stats", "/_sim"):
        assert sim.http.get(path).status_code == 200
    assert sim.queue()[0] == [prompt_id]
    sim.finished(prompt_id)


@pytest.mark.parametrize("kill", [True, False])
def test_a_kill_loses_queue_and_history_but_no_output_file(tmp_path: Path, *, kill: bool) -> None:
    simulator = Simulator(tmp_path)
    graph = picture(1) | {"3": node("PreviewImage", images=["1", 0])}
    done = simulator.submit(graph)
    kept, temporary = saved_files(simulator.finished(done))
    simulator.knobs(wedge="idle")
    pending = simulator.submit(picture(2))
    simulator.stop(kill=kill)

    again = Simulator(tmp_path, port=simulator.port)
    assert again.history(done) == again.history(pending) == {}
    assert again.queue() == ([], [])
    assert again.download(kept)
    assert again.http.get("/view", params=temporary).status_code == 404
    assert ending(again.run(picture(2))) == "execution_success"
    again.stop()


def test_its_log_begins_with_what_it_is(tmp_path: Path) -> None:
    simulator = Simulator(tmp_path)
    simulator.process.terminate()
    simulator.process.wait(30)
    first = simulator.log().splitlines()[0]
    assert "SIMULATOR" in first
    assert simulator.url in first
    simulator.stop(kill=True)
