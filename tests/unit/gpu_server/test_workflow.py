"""Workflows on disk: read, checked against one another and against recordings of ComfyUI."""

import copy
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpu_server.workflow import WorkflowError, check, load_workflows
from tests.support.recordings import ROOT, VERSIONS, bundled, files, made, object_info

NAMES = ["checkpoint", "flux1-dev", "z-image-turbo"]
GENERATE = {name: w for name, w in bundled().items() if w.tool == "generate"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_bundled_workflow_is_ready_once_its_models_are_installed(
    name: str, version: str
) -> None:
    assert check(bundled()[name], object_info(version)) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["flux1-dev", "z-image-turbo"])
def test_a_missing_model_is_named_with_folder_address_size_and_licence(
    name: str, version: str
) -> None:
    workflow = bundled()[name]
    found = check(workflow, object_info(version, models=False))
    assert [m.name for m in found] == [m.name for m in workflow.models]
    for missing, model in zip(found, workflow.models, strict=True):
        assert missing.kind == "model"
        assert missing.directory == model.directory
        assert missing.url == model.url
        assert missing.bytes == model.bytes
        assert missing.license == model.license


def test_a_workflow_for_any_checkpoint_misses_one_when_none_is_installed() -> None:
    (missing,) = check(bundled()["checkpoint"], object_info("0.3.64", models=False))
    assert (missing.kind, missing.directory) == ("model", "checkpoints")


def test_the_bundled_image_workflows_name_their_parameters_alike() -> None:
    shared = {
        "prompt",
        "num_inference_steps",
        "guidance_scale",
        "width",
        "height",
        "num_images",
        "seed",
        "loras",
    }
    taken = {name: set(w.manifest.params) for name, w in GENERATE.items()}
    assert taken["z-image-turbo"] == shared
    assert taken["flux1-dev"] == shared | {"negative_prompt"}
    assert taken["checkpoint"] == shared | {"negative_prompt", "checkpoint"}
    assert {w.variant for w in GENERATE.values()} == set(NAMES)


def test_defaults_are_the_graphs_own_literals() -> None:
    assert bundled()["flux1-dev"].defaults == {
        "negative_prompt": "",
        "num_inference_steps": 25,
        "guidance_scale": 1.0,
        "width": 1024,
        "height": 1024,
        "num_images": 1,
        "loras": [],
    }


def test_limits_narrow_a_parameter_for_its_variant() -> None:
    limits = bundled()["flux1-dev"].limits["width"]
    assert (limits.minimum, limits.maximum, limits.multiple_of) == (256, 2048, 16)


def test_only_the_non_commercial_model_says_so() -> None:
    terms = {m.name: (m.commercial, m.gated) for w in GENERATE.values() for m in w.models}
    assert terms.pop("flux1-dev.safetensors") == (False, True)
    assert set(terms.values()) == {(True, False)}


def test_the_digest_covers_both_files() -> None:
    folder = ROOT / "workflows"
    content = [(folder / f"checkpoint.{end}").read_bytes() for end in ("json", "yaml")]
    assert bundled()["checkpoint"].digest == hashlib.sha256(b"\0".join(content)).hexdigest()


def test_a_default_behind_a_scale_is_given_in_the_callers_unit() -> None:
    graph, manifest = files("checkpoint")
    manifest["params"]["guidance_scale"] = {"bind": {"to": "6.cfg", "scale": 0.5, "offset": 1}}
    assert made(graph, manifest).defaults["guidance_scale"] == 12


def test_words_that_are_numbers_or_truths_are_told_as_such() -> None:
    graph, manifest = files("checkpoint")
    manifest["params"]["fast"] = {"bind": {"to": "6.steps", "map": {"true": 8, "false": 25}}}
    manifest["params"]["level"] = {"bind": {"to": "6.cfg", "map": {"1": 7.0, "2": 9.0}}}
    workflow = made(graph, manifest)
    assert (workflow.defaults["fast"], workflow.defaults["level"]) == (False, 1)
    assert workflow.choices == {"fast": (True, False), "level": (1, 2)}


def test_a_default_behind_a_map_is_the_callers_word() -> None:
    graph, manifest = files("checkpoint")
    bind = {"to": "6.sampler_name", "map": {"fast": "euler", "fine": "dpmpp_2m"}}
    manifest["params"]["quality"] = {"bind": bind}
    assert made(graph, manifest).defaults["quality"] == "fine"


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"guard": {"6": "KSamplerAdvanced"}}, "guard.6"),
        ({"params": {"prompt": {"bind": "99.text"}}}, "99.text"),
        ({"params": {"prompt": {"bind": "3.words"}}}, "3.words"),
        ({"params": {"prompt": {"bind": "3.clip"}}}, "3.clip"),
        ({"params": {"prompt": {"bind": "3"}}}, "3"),
        ({"params": {"prompt": {"bind": "title:No Such Title.text"}}}, "title:No Such Title.text"),
        ({"params": {"prompt": {"required": True}}}, "params.prompt"),
        ({"params": {"prompt": {"bind": "3.text", "surprise": 1}}}, "params.prompt.surprise"),
        ({"params": {"steps": {"bind": "6.steps", "absent": {"bypass": ["77"]}}}}, "params.steps"),
        ({"outputs": {"images": {"node": "77", "kind": "image"}}}, "outputs.images"),
        ({"outputs": {"images": {"node": "8", "kind": "image", "max": "count"}}}, "manifest"),
        ({"fixed": {}}, "8.filename_prefix"),
        ({"fixed": {"8.filename_prefix": "images/{run_id}"}}, "fixed.8.filename_prefix"),
        ({"fixed": {"8.filename_prefix": "jobs/{run_id}/a", "9.x": 1}}, "9.x"),
        ({"manifest": 2}, "manifest"),
        ({"loras": "list"}, "loras"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_with_the_place(
    changes: dict[str, Any], place: str
) -> None:
    graph, manifest = files("checkpoint")
    with pytest.raises(WorkflowError) as refused:
        made(graph, manifest | changes | {"params": manifest["params"] | changes.get("params", {})})
    assert refused.value.place.startswith(place)


@pytest.mark.parametrize(
    "param",
    [
        {"bind": "1.ckpt_name"},
        {"bind": "8.filename_prefix"},
        {"bind": {"to": "8.filename_prefix", "template": "jobs/{run_id}/{value}"}},
        {"bind": "6.sampler_name"},
        {"chain": {"nodes": ["2"], "links": {"2:0": "2.model"}, "set": {"2.lora_name": "name"}}},
    ],
)
def test_a_callers_string_is_never_bound_to_a_file_model_or_prefix(param: dict[str, Any]) -> None:
    graph, manifest = files("checkpoint")
    manifest["params"]["free"] = param
    with pytest.raises(WorkflowError, match="names a file, folder or model"):
        made(graph, manifest)


def test_a_string_bound_to_a_list_of_files_under_an_innocent_name_is_found_in_object_info() -> None:
    graph, manifest = files("checkpoint")
    manifest["params"]["look"] = {"bind": "6.scheduler"}
    (missing,) = check(made(graph, manifest), object_info("0.33.0"))
    assert (missing.kind, missing.name) == ("invalid", "6.scheduler")


@pytest.mark.parametrize(
    ("graph", "place"),
    [
        ([], "graph"),
        ({}, "graph"),
        ({"nodes": [], "links": []}, "graph"),
        ({"1": {"class_type": "SaveImage"}}, "1 SaveImage"),
        ({"1": {"class_type": "SaveImage", "inputs": {"images": ["9", 0]}}}, "1 SaveImage"),
    ],
)
def test_a_graph_that_could_stop_comfyui_is_refused(graph: Any, place: str) -> None:
    with pytest.raises(WorkflowError) as refused:
        made(graph, files("checkpoint")[1])
    assert refused.value.place == place


def broken_check(change: Any, version: str = "0.33.0") -> list[tuple[str, str]]:
    graph, manifest = files("checkpoint")
    info = object_info(version)
    change(graph, manifest, info)
    return [(m.kind, m.name) for m in check(made(graph, manifest), info)]


def test_a_class_comfyui_lacks_is_named() -> None:
    def change(_graph: Any, _manifest: Any, info: Any) -> None:
        del info["KSampler"]

    assert broken_check(change) == [("node", "KSampler")]


def test_a_required_input_without_default_is_named() -> None:
    def change(_graph: Any, _manifest: Any, info: Any) -> None:
        info["KSampler"]["input"]["required"]["sharpness"] = ["FLOAT", {}]

    assert broken_check(change) == [("invalid", "6.sharpness")]


def test_a_target_the_class_no_longer_declares_is_named() -> None:
    def change(_graph: Any, _manifest: Any, info: Any) -> None:
        del info["EmptyLatentImage"]["input"]["required"]["batch_size"]

    assert broken_check(change) == [("invalid", "5.batch_size")]


def test_a_link_of_the_wrong_type_is_named() -> None:
    def change(graph: Any, _manifest: Any, _info: Any) -> None:
        graph["7"]["inputs"]["vae"] = ["1", 1]

    assert broken_check(change) == [("invalid", "7.vae")]


def test_a_link_to_an_output_that_is_not_there_is_named() -> None:
    def change(graph: Any, _manifest: Any, _info: Any) -> None:
        graph["7"]["inputs"]["vae"] = ["1", 3]

    assert broken_check(change) == [("invalid", "7.vae")]


def test_a_choice_this_comfyui_does_not_offer_is_named() -> None:
    def change(graph: Any, _manifest: Any, _info: Any) -> None:
        graph["6"]["inputs"]["scheduler"] = "from_the_future"

    assert broken_check(change) == [("invalid", "6.scheduler")]


def test_limits_beyond_the_nodes_own_are_named() -> None:
    def change(_graph: Any, manifest: Any, _info: Any) -> None:
        manifest["params"]["width"]["limits"] = {"minimum": 8, "maximum": 20_000}

    assert broken_check(change) == [("invalid", "params.width.limits")] * 2


def test_an_output_node_that_delivers_nothing_is_named() -> None:
    def change(_graph: Any, manifest: Any, _info: Any) -> None:
        manifest["outputs"]["images"]["node"] = "7"

    assert broken_check(change) == [("invalid", "outputs.images")]


def test_a_bypass_that_leaves_a_required_link_open_is_named() -> None:
    def change(_graph: Any, manifest: Any, _info: Any) -> None:
        manifest["params"]["width"]["absent"] = {"bypass": ["5"]}

    assert broken_check(change) == [("invalid", "6.latent_image")]


def test_one_bad_file_does_not_hide_the_good_ones(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "workflows", tmp_path / "w")
    (tmp_path / "w" / "flux1-dev.yaml").write_text("manifest: [1")
    (tmp_path / "w" / "lonely.yaml").write_text("manifest: 1")
    told: list[tuple[str, str]] = []
    found = load_workflows(
        tmp_path / "w", on_error=lambda name, _digest, error: told.append((name, error.place))
    )
    assert set(found) == set(bundled()) - {"flux1-dev"}
    assert told == [("flux1-dev", "flux1-dev: flux1-dev.yaml"), ("lonely", "lonely: lonely.json")]


def test_without_a_listener_a_bad_file_is_raised(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("manifest: 1")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(WorkflowError, match=r"x\.json"):
        load_workflows(tmp_path)


def test_reading_a_workflow_changes_nothing_in_it() -> None:
    workflow = bundled()["flux1-dev"]
    before = copy.deepcopy(workflow.graph)
    assert check(workflow, object_info("0.33.0")) == []
    params: dict[str, Any] = {"prompt": "x", "loras": [{"name": "ink.safetensors"}] * 3}
    workflow.bind(
        params,
        run_id="r",
        object_info=object_info("0.33.0"),
    )
    assert workflow.graph == before
