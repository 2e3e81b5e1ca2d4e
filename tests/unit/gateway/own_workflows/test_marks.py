"""Inputs and outputs marked by the titles of nodes, with and without ComfyUI's word on them."""

from typing import Any

import pytest

from gateway.errors import InvalidParameters
from gateway.own_workflows.making import make
from gateway.own_workflows.marks import found_outputs, marked_params
from gateway.own_workflows.reading import read_graph
from gpu_server.workflow import Graph
from tests.support.recordings import VERSIONS, files, object_info

Json = dict[str, Any]


def graph(name: str = "checkpoint", /, **titles: str) -> Graph:
    """A bundled graph with these titles: `n3` is that of node 3."""
    found, _ = files(name)
    for node in found.values():
        node["_meta"] = {}
    for node, title in titles.items():
        found[node[1:]]["_meta"]["title"] = title
    return read_graph(found)


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(InvalidParameters) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize("version", [*VERSIONS, None])
def test_a_mark_is_the_nodes_one_value_or_the_one_of_its_name(version: str | None) -> None:
    info = None if version is None else object_info(version)
    marked = graph(n3="input: prompt", n5=" Inputs:width , height,count.batch_size", n6="input:cfg")
    assert marked_params(marked, info) == {
        "prompt": {"bind": ["3.text"]},
        "width": {"bind": ["5.width"]},
        "height": {"bind": ["5.height"]},
        "count": {"bind": ["5.batch_size"]},
        "cfg": {"bind": ["6.cfg"]},
    }


def test_other_titles_mark_nothing() -> None:
    assert marked_params(graph(n3="Input", n4="my input: prompt", n6="Sampler"), None) == {}


def test_one_name_on_several_nodes_fills_them_all() -> None:
    marked = graph(n3="input: words", n4="input: words")
    assert marked_params(marked, None) == {"words": {"bind": ["3.text", "4.text"]}}


def test_one_name_for_two_kinds_is_refused() -> None:
    said = refusal(marked_params, graph(n3="input: thing", n6="input: thing.seed"), None)
    assert "node 6 (KSampler)" in said
    assert "choose another name" in said


def test_a_seed_is_drawn_and_a_file_is_uploaded() -> None:
    marked = graph("inpaint-flux2-klein-4b", n1="input: scene", n2="input: mask, part.channel")
    info = object_info("0.33.0")
    for known in (info, None):
        found = marked_params(marked, known)
        assert found["scene"] == {"upload": "image", "required": True, "bind": ["1.image"]}
        assert found["mask"] == {"upload": "mask", "required": True, "bind": ["2.image"]}
    words = {"alpha": "alpha", "red": "red", "green": "green", "blue": "blue"}
    assert marked_params(marked, info)["part"] == {"bind": [{"to": "2.channel", "map": words}]}
    seeded = marked_params(graph(n6="input: seed"), info)
    assert seeded == {"seed": {"seed": True, "bind": ["6.seed"]}}


def test_checkpoints_and_loras_are_chosen_among_the_installed_and_other_models_are_not() -> None:
    info = object_info("0.33.0")
    marked = graph(n1="input: model", n2="input: lora.lora_name")
    assert marked_params(marked, info) == {
        "model": {"choices": "checkpoints", "bind": ["1.ckpt_name"]},
        "lora": {"choices": "loras", "bind": ["2.lora_name"]},
    }
    said = refusal(marked_params, graph("z-image-turbo", n1="input: model.unet_name"), info)
    assert "names a model file" in said


def test_what_only_comfyui_knows_is_refused_while_no_gpu_service_answers() -> None:
    said = refusal(marked_params, graph(n6="input: sampler.sampler_name"), None)
    assert "while no GPU service answers" in said
    found: Json = marked_params(graph(n6="input: sampler.sampler_name"), object_info("0.33.0"))
    assert "euler" in found["sampler"]["bind"][0]["map"]


def test_a_linked_input_cannot_be_marked() -> None:
    said = refusal(marked_params, graph(n7="input: picture"), object_info("0.33.0"))
    assert "node 7 (VAEDecode)" in said
    assert "all its inputs are links" in said


@pytest.mark.parametrize("known", [True, False])
def test_every_node_that_keeps_something_is_an_output(*, known: bool) -> None:
    info = object_info("0.33.0") if known else None
    assert found_outputs(graph(), info) == {"images": {"node": "8", "kind": "image", "max": 16}}
    several = graph()
    for n in range(9, 14):
        several[str(n)] = {"class_type": "SaveImage", "inputs": dict(several["8"]["inputs"])}
    several["20"] = {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}
    found = found_outputs(several, info)
    assert list(found) == ["images", *(f"images_{n}" for n in range(2, 7))]
    # what one run can deliver is shared out
    assert {output["max"] for output in found.values()} == {10}


def test_named_outputs_are_the_only_ones() -> None:
    marked = graph(n8="output: picture")
    marked["9"] = {"class_type": "SaveImage", "inputs": dict(marked["8"]["inputs"])}
    assert list(found_outputs(marked, None)) == ["picture"]
    marked["9"]["_meta"] = {"title": "output: picture"}
    assert "node 8 is the output 'picture' already" in refusal(found_outputs, marked, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("video-wan2.1-480p", "video"),
        ("model3d-trellis2", "model"),
        ("caption-qwen3-vl", "text"),
        ("mask-sam3", "image"),
    ],
)
def test_the_kind_of_an_output_is_read_off_its_node(name: str, kind: str) -> None:
    found, manifest = files(name)
    saver = next(iter(manifest["outputs"].values()))["node"]
    found[saver]["_meta"] = {"title": "output: it"}
    assert found_outputs(read_graph(found), None)["it"]["kind"] == kind


def test_a_file_of_comfyuis_own_disk_is_never_read() -> None:
    unmarked, _ = files("upscale-realesrgan")
    for info in (object_info("0.33.0"), None):
        said = refusal(make, "mine", read_graph(unmarked), None, info)
        assert "make it an input of the call by the title `input: <name>`" in said
