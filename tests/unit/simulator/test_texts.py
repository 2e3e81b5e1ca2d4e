"""Texts: measured, not inferred, and marked as simulated."""

import numpy as np
import pytest

from .client import Graph, Simulator, node
from .scenes import bundled, plain, titled, uploaded


def captioned(**inputs: object) -> Graph:
    return bundled("caption-qwen3-vl", image="scene.png", **inputs)


def test_a_caption_begins_with_the_mark_and_tells_what_is_measured(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    text = sim.text(captioned())
    assert text.startswith("[simulated] ")
    assert "wide" in text
    assert "red" in text
    assert "320 by 240" in text


def test_a_caption_depends_on_the_picture(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    first = sim.text(captioned())
    uploaded(sim, scene=np.full((300, 200, 3), (10, 20, 60), np.uint8))
    second = sim.text(captioned())
    assert first != second
    assert "tall" in second
    assert "dark" in second


def test_a_caption_is_no_longer_than_asked(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    assert len(sim.text(captioned(max_length=4)).split()) == 5


def test_a_longer_caption_says_more(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    graph = bundled("caption-florence2", image="scene.png")
    lengths: list[int] = []
    for task in ("caption", "detailed_caption", "more_detailed_caption"):
        titled(graph, "Caption")["task"] = task
        lengths.append(len(sim.text(graph)))
    assert lengths == sorted(set(lengths))


def test_a_task_without_text_refuses_one(sim: Simulator) -> None:
    uploaded(sim, scene=plain())
    graph = bundled("caption-florence2", image="scene.png", text_input="a square")
    assert "takes no text" in sim.failure(graph)["exception_message"]


def test_without_a_picture_nothing_is_inferred(sim: Simulator) -> None:
    graph = captioned(prompt="Write a poem.")
    del titled(graph, "Caption")["image"]
    assert sim.text(graph) == "[simulated] Nothing was inferred from: Write a poem."


def test_two_texts_are_joined(sim: Simulator) -> None:
    joined = node("StringConcatenate", string_a="a", string_b="b", delimiter="; ")
    assert sim.text({"1": joined, "2": node("PreviewAny", source=["1", 0])}) == "a; b"


@pytest.mark.parametrize("ending", ["txt", "md", "json"])
def test_a_text_is_saved_and_shown(sim: Simulator, ending: str) -> None:
    graph = {
        "1": node("StringConcatenate", string_a="größer", string_b=ending, delimiter=" "),
        "2": node("SaveText", text=["1", 0], filename_prefix="test/t", format=ending),
    }
    ((name, content),) = sim.outputs(graph)
    assert name.endswith(f"_.{ending}")
    assert content.decode() == f"größer {ending}" == sim.text(graph)
