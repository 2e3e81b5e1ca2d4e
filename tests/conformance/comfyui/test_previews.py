"""Previews: what a sampler's picture looks like so far, as binary messages.

The simulator has a knob for them, newer versions take them per prompt, an older ComfyUI must have
been started with `--preview-method`.
"""

import json
import struct
import uuid
from collections.abc import Iterator

import pytest

from .graphs import text_to_image
from .wire import Comfy, Event, Json

STEPS = 4
FLAGS = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


@pytest.fixture
def asked(comfy: Comfy) -> Iterator[Json]:
    """What a prompt must bring along to be previewed."""
    argv: list[str] = comfy.http.get("/system_stats").json()["system"]["argv"]
    if comfy.http.get("/_sim").status_code == 200:
        comfy.http.post("/_sim", json={"previews": True})
        yield {}
        comfy.http.post("/_sim", json={"previews": False})
    elif comfy.version >= (0, 4, 1):
        yield {"extra_data": {"preview_method": "latent2rgb"}}
    elif "--preview-method" in argv:
        yield {}
    else:
        pytest.skip("this version makes previews only when started with --preview-method")


def run(comfy: Comfy, asked: Json, *, metadata: bool) -> tuple[str, list[Event]]:
    with comfy.listen() as listener:
        if metadata:
            listener.send(FLAGS)
        graph = text_to_image(seed=uuid.uuid4().int % 2**32, steps=STEPS)
        prompt_id = comfy.submit(graph, listener, **asked)
        return prompt_id, listener.until_end(prompt_id)


def binary(events: list[Event]) -> list[Json]:
    return [event.data for event in events if event.type == "binary"]


def test_a_preview_without_metadata_is_a_format_and_a_picture(comfy: Comfy, asked: Json) -> None:
    _, events = run(comfy, asked, metadata=False)
    previews = binary(events)
    assert [preview["event"] for preview in previews] == [1] * STEPS
    for preview in previews:
        assert struct.unpack(">I", preview["payload"][:4]) == (1,)
        assert preview["payload"][4:].startswith(b"\xff\xd8\xff")


def test_a_preview_with_metadata_names_its_prompt_and_node(comfy: Comfy, asked: Json) -> None:
    prompt_id, events = run(comfy, asked, metadata=True)
    previews = binary(events)
    assert [preview["event"] for preview in previews] == [4] * STEPS
    for preview in previews:
        (length,) = struct.unpack(">I", preview["payload"][:4])
        described = json.loads(preview["payload"][4 : 4 + length])
        assert (described["prompt_id"], described["node_id"]) == (prompt_id, "3")
        assert described["image_type"] == "image/jpeg"
        assert preview["payload"][4 + length :].startswith(b"\xff\xd8\xff")


def test_previews_come_between_their_nodes_begin_and_the_end(comfy: Comfy, asked: Json) -> None:
    _, events = run(comfy, asked, metadata=True)
    begun = next(n for n, e in enumerate(events) if e.type == "executing" and e.node == "3")
    places = [n for n, event in enumerate(events) if event.type == "binary"]
    assert all(begun < place < len(events) - 1 for place in places)
    assert "progress_state" in {event.type for event in events[begun : places[0]]}


def test_another_clients_socket_gets_no_preview(comfy: Comfy, asked: Json) -> None:
    with comfy.listen() as other:
        run(comfy, asked, metadata=True)
        assert binary(other.rest(0.3)) == []
