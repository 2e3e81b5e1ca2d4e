from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue, ValidationError

from gateway.media import nearest, step_message
from gateway.operations import OPERATIONS
from gateway.tool import AnyTool
from gateway.tools import GENERATE, MODES, TOOLS
from gateway.tools.generate import GenerateParams
from gpu_server.workflow import Workflow, load_workflows

WORKFLOWS = {**load_workflows(Path(__file__).parents[3] / "workflows"), **OPERATIONS}


def default_workflow(tool: AnyTool) -> Workflow:
    return next(
        w for w in WORKFLOWS.values() if (w.tool, w.variant) == (tool.name, tool.default_variant)
    )


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_the_defaults_shown_are_the_default_variants_own(tool: AnyTool) -> None:
    own = default_workflow(tool).defaults
    for name, field in tool.params.model_fields.items():
        default = cast("JsonValue", field.default)
        if name in own and name not in tool.params.OPTIONS and default is not None:
            assert default == own[name], name


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_every_parameter_is_described_and_bounded(tool: AnyTool) -> None:
    schema = tool.params.model_json_schema()
    for name, field in cast("dict[str, dict[str, Any]]", schema["properties"]).items():
        assert field.get("description"), name
        kinds = [field, *field.get("anyOf", [])]
        if any("$ref" in kind for kind in kinds):
            # an object: its own fields say what they are
            continue
        kind = next(k for k in kinds if k.get("type", "null") != "null")
        if "enum" in kind:
            continue
        bounds = {
            "integer": {"minimum", "maximum"},
            "number": {"minimum", "maximum"},
            "string": {"maxLength"},
            "array": {"maxItems"},
            "boolean": set[str](),
        }
        stated = {"minimum" if key == "exclusiveMinimum" else key for key in kind}
        assert bounds[kind["type"]] <= stated, name


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_each_parameter_is_bound_by_a_workflow_or_steers_the_call(tool: AnyTool) -> None:
    tools = {tool.name} | ({tool.redraw.tool.name} if tool.redraw else set())
    bound = {name for w in WORKFLOWS.values() if w.tool in tools for name in w.manifest.params}
    assert set(tool.params.model_fields) - tool.params.OPTIONS <= bound


@pytest.mark.parametrize("tool", TOOLS, ids=lambda t: t.name)
def test_the_examples_of_a_tool_are_valid_calls(tool: AnyTool) -> None:
    for example in tool.examples.values():
        tool.params.model_validate(example)


def test_the_modes_name_tools_of_the_catalogue() -> None:
    assert {mode.tool.name for mode in MODES} <= {tool.name for tool in TOOLS}
    assert MODES[0].name == "free"
    for mode in MODES:
        filled = {name for name in (mode.faces, mode.target) if name is not None}
        assert filled <= set(mode.tool.params.model_fields), mode.name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 833),
        ("width", 240),
        ("height", 2064),
        ("num_inference_steps", 0),
        ("num_inference_steps", 101),
        ("seed", -1),
        ("seed", 2**53),
        ("guidance_scale", 30.1),
        ("guidance_scale", float("nan")),
        ("lora_scale", float("inf")),
        ("num_images", 5),
        ("prompt", ""),
        ("prompt", "a" * 8001),
        ("prompt", "a\0b"),
        ("prompt", " \n\t\u00a0\u200b"),
        ("variant", ""),
        ("width", True),
        ("width", "512"),
        ("seed", True),
        ("num_images", "1"),
        ("num_inference_steps", False),
        ("model_id", True),
        ("guidance_scale", True),
        ("guidance_scale", "1"),
        ("lora_scale", False),
        ("loras", [{"name": "x", "scale": True}]),
        ("variant", "flux\n1"),
        ("loras", [{"name": "x"}] * 5),
        ("loras", [{"name": ""}]),
        ("model_id", 0),
        ("steps", 4),
    ],
)
def test_a_value_out_of_bounds_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        GenerateParams.model_validate({"prompt": "a", field: value})
    assert refused.value.errors()[0]["loc"][0] == field


def test_base_model_is_another_name_of_variant() -> None:
    assert GenerateParams(prompt="a", base_model="z-image-turbo").chosen_variant() == (
        "z-image-turbo"
    )
    with pytest.raises(ValidationError, match="two names of one thing"):
        GenerateParams(prompt="a", variant="flux1-dev", base_model="z-image-turbo")


def test_whole_numbers_are_taken_however_json_writes_them() -> None:
    sent = {"prompt": "a", "width": 512.0, "guidance_scale": 7}
    params = GenerateParams.model_validate(sent)
    assert (params.width, params.guidance_scale) == (512, 7.0)


def test_two_names_that_differ_are_refused_at_the_second() -> None:
    with pytest.raises(ValidationError) as refused:
        GenerateParams(prompt="a", variant="flux1-dev", base_model="z-image-turbo")
    assert refused.value.errors()[0]["loc"] == ("base_model",)


def test_only_what_the_caller_set_is_bound() -> None:
    params = GenerateParams(prompt="a", width=512, variant="flux1-dev", seed=None, lora_scale=0.5)
    assert params.bound() == {"prompt": "a", "width": 512}


@given(st.integers(256, 2048))
def test_the_values_a_message_proposes_are_allowed(value: int) -> None:
    below, above = nearest(value, 16)
    assert below <= value < above
    assert below % 16 == above % 16 == 0


def test_the_message_names_both_neighbours() -> None:
    assert step_message(833, 16) == "must be a multiple of 16: use 832 or 848"


def test_the_default_variant_of_image_generation_is_documented_as_non_commercial() -> None:
    assert any(not m.commercial for m in default_workflow(GENERATE).models)
