"""What no run could ever carry out, refused while its author is still there."""

from typing import Any

import pytest

from gateway.errors import FieldError, InvalidParameters
from gateway.own_workflows.making import make
from gateway.own_workflows.reading import read_graph
from tests.support.recordings import files, object_info

Json = dict[str, Any]
URL = "https://example.com/a.safetensors"
MODEL = {"name": "a", "directory": "loras", "license": "MIT", "commercial": True}


def refused(
    params: Json | None = None, *, known: bool = True, literals: Json | None = None, **more: Any
) -> FieldError:
    """The one thing that is wrong with the text-to-image workflow, changed so."""
    graph, manifest = files("checkpoint")
    graph["2"]["inputs"]["lora_name"] = "ink.safetensors"
    graph["1"]["inputs"]["ckpt_name"] = "sd15.safetensors"
    graph["6"]["inputs"] |= literals or {}
    outputs = {"images": manifest["outputs"]["images"] | {"max": 4}}
    sent = {"params": params or {}, "outputs": outputs, **more}
    info = object_info("0.33.0") if known else None
    with pytest.raises(InvalidParameters) as caught:
        make("mine", read_graph(graph), sent, info)
    (error,) = caught.value.errors
    return error


@pytest.mark.parametrize("step", [0.3, 1e-300])
@pytest.mark.parametrize("known", [True, False])
def test_a_whole_number_is_no_multiple_of_a_fraction(step: float, *, known: bool) -> None:
    bound = {"a": {"bind": "6.steps", "limits": {"multiple_of": step}}}
    assert refused(bound, known=known).field == "params.a.limits.multiple_of"
    stated = {"a": {"bind": "6.steps", "schema": {"multipleOf": step}}}
    assert refused(stated, known=known).field == "params.a.schema.multipleOf"
    drawn = {"a": {"bind": "6.seed", "seed": True, "limits": {"multiple_of": step}}}
    assert refused(drawn, known=known).field == "params.a.limits.multiple_of"


def test_an_output_with_more_files_at_least_than_at_most_is_refused() -> None:
    outputs = {"images": {"node": "8", "kind": "image", "min": 3, "max": 2}}
    error = refused(outputs=outputs, known=False)
    assert error.field == "outputs.images"
    assert "3" in error.message
    assert "2" in error.message


@pytest.mark.parametrize("kind", ["video", "text", "audio", "model"])
def test_an_output_of_a_kind_its_node_never_makes_is_refused(kind: str) -> None:
    error = refused(outputs={"images": {"node": "8", "kind": kind}}, known=False)
    assert error.field == "outputs.images"
    assert "SaveImage" in error.message


def test_an_address_with_a_password_in_it_is_not_kept() -> None:
    models = [MODEL | {"url": URL}, MODEL | {"url": "https://me:secret@example.com/a"}]
    error = refused(models=models)
    assert error.field == "manifest.models.1.url"
    assert "secret" not in error.message


def test_templates_have_an_end() -> None:
    def template(text: str) -> FieldError:
        return refused({"p": {"bind": {"to": "3.text", "template": text}}})

    for text in ("{value} " * 11, "{value}" + "x" * 8000):
        assert template(text).field.startswith("manifest.params.p.bind")


WRONG_LITERALS = [
    ("steps", "ten"),
    ("steps", 1_000_000),
    ("steps", 7.5),
    ("seed", 10**300),
    ("seed", 10**400),
    ("cfg", "strong"),
    ("cfg", 10**400),
]


@pytest.mark.parametrize(("name", "value"), WRONG_LITERALS)
def test_a_literal_its_node_would_not_take_is_named(name: str, value: Any) -> None:
    assert refused(literals={name: value}).field == f"graph.6.inputs.{name}"


def test_what_is_fixed_is_looked_at_like_any_other_literal() -> None:
    assert refused(fixed={"6.sampler_name": "nope"}).field == "graph.6.inputs.sampler_name"
    assert refused(fixed={"6.steps": "ten"}).field == "graph.6.inputs.steps"


def test_a_fixed_value_takes_the_place_of_a_wrong_literal() -> None:
    graph, manifest = files("checkpoint")
    graph["2"]["inputs"]["lora_name"] = "ink.safetensors"
    graph["1"]["inputs"]["ckpt_name"] = "sd15.safetensors"
    # texts that read as numbers are numbers to ComfyUI
    graph["6"]["inputs"] |= {"steps": "ten", "cfg": "7.5"}
    outputs = {"images": manifest["outputs"]["images"] | {"max": 4}}
    sent: Json = {"params": {}, "outputs": outputs, "fixed": {"6.steps": 10}}
    assert make("mine", read_graph(graph), sent, object_info("0.33.0"))


def test_a_map_says_what_its_input_takes() -> None:
    empty = refused({"p": {"bind": {"to": "6.steps", "map": {}}}})
    assert empty.field.startswith("manifest.params.p.bind")
    number = refused({"p": {"required": True, "bind": {"to": "6.steps", "map": {"x": "y"}}}})
    assert number.field == "graph.6.inputs.steps"
    sampler = {"to": "6.sampler_name", "map": {"x": "nope"}}
    assert refused({"p": {"required": True, "bind": sampler}}).field == (
        "graph.6.inputs.sampler_name"
    )


def test_a_text_is_no_choice_of_files() -> None:
    error = refused({"p": {"choices": "loras", "required": True, "bind": "3.text"}})
    assert error.field == "graph.3.inputs.text"


def chain(length: int) -> Json:
    graph: Json = {"0": {"class_type": "EmptyImage", "inputs": {}}}
    for number in range(1, length):
        source = [str(number - 1), 0]
        graph[str(number)] = {"class_type": "ImageInvert", "inputs": {"image": source}}
    return graph


def test_a_chain_longer_than_comfyui_can_follow_is_refused() -> None:
    assert len(read_graph(chain(500))) == 500
    with pytest.raises(InvalidParameters) as caught:
        read_graph(chain(1999))
    (error,) = caught.value.errors
    assert (error.field, error.code) == ("graph.500", "too_deep")


NOT_GRAPHS: list[tuple[Any, str]] = [
    (None, "must be an object"),
    ([], "must be an object"),
    (5, "must be an object"),
    ({"prompt": chain(2), "client_id": "x"}, "send what is under `prompt`"),
    ({"nodes": [], "version": 0.4}, "Export (API)"),
]


@pytest.mark.parametrize(("sent", "said"), NOT_GRAPHS)
def test_what_is_no_graph_is_told_so_plainly(sent: Any, said: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        read_graph(sent)
    (error,) = caught.value.errors
    assert error.field == "graph"
    assert said in error.message


@pytest.mark.parametrize("node_id", ["a.b", "", "a b", "ä", "a\n", "x" * 101])
def test_a_node_id_of_other_characters_is_refused_whatever_else_is_wrong(node_id: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        read_graph({node_id: {"class_type": "A", "inputs": {"x": ["9", 0]}}})
    (error,) = caught.value.errors
    assert error.code == "bad_node_id"
