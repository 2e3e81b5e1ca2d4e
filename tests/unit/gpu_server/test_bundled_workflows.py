"""Every workflow that comes with the project, against what two versions of ComfyUI say."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from gpu_server.graph_check import check_graph
from gpu_server.workflow import ParamError, Workflow, check, make_workflow
from gpu_server.workflow.graph import is_link
from gpu_server.workflow.manifest import Param
from gpu_server.workflow.node_specs import input_spec, node_spec, types_fit
from gpu_server.workflow.values import checked
from tests.support.recordings import ROOT, bundled, install, installed, object_info

FLORENCE2 = {"DownloadAndLoadFlorence2Model", "Florence2Run"}
SAM2 = {
    "DownloadAndLoadSAM2Model",
    "Florence2toCoordinates",
    "GrowMaskWithBlur",
    "Sam2Segmentation",
}
TRELLIS2 = {
    "ApplyTextureToMesh",
    "BakeTextureFromVoxel",
    "CFGOverride",
    "DecimateMesh",
    "EmptyTrellis2LatentStructure",
    "ImageCropToMask",
    "LoadBackgroundRemovalModel",
    "MeshSmoothNormals",
    "RemeshMesh",
    "RemoveBackground",
    "Trellis2Conditioning",
    "Trellis2ShapeStage",
    "Trellis2TextureStage",
    "Trellis2UpsampleStage",
    "UnwrapMesh",
    "VaeDecodeShapeTrellis",
    "VaeDecodeStructureTrellis2",
    "VaeDecodeTextureTrellis",
}
BIREFNET = {"LoadBackgroundRemovalModel", "RemoveBackground"}
DEPTH = {"DA3Inference", "DA3Render", "LoadDA3Model"}
POSE = {"SDPoseDrawKeypoints", "SDPoseKeypointExtractor"}
KLEIN = {"EmptyFlux2LatentImage", "Flux2Scheduler"}

READY: set[str] = set()
LACKING: dict[str, tuple[set[str], set[str]]] = {
    # Classes that are missing on 0.3.64, and on 0.33.0 without custom packs. The recording of
    # 0.33.0 was taken shortly before 0.34.0 and already knows TRELLIS.2.
    "background-removal-birefnet": (BIREFNET, READY),
    "caption-florence2": (FLORENCE2, FLORENCE2),
    "caption-qwen3-vl": ({"TextGenerate"}, READY),
    "checkpoint": (READY, READY),
    "concept-flux2-klein-4b": (KLEIN, READY),
    "concept-flux2-klein-9b": (KLEIN, READY),
    "control-z-image-turbo": (READY, READY),
    "control-z-image-turbo-depth": (DEPTH, READY),
    "control-z-image-turbo-pose": (POSE, READY),
    "flux1-dev": (READY, READY),
    "inpaint-flux2-klein-4b": ({"Flux2Scheduler"}, READY),
    "inpaint-flux2-klein-9b": ({"Flux2Scheduler"}, READY),
    "mask-florence2-sam2": (FLORENCE2 | SAM2, FLORENCE2 | SAM2),
    "mask-sam3": ({"SAM3_Detect"}, READY),
    "model3d-hunyuan3d21": (READY, READY),
    "model3d-trellis2": (TRELLIS2, READY),
    "portrait-flux2-klein-9b-multiref": (KLEIN, READY),
    "portrait-qwen-edit-2511": (READY, READY),
    "upscale-realesrgan": (READY, READY),
    "video-wan2.1-480p": (READY, READY),
    "video-wan2.2-14b": (READY, READY),
    "video-wan2.2-5b": (READY, READY),
    "z-image-turbo": (READY, READY),
}
NAMES = sorted(LACKING)


def test_every_bundled_workflow_is_in_the_table() -> None:
    assert set(bundled()) == set(LACKING)


def test_names_say_tool_and_variant() -> None:
    for name, workflow in bundled().items():
        long = f"{workflow.tool}-{workflow.variant}"
        assert name == (workflow.variant if workflow.tool == "generate" else long)


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_comfyui_is_ready_or_is_told_which_classes_it_lacks(name: str) -> None:
    workflow = bundled()[name]
    for version, lacking in zip(("0.3.64", "0.33.0"), LACKING[name], strict=True):
        info = object_info(version, packs=False)
        install(info, workflow)
        found = check(workflow, info)
        assert {m.name for m in found} == lacking
        assert {m.kind for m in found} <= {"node"}
        packs, needs = workflow.manifest.packs, workflow.manifest.comfyui
        for missing in found:
            hint = packs[0].cnr_id if packs else f"ComfyUI {needs.min if needs else ''} or newer"
            assert hint in (missing.detail or "")


@pytest.mark.parametrize("name", NAMES)
def test_with_its_packs_and_models_every_workflow_is_ready(name: str) -> None:
    assert check(bundled()[name], installed(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_model_file_a_graph_names_is_in_its_manifest_and_missed_when_absent(
    name: str,
) -> None:
    workflow, info = bundled()[name], object_info("0.33.0", models=False)
    found = [m for m in check(workflow, info) if m.kind == "model"]
    assert len(found) == len(check(workflow, info))
    if workflow.manifest.models and not workflow.manifest.packs:
        assert {m.name for m in found} == {m.name for m in workflow.models}
    assert all(m.url and m.license and m.directory for m in found if m.name[:3] != "any")


# --- what a call may look like


def _states(param: Param) -> list[tuple[Any, int]]:
    """Ways to send a parameter that make graphs of different shapes: (value, number of files)."""
    if param.choices is not None:
        return [("sd15.safetensors", 0)]
    if param.chain is not None and param.upload is None:
        lora = {"name": "ink.safetensors"}
        return [(None, 0), ([lora], 0), ([lora] * 3, 0)]
    if param.upload is not None:
        return [(None, n) for n in range(int(param.required), param.most + 1)]
    values: list[Any] = [case.equals for case in param.when]
    if param.required and not values:
        return [("a mug", 0)]
    if param.absent is not None:
        values.append("a mug")
    if any(target.over_link for target in param.targets):
        values.append(512)
    return [(None, 0), *((value, 0) for value in values)]


def _expansions(workflow: Workflow, info: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The graph of every combination of presence, case and number of files."""
    params = workflow.manifest.params
    for states in product(*(_states(param) for param in params.values())):
        sent = dict(zip(params, states, strict=True))
        values = {name: value for name, (value, _) in sent.items() if value is not None}
        files = {name: [f"jobs/r/{n}.png" for n in range(c)] for name, (_, c) in sent.items() if c}
        yield workflow.bind(values, run_id="r", object_info=info, uploads=files).graph


def _complaints(graph: dict[str, Any], info: Mapping[str, Any]) -> Iterator[str]:
    """What ComfyUI's own validation would complain about, and the steps it does not look at."""
    check_graph(graph, info)
    for node_id, node in graph.items():
        spec = node_spec(info, node["class_type"], node["inputs"])
        assert spec is not None
        for entry in spec.inputs.values():
            if entry.required and entry.name not in node["inputs"]:
                yield f"{node_id}.{entry.name} is missing"
        for key, value in node["inputs"].items():
            entry = input_spec(info, node, key)
            if entry is None:
                continue
            if is_link(value):
                source = node_spec(info, graph[value[0]]["class_type"])
                assert source is not None
                if not types_fit(source.outputs[value[1]], entry.type):
                    yield f"{node_id}.{key} gets a {source.outputs[value[1]]}"
            elif not str(value).startswith("jobs/r/"):
                try:
                    checked(f"{node_id}.{key}", entry, value)
                except ParamError as error:
                    yield error.message


@pytest.mark.parametrize("name", NAMES)
def test_every_combination_makes_a_graph_that_comfyui_accepts(name: str) -> None:
    workflow, info = bundled()[name], installed(name)
    outputs = {output.node for output in workflow.outputs.values()}
    graphs = list(_expansions(workflow, info))
    assert graphs
    for graph in graphs:
        assert list(_complaints(graph, info)) == []
        assert outputs <= set(graph)
        ends = {n for n, node in graph.items() if info[node["class_type"]]["output_node"]}
        assert ends == outputs, "only what is delivered is carried out"


@pytest.mark.parametrize("name", [n for n in NAMES if not LACKING[n][0]])
def test_on_the_oldest_version_the_combinations_are_accepted_too(name: str) -> None:
    info = installed(name, "0.3.64")
    for graph in _expansions(bundled()[name], info):
        assert list(_complaints(graph, info)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_default_sent_along_makes_the_same_graph_as_one_left_out(name: str) -> None:
    workflow, info = bundled()[name], installed(name)
    required: dict[str, Any] = {
        n: _states(p)[0][0] for n, p in workflow.manifest.params.items() if p.required
    }
    values = {n: v for n, v in required.items() if v is not None} | (
        {"seed": 1} if "seed" in workflow.manifest.params else {}
    )
    files = {n: ["jobs/r/0.png"] for n, p in workflow.manifest.params.items() if p.upload}

    def graph(given: dict[str, Any]) -> dict[str, Any]:
        return workflow.bind(given, run_id="r", object_info=info, uploads=files).graph

    assert graph(values) == graph(workflow.defaults | values)


# --- what a manifest says of itself


@pytest.mark.parametrize("name", NAMES)
def test_what_a_manifest_says_can_be_looked_up(name: str) -> None:
    manifest = bundled()[name].manifest
    assert manifest.variant
    assert manifest.vram_gb
    assert manifest.guard
    assert manifest.comfyui is not None
    for model in manifest.models:
        assert model.url.startswith("https://huggingface.co/")
        assert (model.hash is None) == (model.hash_type is None)
        assert model.hash is None or re.fullmatch("[0-9a-f]{64}", model.hash)
    for output in manifest.outputs.values():
        assert output.min == 1
        assert bundled()[name].graph[output.node]["class_type"].startswith(("Save", "Preview"))


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_sent_along_with_a_run_means_the_same(name: str) -> None:
    workflow = bundled()[name]
    sent = workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True)
    again = make_workflow(name, json.loads(json.dumps(workflow.graph)), sent, digest="0" * 64)
    assert again.manifest == workflow.manifest
    assert list(again.manifest.params) == list(workflow.manifest.params)


def test_one_file_has_one_description_in_every_manifest() -> None:
    known: dict[tuple[str, str], tuple[Any, ...]] = {}
    for workflow in bundled().values():
        for model in workflow.models:
            terms = (model.license, model.commercial, model.gated)
            assert known.setdefault((model.directory, model.name), terms) == terms


def test_each_tool_has_a_variant_for_commercial_use() -> None:
    free = {w.tool for w in bundled().values() if all(m.commercial for m in w.models)}
    assert free == {w.tool for w in bundled().values()}


def test_models_that_forbid_commercial_use_are_marked() -> None:
    bound = {m.name for w in bundled().values() for m in w.models if not m.commercial}
    assert bound == {
        "flux1-dev.safetensors",
        "flux-2-klein-9b-fp8.safetensors",
        "hunyuan_3d_v2.1.safetensors",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_page_about_workflows_lists_each_one_as_its_manifest_says(name: str) -> None:
    page = (ROOT / "docs" / "workflows.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, tool, variant, licence, commercial, memory, comfyui, _ = (
        part.strip() for part in row.split("|")
    )
    manifest = bundled()[name].manifest
    assert (tool, variant) == (manifest.tool, f"`{manifest.variant}`")
    assert memory == f"{manifest.vram_gb:g} GB"
    assert manifest.comfyui is not None
    assert comfyui.split()[0] == manifest.comfyui.min
    assert ("packs" in comfyui) == bool(manifest.packs)
    if manifest.models:
        assert set(licence.split(", ")) <= {m.license for m in manifest.models}
        assert commercial == ("yes" if all(m.commercial for m in manifest.models) else "no")
