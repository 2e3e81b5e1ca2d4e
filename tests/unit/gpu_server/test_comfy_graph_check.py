from typing import Any

import pytest

from gpu_server.graph_check import InvalidGraph, check_graph

SPECS: dict[str, Any] = {
    "Source": {"input": {"required": {"text": ["STRING"]}}, "python_module": "nodes"},
    "Save": {
        "input": {"required": {"images": ["IMAGE"]}, "optional": {"extra": ["COMFY_AUTOGROW_V3"]}},
        "python_module": "comfy_extras.nodes_save",
    },
    "Custom": {"input": {"required": {}}, "python_module": "custom_nodes.pack"},
}


def graph(**inputs: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "Source", "inputs": {"text": "hello"}},
        "129:85": {"class_type": "Save", "inputs": {"images": ["1", 0], **inputs}},
    }


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"extra": ["1", 0]},
        {"extra.image0": ["1", 1]},
        {"note": {"a": 1, "b": [1.5]}},
    ],
)
def test_a_sound_graph_passes(inputs: dict[str, Any]) -> None:
    check_graph(graph(**inputs))
    check_graph(graph(**inputs), SPECS)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({}, "no nodes"),
        ({1: {"class_type": "Source", "inputs": {}}}, "not a string"),
        ({"nodes": [], "links": []}, "API format"),
        ({"_meta": {"title": "x"}}, "no class_type"),
        ({"1": {"class_type": ["Source"], "inputs": {}}}, "no class_type"),
        ({"1": {"class_type": "Source"}}, "no inputs"),
        ({"1": {"class_type": "Source", "inputs": None}}, "no inputs"),
        (graph(bogus=["77", 0]), "node 77, which is missing"),
        (graph(bogus=[1, 0]), "no link"),
        (graph(bogus=["1", 0.0]), "no link"),
        (graph(bogus=["1", True]), "no link"),
        (graph(bogus=["1", -1]), "no link"),
        (graph(bogus=["1"]), "no link"),
        (graph(bogus=[1, 2, 3]), "lists are not taken"),
        (graph(bogus={"__value__": ["77", 0]}), "is wrapped"),
        (graph(bogus={"__value__": "a text"}), "is wrapped"),
        (graph(bogus={"__value__": ["a", "b"]}), "is wrapped"),
        (graph(bogus=float("nan")), "finite"),
        (graph(bogus={"a": [float("inf")]}), "finite"),
        (
            {
                "1": {"class_type": "Source", "inputs": {"text": ["2", 0]}},
                "2": {"class_type": "Source", "inputs": {"text": ["1", 0]}},
            },
            "cycle",
        ),
    ],
)
def test_what_could_end_the_worker_is_refused_before_it_is_sent(
    bad: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidGraph) as caught:
        check_graph(bad)
    assert told in caught.value.message


def test_a_link_in_an_undeclared_input_is_refused_once_the_declarations_are_known() -> None:
    check_graph(graph(bogus=["1", 0]))
    with pytest.raises(InvalidGraph) as caught:
        check_graph(graph(bogus=["1", 0]), SPECS)
    assert caught.value.node == "129:85 Save"


def test_a_custom_node_may_take_inputs_it_does_not_declare() -> None:
    custom = graph() | {"3": {"class_type": "Custom", "inputs": {"image_7": ["1", 0]}}}
    check_graph(custom, SPECS)
