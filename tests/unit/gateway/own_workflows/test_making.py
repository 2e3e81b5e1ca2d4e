"""What parameters take, derived from recorded answers of `/object_info`, and what becomes of it."""

import copy
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.errors import InvalidParameters
from gateway.own_workflows.making import make, stored
from gateway.own_workflows.reading import read_graph
from gateway.own_workflows.tool import own_tool
from gateway.tool import ToolParams, body_of
from gpu_server.workflow import Workflow
from gpu_server.workflow.node_specs import ObjectInfo
from tests.support.recordings import VERSIONS, bundled, files, installed, object_info

Json = dict[str, Any]


def made(params: Json | None, *, name: str = "checkpoint", info: ObjectInfo | None) -> Workflow:
    graph, manifest = files(name)
    graph["2"]["inputs"]["lora_name"] = "ink.safetensors"
    graph["1"]["inputs"]["ckpt_name"] = "sd15.safetensors"
    sent = None if params is None else {"params": params, "outputs": manifest["outputs"]}
    if sent is not None:
        sent["outputs"]["images"]["max"] = 4
    return make("mine", read_graph(graph), sent, info).workflow


def body(workflow: Workflow) -> type[ToolParams]:
    return body_of(own_tool("mine", 1, workflow))


def schema(workflow: Workflow, name: str) -> Json:
    return body(workflow).model_json_schema()["properties"][name]


def wrong(model: type[ToolParams], **values: Any) -> set[str]:
    """The fields that are refused."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        return {str(one["loc"][0]) for one in error.errors()}
    return set()


@pytest.mark.parametrize("name", sorted(bundled()))
@pytest.mark.parametrize("known", [True, False])
def test_every_bundled_workflow_could_be_a_callers_own(name: str, *, known: bool) -> None:
    graph, manifest = files(name)
    for key in ("manifest", "tool", "variant"):
        del manifest[key]
    whole = make("mine", read_graph(graph), manifest, installed(name) if known else None)
    workflow = whole.workflow
    # the same content has the same digest wherever it comes from
    sent = workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert stored("mine", copy.deepcopy(whole.graph), sent).digest == workflow.digest
    tool = own_tool("mine", 1, workflow)
    (example,) = tool.examples.values()
    assert body_of(tool).model_validate(example)
    assert set(manifest["params"]) <= tool.params.model_fields.keys()


@pytest.mark.parametrize("version", VERSIONS)
def test_numbers_are_bounded_as_their_nodes_declare(version: str) -> None:
    info = object_info(version)
    workflow = made({"w": {"bind": "5.width"}, "cfg": {"bind": "6.cfg"}}, info=info)
    width = schema(workflow, "w")
    assert (width["minimum"], width["maximum"], width["multipleOf"]) == (16, 16384, 8)
    assert (width["type"], width["default"]) == ("integer", 1024)
    assert schema(workflow, "cfg") | {"description": ""} == {
        "type": "number",
        "minimum": 0,
        "maximum": 100,
        "default": 7.0,
        "title": "Cfg",
        "description": "",
    }
    model = body(workflow)
    assert wrong(model, w=1032, cfg=7) == set()
    assert wrong(model, w=1030, cfg=101) == {"w", "cfg"}
    assert wrong(model, w=True, cfg="7") == {"w", "cfg"}


def test_without_a_word_of_comfyui_types_are_those_of_the_graphs_values() -> None:
    params = {
        "w": {"bind": "5.width"},
        "cfg": {"bind": "6.cfg"},
        "text": {"bind": "3.text"},
    }
    model = body(made(params, info=None))
    assert wrong(model, w=7.5, cfg="high", text=3) == {"w", "cfg", "text"}
    assert wrong(model, w=1030, cfg=101, text="a fox") == set()
    assert wrong(model, text="x" * 8001) == {"text"}


def test_a_schema_of_the_callers_narrows_and_never_widens() -> None:
    info = object_info("0.33.0")
    given = {"minimum": 60, "maximum": 100_000, "description": "How wide."}
    width = schema(made({"w": {"bind": "5.width", "schema": given}}, info=info), "w")
    assert (width["minimum"], width["maximum"]) == (60, 16384)
    assert width["description"] == "How wide."
    with pytest.raises(InvalidParameters) as caught:
        made({"w": {"bind": "5.width", "schema": {"type": "string"}}}, info=info)
    assert caught.value.errors[0].field == "params.w.schema.type"


def test_steps_that_do_not_begin_at_nothing_are_counted_from_the_nodes_minimum() -> None:
    graph, manifest = files("video-wan2.1-480p")
    info = installed("video-wan2.1-480p")
    length = next(p["bind"] for n, p in manifest["params"].items() if n == "length")
    sent = {
        "models": manifest["models"],
        "outputs": manifest["outputs"],
        "params": {
            "image": manifest["params"]["image_url"],
            "frames": {"bind": length, "schema": {"minimum": 4}},
        },
    }
    model = body(make("mine", read_graph(graph), sent, info).workflow)
    for frames, fits in ((5, True), (81, True), (1, False), (6, False)):
        assert (wrong(model, image="https://example.com/a.png", frames=frames) == set()) is fits


def test_several_inputs_are_bounded_by_the_narrowest() -> None:
    info = object_info("0.33.0")
    both = {"n": {"bind": ["5.batch_size", "6.steps"]}}
    with pytest.raises(InvalidParameters) as caught:
        # of 1 and 25 the first is the default, which fits both
        made({"n": {"bind": ["6.steps", "5.width"]}}, info=info)
    assert caught.value.errors[0].code == "bad_default"
    found = schema(made(both, info=info), "n")
    assert (found["minimum"], found["maximum"], found["default"]) == (1, 4096, 1)


def test_a_chain_takes_a_list_of_objects() -> None:
    chain = {
        "nodes": ["2"],
        "links": {"2:0": "2.model", "2:1": "2.clip"},
        "set": {"2.lora_name": "name", "2.strength_model": "scale"},
        "choices": {"name": "loras"},
        "max_items": 2,
    }
    model = body(made({"styles": {"chain": chain}}, info=object_info("0.33.0")))
    assert wrong(model, styles=[{"name": "ink.safetensors", "scale": 0.5}]) == set()
    assert wrong(model, styles=[{"name": "ink.safetensors"}] * 3) == {"styles"}
    for item in ({"scale": 1}, {"name": "a", "weight": 1}, {"name": "a", "scale": 1000}):
        assert wrong(model, styles=[item]) == {"styles"}
    sent = model.model_validate({"styles": [{"name": "ink.safetensors"}]})
    assert sent.bound() == {"styles": [{"name": "ink.safetensors"}]}


def test_a_call_has_no_variant_and_every_option_of_a_job() -> None:
    model = body(made({}, info=None))
    assert "variant" not in model.model_fields
    assert {"webhook_url", "priority", "deadline_s"} <= model.model_fields.keys()


def test_a_word_that_reads_as_a_number_is_one_everywhere() -> None:
    words = {"4": 4, "25": 25}
    workflow = made({"quality": {"bind": {"to": "6.steps", "map": words}}}, info=None)
    assert schema(workflow, "quality")["enum"] == [4, 25]
    assert wrong(body(workflow), quality=4) == set()
    assert wrong(body(workflow), quality=3) == {"quality"}


WIDTH = {"bind": "5.width"}
CHAIN = {
    "nodes": ["2"],
    "links": {"2:0": "2.model", "2:1": "2.clip"},
    "set": {"2.strength_model": "_scale"},
}


@pytest.mark.parametrize(
    ("params", "field", "code"),
    [
        ({"w": WIDTH | {"schema": {"minimum": 20_000}}}, "params.w.schema", "no_value_fits"),
        ({"w": WIDTH | {"schema": {"enum": ["wide"]}}}, "params.w.schema.enum", "wrong_choice"),
        ({"w": WIDTH | {"schema": {"items": {}}}}, "params.w.schema", "wrong_type"),
        ({"w": WIDTH | {"schema": {"enum": [512]}}}, "params.w", "bad_default"),
        ({"w" * 65: WIDTH}, "params." + "w" * 65, "bad_name"),
        ({"w": {"chain": CHAIN}}, "params.w", "bad_name"),
        ({f"w{n}": WIDTH for n in range(101)}, "params", "too_long"),
        ({"w": {"bind": "5.width", "upload": "audio"}}, "params.w", "unsupported"),
    ],
)
def test_what_no_call_could_fit_is_refused_at_once(params: Json, field: str, code: str) -> None:
    with pytest.raises(InvalidParameters) as caught:
        made(params, info=object_info("0.33.0"))
    (error,) = caught.value.errors
    assert (error.field, error.code) == (field, code)
