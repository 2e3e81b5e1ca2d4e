"""What nodes answer in `executed` and in the history: any list item with a filename is a file."""

import pytest

from .graphs import failing, fresh_prefix, node, picture
from .wire import Comfy, Json, images


def test_text_is_answered_as_a_list_of_strings(comfy: Comfy) -> None:
    events, entry = comfy.run({"1": node("PreviewAny", source=fresh_prefix())})
    (done,) = [event for event in events if event.type == "executed"]
    (text,) = done.data["output"]["text"]
    assert text.startswith("conformance/")
    assert entry["outputs"]["1"] == {"text": [text]}


def test_an_animation_is_answered_under_images_with_a_mark(comfy: Comfy) -> None:
    graph = picture(batch=2)
    graph["2"] = node(
        "SaveAnimatedWEBP",
        images=["1", 0],
        filename_prefix=fresh_prefix(),
        fps=6.0,
        lossless=True,
        quality=80,
        method="default",
    )
    _, entry = comfy.run(graph)
    assert entry["outputs"]["2"]["animated"] == [True]
    (file,) = images(entry)
    assert file["filename"].endswith(".webp")
    assert comfy.view(file)[8:12] == b"WEBP"


def test_images_can_be_sent_over_the_websocket_instead_of_a_file(comfy: Comfy) -> None:
    if not comfy.http.get("/object_info/SaveImageWebsocket").json():
        pytest.skip("this server lacks the node SaveImageWebsocket")
    graph = picture()
    graph["2"] = node("SaveImageWebsocket", images=["1", 0])
    events, entry = comfy.run(graph)
    (frame,) = [event.data for event in events if event.type == "binary"]
    assert frame["event"] == 1
    assert frame["payload"][:4] == b"\x00\x00\x00\x02"
    assert frame["payload"][4:8] == b"\x89PNG"
    assert images(entry) == []


def test_several_output_nodes_are_told_apart_by_their_ids(comfy: Comfy) -> None:
    graph = picture()
    graph["3"] = node("PreviewImage", images=["1", 0])
    events, entry = comfy.run(graph)
    done = {event.node: event.data["output"] for event in events if event.type == "executed"}
    assert done == entry["outputs"]
    kinds: dict[str, Json] = {key: ui["images"][0] for key, ui in entry["outputs"].items()}
    assert (kinds["2"]["type"], kinds["3"]["type"]) == ("output", "temp")


def test_a_message_can_be_bigger_than_four_mebibytes(comfy: Comfy) -> None:
    events, _ = comfy.run(failing("x" * 5_000_000))
    assert len(str(events[-2].data)) > 4 * 2**20
