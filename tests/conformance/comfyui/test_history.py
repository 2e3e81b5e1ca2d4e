from .graphs import failing, long_run, node, picture
from .wire import Comfy, images


def messages(entry: dict[str, dict[str, list[list[str]]]]) -> list[str]:
    return [message[0] for message in entry["status"]["messages"]]


def test_a_success_is_told_with_its_prompt_outputs_status_and_meta(comfy: Comfy) -> None:
    graph = picture()
    events, entry = comfy.run(graph)
    assert set(entry) == {"prompt", "outputs", "status", "meta"}
    assert entry["prompt"][1] == events[0].data["prompt_id"]
    assert entry["prompt"][2] == graph
    assert entry["prompt"][4] == ["2"]
    assert len(entry["prompt"]) == 5
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert messages(entry) == ["execution_start", "execution_cached", "execution_success"]
    assert all(m[1]["timestamp"] > 1e12 for m in entry["status"]["messages"])
    assert entry["meta"]["2"] == {
        "node_id": "2",
        "display_node": "2",
        "parent_node": None,
        "real_node_id": "2",
    }


def test_files_are_told_as_filename_subfolder_and_type(comfy: Comfy) -> None:
    _, entry = comfy.run(picture("conformance/shape/image"))
    (file,) = images(entry)
    assert set(file) == {"filename", "subfolder", "type"}
    assert file["filename"].startswith("image_")
    assert file["filename"].endswith("_.png")
    assert file["subfolder"] == "conformance/shape"
    assert file["type"] == "output"


def test_an_error_keeps_the_message_of_the_failing_node(comfy: Comfy) -> None:
    events, entry = comfy.run(failing())
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    assert messages(entry) == ["execution_start", "execution_cached", "execution_error"]
    assert entry["status"]["messages"][-1][1]["node_id"] == "2"
    assert entry["status"]["messages"][-1][1] == events[-2].data
    assert entry["outputs"] == {}


def test_an_error_keeps_what_other_outputs_finished_before_it(comfy: Comfy) -> None:
    graph = picture()
    graph["3"] = node("ImageInvert", image=["1", 0])
    graph["4"] = node("SaveImage", images=["3", 0], filename_prefix="../../conformance/never")
    _, entry = comfy.run(graph)
    assert messages(entry)[-1] == "execution_error"
    assert list(entry["outputs"]) in ([], ["2"])
    finished = "2" in entry["status"]["messages"][-1][1]["executed"]
    assert finished == ("2" in entry["outputs"])


def test_an_interruption_is_an_error_whose_last_message_tells_it_apart(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        prompt_id = comfy.submit(long_run(), listener)
        listener.until_type("progress")
        comfy.http.post("/interrupt", json={"prompt_id": prompt_id})
        listener.until_end(prompt_id)
    entry = comfy.history(prompt_id)
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    assert messages(entry)[-1] == "execution_interrupted"


def test_the_entry_is_readable_whenever_executing_null_has_arrived(comfy: Comfy) -> None:
    for _ in range(20):
        _, entry = comfy.run(picture())
        assert entry["status"]["completed"] is True


def test_there_is_no_entry_while_pending_running_or_unknown(comfy: Comfy) -> None:
    with comfy.listen() as listener:
        running = comfy.submit(long_run(), listener)
        listener.until_type("progress")
        pending = comfy.submit(picture())
        for prompt_id in (running, pending, "00000000-0000-4000-8000-000000000000"):
            answer = comfy.http.get(f"/history/{prompt_id}")
            assert (answer.status_code, answer.json()) == (200, {})


def test_the_list_holds_the_newest_entries_oldest_first(comfy: Comfy) -> None:
    ids = [comfy.submit(picture()) for _ in range(3)]
    for prompt_id in ids:
        comfy.wait_history(prompt_id)
    assert list(comfy.http.get("/history", params={"max_items": 2}).json()) == ids[1:]
    everything = list(comfy.http.get("/history").json())
    assert everything[-3:] == ids
    page = comfy.http.get("/history", params={"max_items": 2, "offset": 0}).json()
    assert list(page) == everything[:2]


def test_an_entry_can_be_deleted(comfy: Comfy) -> None:
    prompt_id = comfy.submit(picture())
    comfy.wait_history(prompt_id)
    answer = comfy.http.post("/history", json={"delete": [prompt_id]})
    assert answer.status_code == 200
    assert comfy.history(prompt_id) == {}


def test_a_max_items_that_is_no_number_is_a_500(comfy: Comfy) -> None:
    assert comfy.http.get("/history", params={"max_items": "x"}).status_code == 500
