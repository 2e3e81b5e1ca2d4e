"""What the policy is shown of an own workflow."""

from typing import Any

from gateway.own_workflows.making import make
from gateway.own_workflows.reading import read_graph
from gateway.own_workflows.texts import seen_by_policy
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
