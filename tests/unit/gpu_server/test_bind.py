"""Parameters into graphs: every operation of a manifest, and every refusal."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.workflow import Workflow, make_workflow
from gpu_server.workflow.bind import MAX_SEED, BoundGraph, ParamError
from gpu_server.workflow.graph import links
from gpu_server.workflow.surgery import bypass, fill
from tests.support.recordings import VERSIONS, bundled, files, made, object_info

INFO = object_info("0.33.0")
INK: dict[str, Any] = {"name": "ink.safetensors", "scale": 0.5}
STYLE: dict[str, Any] = {"name": "style.safetensors"}


def bound(
    workflow: Workflow | str = "checkpoint", params: dict[str, Any] | None = None, **given_: Any
) -> BoundGraph:
    chosen = bundled()[workflow] if isinstance(workflow, str) else workflow
    values: dict[str, Any] = {"prompt": "a mug"} | (params or {}) | given_
    if "checkpoint" in chosen.manifest.params:
        values.setdefault("checkpoint", "sd15.safetensors")
    return chosen.bind(values, run_id="run-1", object_info=INFO)


def refused(workflow: Workflow | str = "checkpoint", **given_: Any) -> ParamError:
    with pytest.raises(ParamError) as error:
        bound(workflow, given_)
    return error.value


def custom(param: dict[str, Any], name: str = "it") -> Workflow:
    graph, manifest = files("checkpoint")
    manifest["params"][name] = param
    return made(graph, manifest)


def test_values_reach_their_inputs_and_are_reported() -> None:
    result = bound(
        "flux1-dev",
        negative_prompt="blurry",
        num_inference_steps=7,
        guidance_scale=2,
        width=512,
        height=768,
        num_images=3,
        seed=42,
    )
    inputs = {node: data["inputs"] for node, data in result.graph.items()}
    assert inputs["5"]["text"] == "a mug"
    assert inputs["6"]["text"] == "blurry"
    assert (inputs["9"]["steps"], inputs["9"]["cfg"], inputs["9"]["seed"]) == (7, 2, 42)
    assert inputs["8"] == {"width": 512, "height": 768, "batch_size": 3}
    assert result.params["loras"] == []
    assert result.params["seed"] == 42


def test_what_is_not_given_keeps_the_graphs_literal_and_is_reported() -> None:
    params = bound().params
    assert params["num_inference_steps"] == 25
    assert params["negative_prompt"] == ""


def test_null_is_the_same_as_absent() -> None:
    assert bound(negative_prompt=None, seed=1).params == bound(seed=1).params


def test_a_seed_is_drawn_when_absent_and_reported() -> None:
    seeds = {str(bound().params["seed"]) for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= int(s) <= MAX_SEED for s in seeds)
    result = bound()
    assert result.graph["6"]["inputs"]["seed"] == result.params["seed"]


def test_the_prefix_is_the_runs_own() -> None:
    assert bound().graph["8"]["inputs"]["filename_prefix"] == "jobs/run-1/image"


def test_one_parameter_may_have_several_targets() -> None:
    workflow = custom({"bind": ["5.width", "5.height"]}, "size")
    graph, manifest = files("checkpoint")
    assert graph["5"]["inputs"]["width"] == 1024
    assert manifest["params"]["width"]
    inputs = bound(workflow, size=640).graph["5"]["inputs"]
    # Declared last, it is set last.
    assert (inputs["width"], inputs["height"]) == (640, 640)


@pytest.mark.parametrize(
    ("target", "value", "arrives"),
    [
        ({"to": "6.cfg", "scale": 0.5}, 9, 4.5),
        ({"to": "6.cfg", "offset": 1}, 9, 10),
        ({"to": "6.cfg", "scale": 2, "offset": -1, "clamp": [0, 10]}, 9, 10),
        ({"to": "6.steps", "scale": 0.3}, 9, 3),
        ({"to": "6.sampler_name", "map": {"fast": "euler"}}, "fast", "euler"),
        ({"to": "6.steps", "map": {"true": 4, "false": 30}}, True, 4),
        ({"to": "6.steps", "map": {"2": 20}}, 2, 20),
        ({"to": "3.text", "template": "a photo of {value}, {sharp}"}, "x", "a photo of x, {sharp}"),
    ],
)
def test_a_target_may_change_the_value_on_its_way(
    target: dict[str, Any], value: Any, arrives: Any
) -> None:
    node, name = target["to"].split(".")
    result = bound(custom({"bind": target}), it=value)
    assert result.graph[node]["inputs"][name] == arrives
    assert result.params["it"] == value


def test_a_title_is_an_address_when_one_node_has_it() -> None:
    graph = bound(custom({"bind": "title:Negative Prompt.text"}), it="grey").graph
    assert graph["4"]["inputs"]["text"] == "grey"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "lora", "model", "clip"),
    [
        ("flux1-dev", "4", "9", "5"),
        ("z-image-turbo", "11", "7", "4"),
        ("checkpoint", "2", "6", "3"),
    ],
)
def test_loras_are_chained_in_order_and_without_one_the_loader_is_gone(
    name: str, lora: str, model: str, clip: str, version: str
) -> None:
    info, workflow = object_info(version), bundled()[name]
    values: dict[str, Any] = {"prompt": "x"}
    if name == "checkpoint":
        values["checkpoint"] = "sd15.safetensors"
    lists: list[Any] = [[], [INK], [INK, STYLE, INK]]
    none, one, three = (
        workflow.bind(values | {"loras": loras}, run_id="r", object_info=info).graph
        for loras in lists
    )
    source = workflow.graph[lora]["inputs"]
    assert lora not in none
    assert none[model]["inputs"]["model"] == source["model"]
    assert none[clip]["inputs"]["clip"] == source["clip"]
    assert one[lora]["inputs"] == {
        "model": source["model"],
        "clip": source["clip"],
        "lora_name": "ink.safetensors",
        "strength_model": 0.5,
        "strength_clip": 0.5,
    }
    second, third = f"{lora}_2", f"{lora}_3"
    assert three[model]["inputs"]["model"] == [third, 0]
    assert three[clip]["inputs"]["clip"] == [third, 1]
    assert three[third]["inputs"]["model"] == [second, 0]
    assert three[second]["inputs"]["clip"] == [lora, 1]
    assert three[second]["inputs"]["lora_name"] == "style.safetensors"
    assert three[second]["inputs"]["strength_model"] == 1.0
    assert three[lora]["inputs"]["model"] == source["model"]


def test_the_literal_of_a_key_left_out_is_reported() -> None:
    assert bound(loras=[STYLE]).params["loras"] == [{"name": "style.safetensors", "scale": 1.0}]


@given(
    st.lists(st.sampled_from([INK, STYLE]), max_size=8),
    st.sampled_from(["checkpoint", "flux1-dev", "z-image-turbo"]),
)
def test_no_expansion_leaves_a_link_to_nowhere(loras: list[Any], name: str) -> None:
    graph = bound(name, {"loras": loras}).graph
    assert all(source in graph for _, _, source, _ in links(graph))
    assert sum(n["class_type"] == "LoraLoader" for n in graph.values()) == len(loras)


def test_nodes_no_output_reaches_are_dropped() -> None:
    graph, manifest = files("checkpoint")
    graph["20"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}}
    graph["21"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["20", 0], "filename_prefix": "x"},
    }
    manifest["fixed"]["21.filename_prefix"] = "jobs/{run_id}/other"
    assert {"20", "21"}.isdisjoint(bound(made(graph, manifest)).graph)


@pytest.mark.parametrize(
    ("given_", "param", "code"),
    [
        ({"width": 833}, "width", "invalid_param"),
        ({"width": 32}, "width", "invalid_param"),
        ({"width": 4096}, "width", "invalid_param"),
        ({"width": "wide"}, "width", "invalid_param"),
        ({"width": True}, "width", "invalid_param"),
        ({"width": 512.5}, "width", "invalid_param"),
        ({"num_inference_steps": 0}, "num_inference_steps", "invalid_param"),
        ({"guidance_scale": float("nan")}, "guidance_scale", "invalid_param"),
        ({"guidance_scale": 10**400}, "guidance_scale", "invalid_param"),
        ({"seed": -1}, "seed", "invalid_param"),
        ({"seed": 2**53}, "seed", "invalid_param"),
        ({"seed": "1"}, "seed", "invalid_param"),
        ({"prompt": 5}, "prompt", "invalid_param"),
        ({"prompt": None}, "prompt", "missing_param"),
        ({"colour": "red"}, "colour", "unknown_param"),
        ({"loras": "ink.safetensors"}, "loras", "invalid_param"),
        ({"loras": ["ink.safetensors"]}, "loras[0]", "invalid_param"),
        ({"loras": [INK, {"scale": 1}]}, "loras[1].name", "missing_param"),
        ({"loras": [INK | {"weight": 1}]}, "loras[0].weight", "unknown_param"),
        ({"loras": [INK | {"scale": "much"}]}, "loras[0].scale", "invalid_param"),
        ({"loras": [INK | {"scale": 1000}]}, "loras[0].scale", "invalid_param"),
        ({"loras": [INK] * 9}, "loras", "invalid_param"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(
    given_: dict[str, Any], param: str, code: str
) -> None:
    error = refused(**given_)
    assert (error.param, error.code) == (param, code)
    assert param.split("[", maxsplit=1)[0] in error.message


@pytest.mark.parametrize(
    ("given_", "param"),
    [
        ({"checkpoint": "../../secrets.ckpt"}, "checkpoint"),
        ({"loras": [{"name": "/etc/passwd"}]}, "loras[0].name"),
        ({"loras": [{"name": "INK.safetensors"}]}, "loras[0].name"),
    ],
)
def test_only_installed_files_are_taken_and_the_list_is_not_told(
    given_: dict[str, Any], param: str
) -> None:
    error = refused(**given_)
    assert (error.param, error.code) == (param, "model_not_installed")
    assert "sd15" not in error.message
    assert "style" not in error.message


def test_a_word_outside_a_map_is_refused_with_the_words_inside() -> None:
    workflow = custom({"bind": {"to": "6.sampler_name", "map": {"fast": "euler"}}})
    assert "fast" in refused(workflow, it="slow").message


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refused(checkpoint="x" * 10_000).message) < 200


UPLOADS: dict[str, Any] = {
    "LoadImage": {
        "input": {"required": {"image": [["a.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
        "output_node": False,
    },
    "ImageBlend": {
        "input": {"required": {"image1": ["IMAGE"], "image2": ["IMAGE"]}},
        "output": ["IMAGE"],
        "output_node": False,
    },
}


def with_picture(param: dict[str, Any]) -> Workflow:
    graph, manifest = files("checkpoint")
    graph["30"] = {"class_type": "LoadImage", "inputs": {"image": "example.png"}}
    graph["31"] = {"class_type": "ImageBlend", "inputs": {"image1": ["7", 0], "image2": ["30", 0]}}
    graph["8"]["inputs"]["images"] = ["31", 0]
    manifest["params"]["picture"] = param
    return made(graph, manifest)


def test_a_file_is_bound_by_the_name_comfyui_gave_it() -> None:
    workflow = with_picture({"upload": "image", "bind": "30.image"})
    result = workflow.bind(
        {"prompt": "x", "checkpoint": "sd15.safetensors"},
        run_id="r",
        object_info=INFO | UPLOADS,
        uploads={"picture": ["jobs/r/picture-0.png"]},
    )
    assert result.graph["30"]["inputs"]["image"] == "jobs/r/picture-0.png"
    assert "picture" not in result.params


@pytest.mark.parametrize(
    ("params", "uploads"),
    [
        ({"picture": "/etc/passwd"}, {}),
        ({}, {"prompt": ["a.png"]}),
        ({}, {"picture": ["a.png", "b.png"]}),
    ],
)
def test_files_and_values_are_not_confused(
    params: dict[str, Any], uploads: dict[str, list[str]]
) -> None:
    workflow = with_picture({"upload": "image", "bind": "30.image"})
    with pytest.raises(ParamError):
        workflow.bind(
            {"prompt": "x", "checkpoint": "sd15.safetensors"} | params,
            run_id="r",
            object_info=INFO | UPLOADS,
            uploads=uploads,
        )


def test_an_absent_optional_file_bypasses_its_node() -> None:
    param = {"upload": "image", "bind": "30.image", "absent": {"bypass": ["31"]}}
    result = with_picture(param).bind(
        {"prompt": "x", "checkpoint": "sd15.safetensors"},
        run_id="r",
        object_info=INFO | UPLOADS,
    )
    assert result.graph["8"]["inputs"]["images"] == ["7", 0]
    assert {"30", "31"}.isdisjoint(result.graph)


def test_bypass_takes_the_same_slot_first_and_else_the_first_of_its_type() -> None:
    info: dict[str, Any] = {
        "Source": {"input": {}, "output": ["IMAGE", "MASK"]},
        "Mix": {
            "input": {"required": {"a": ["MASK"], "b": ["IMAGE"], "n": ["INT"], "c": ["IMAGE"]}},
            "output": ["IMAGE", "IMAGE", "LATENT"],
        },
        "Sink": {
            "input": {"required": {"x": ["IMAGE"], "y": ["IMAGE"], "z": ["LATENT"]}},
            "output": [],
        },
    }
    graph: dict[str, dict[str, Any]] = {
        "1": {"class_type": "Source", "inputs": {}},
        "2": {"class_type": "Source", "inputs": {}},
        "3": {
            "class_type": "Mix",
            "inputs": {"a": ["1", 1], "b": ["1", 0], "n": 1, "c": ["2", 0]},
        },
        "4": {"class_type": "Sink", "inputs": {"x": ["3", 0], "y": ["3", 1], "z": ["3", 2]}},
    }
    bypass(graph, "3", info)
    # Output 0: slot 0 is a mask, so the first picture. Output 1: slot 1 fits. Output 2: nothing.
    assert graph["4"]["inputs"] == {"x": ["1", 0], "y": ["1", 0]}
    assert "3" not in graph


@pytest.mark.parametrize("version", VERSIONS)
def test_missing_required_inputs_get_the_schemas_default(version: str) -> None:
    graph = {
        "1": {"class_type": "SaveVideo", "inputs": {"video": ["2", 0], "filename_prefix": "x"}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 64}},
    }
    filled = fill(graph, object_info(version))
    added = filled["1"]["inputs"]
    assert added["format"] == "auto"
    # The newer ComfyUI nests the codec below the container's choice.
    assert added["codec" if version == "0.3.64" else "format.codec"] == "auto"
    assert filled["2"]["inputs"] == {"width": 64, "height": 512, "batch_size": 1}
    assert "height" not in graph["2"]["inputs"]


def test_model_files_are_never_filled_in() -> None:
    filled = fill({"1": {"class_type": "LoraLoader", "inputs": {}}}, INFO)
    assert filled["1"]["inputs"] == {"strength_model": 1.0, "strength_clip": 1.0}


def test_a_group_of_several_nodes_is_chained_as_one() -> None:
    graph, manifest = files("checkpoint")
    graph["2b"] = {
        "class_type": "LoraLoader",
        "inputs": graph["2"]["inputs"] | {"model": ["2", 0], "clip": ["2", 1]},
    }
    for node, name, slot in (("6", "model", 0), ("3", "clip", 1), ("4", "clip", 1)):
        graph[node]["inputs"][name] = ["2b", slot]
    manifest["params"]["loras"]["chain"] |= {
        "nodes": ["2", "2b"],
        "links": {"2b:0": "2.model", "2b:1": "2.clip"},
        "set": {"2.lora_name": "name", "2b.lora_name": "name"},
    }
    workflow = make_workflow("test", graph, manifest, digest="0" * 64)
    result = bound(workflow, loras=[STYLE, {"name": "ink.safetensors"}]).graph
    assert result["2b_2"]["inputs"]["model"] == ["2_2", 0]
    assert result["2_2"]["inputs"]["model"] == ["2b", 0]
    assert result["6"]["inputs"]["model"] == ["2b_2", 0]
    assert bound(workflow).graph["6"]["inputs"]["model"] == ["1", 0]
