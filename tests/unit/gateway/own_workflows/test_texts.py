"""What the policy is shown of an own workflow."""

from typing import Any

import pytest

from gateway.errors import InvalidParameters
from gateway.own_workflows.making import make
from gateway.own_workflows.reading import read_graph
from gateway.own_workflows.texts import MOST_TEXT, seen_by_policy
from gpu_server.workflow import Workflow
from tests.support.recordings import files

Json = dict[str, Any]


def workflow(params: Json, **literals: Any) -> Workflow:
    graph, manifest = files("checkpoint")
    graph["3"]["inputs"]["text"] = "a mug"
    graph["4"]["inputs"]["text"] = "blurry"
    graph["6"]["inputs"] |= literals
    sent = {"params": params, "outputs": {"images": manifest["outputs"]["images"] | {"max": 1}}}
    return make("mine", read_graph(graph), sent, None).workflow


def test_every_text_of_the_graph_is_shown_by_its_place() -> None:
    seen = seen_by_policy(workflow({}), {})
    assert seen["3.text"] == "a mug"
    assert seen["6.scheduler"] == "karras"
    assert seen["loras"] == ["my_trained_lora.safetensors"]


def test_what_a_call_says_stands_where_it_goes() -> None:
    params = {
        "prompt": {"bind": {"to": "3.text", "template": "a photo of {value}"}},
        "more": {"bind": {"to": "3.text", "append": True}},
    }
    seen = seen_by_policy(workflow(params), {"prompt": "a fox", "more": ", at night"})
    assert seen["more"] == "a photo of a fox, at night"
    assert "3.text" not in seen


def test_texts_that_only_steer_away_are_told_apart() -> None:
    avoided = workflow({"avoid": {"bind": "4.text"}})
    seen = seen_by_policy(avoided, {"avoid": "people"})
    assert (seen["negative_prompt"], seen["guidance_scale"]) == ("people", 7.0)
    assert "avoid" not in seen


def test_guidance_that_turns_the_negative_around_is_seen_wherever_it_comes_from() -> None:
    assert seen_by_policy(workflow({}, cfg=0.5), {})["guidance_scale"] == 0.5
    chosen = workflow({"cfg": {"bind": "6.cfg"}})
    assert seen_by_policy(chosen, {"cfg": 0.2})["guidance_scale"] == 0.2
    linked = seen_by_policy(workflow({}, cfg=["5", 0]), {})
    assert linked["guidance_scale"] == 0


def test_a_text_read_by_both_sides_is_asked_for() -> None:
    both = workflow({}, positive=["4", 0])
    seen = seen_by_policy(both, {})
    assert seen["4.text"] == "blurry"
    assert "negative_prompt" not in seen


def test_what_the_manifest_fixes_is_shown_in_place_of_the_graphs_own() -> None:
    graph, manifest = files("checkpoint")
    graph["3"]["_meta"] = {"title": "Words"}
    fixed = {"title:Words.text": "a quokka", "6.cfg": 0.5}
    outputs = {"images": manifest["outputs"]["images"] | {"max": 1}}
    sent: Json = {"params": {}, "fixed": fixed, "outputs": outputs}
    seen = seen_by_policy(make("mine", read_graph(graph), sent, None).workflow, {})
    assert seen["3.text"] == "a quokka"
    assert seen["guidance_scale"] == 0.5


def test_a_parameter_comes_after_what_is_fixed() -> None:
    graph, manifest = files("checkpoint")
    outputs = {"images": manifest["outputs"]["images"] | {"max": 1}}
    params = {"more": {"bind": {"to": "3.text", "append": True}}}
    sent: Json = {"params": params, "fixed": {"3.text": "a quokka"}, "outputs": outputs}
    workflow = make("mine", read_graph(graph), sent, None).workflow
    assert seen_by_policy(workflow, {"more": ", at night"})["more"] == "a quokka, at night"


def test_texts_inside_objects_and_lists_are_shown() -> None:
    inside = workflow({}, extra={"a": ["one", {"b": "two"}], "n": 1})
    assert seen_by_policy(inside, {})["6.extra"] == "one\ntwo"


def handed_on(class_type: str) -> Workflow:
    """The negative text goes through a node with both texts, whose outputs are crossed."""
    graph, manifest = files("checkpoint")
    graph["3"]["inputs"]["text"] = "a mug"
    graph["4"]["inputs"]["text"] = "blurry"
    both = {"positive": ["3", 0], "negative": ["4", 0], "strength": 1.0}
    graph["30"] = {"class_type": class_type, "inputs": both}
    graph["6"]["inputs"] |= {"positive": ["30", 1], "negative": ["30", 0]}
    outputs = {"images": manifest["outputs"]["images"] | {"max": 1}}
    return make("mine", read_graph(graph), {"params": {}, "outputs": outputs}, None).workflow


@pytest.mark.parametrize(
    "class_type",
    ["WanImageToVideo", "ControlNetApplyAdvanced", "InpaintModelConditioning", "NobodyKnows"],
)
def test_a_negative_text_that_is_handed_on_may_be_what_is_asked_for(class_type: str) -> None:
    seen = seen_by_policy(handed_on(class_type), {})
    assert seen["4.text"] == "blurry"
    assert "negative_prompt" not in seen


def test_no_more_text_is_looked_at_than_a_limit_allows() -> None:
    where = [{"to": "3.text", "template": "{value} " * 10, "append": True}] * 10
    params = {"prompt": {"bind": where}}
    assert seen_by_policy(workflow(params), {"prompt": "x" * 800})
    with pytest.raises(InvalidParameters) as caught:
        seen_by_policy(workflow(params), {"prompt": "x" * 1500})
    (error,) = caught.value.errors
    assert error.field == "prompt"
    long = workflow({}, note="x" * (MOST_TEXT + 1))
    with pytest.raises(InvalidParameters) as caught:
        seen_by_policy(long, {})
    (error,) = caught.value.errors
    assert error.field == "graph"


def test_a_value_that_cannot_be_filled_in_is_refused_by_name() -> None:
    scaled = workflow({"a": {"bind": {"to": "6.steps", "scale": 1e300}}})
    with pytest.raises(InvalidParameters) as caught:
        seen_by_policy(scaled, {"a": 1e10})
    (error,) = caught.value.errors
    assert error.field == "a"
