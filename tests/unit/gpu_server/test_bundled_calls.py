"""Calls of the bundled workflows: the API's parameters, and what each does to the graph."""

from typing import Any

import pytest

from gpu_server.workflow import ParamError
from tests.support.recordings import bundled, installed

NAMES = sorted(name for name, w in bundled().items() if w.tool != "generate")

PARAMS: dict[str, set[str]] = {
    "background-removal": {"image_url"},
    "caption": {"image_url", "detail", "trigger_word"},
    "concept": {"type", "prompt", "image_url", "style_image", "count", "seed"},
    "control": {"image_url", "control", "strength", "prompt", "width", "height", "seed"},
    "inpaint": {
        "scene_url",
        "mask_url",
        "reference_url",
        "prompt",
        "seed",
        "steps",
        "denoise",
        "guidance",
    },
    "mask": {"image_url", "object_name", "seed", "mask_dilation", "mask_blur"},
    "model3d": {"input_image_url", "seed", "target_faces", "texture_size"},
    "portrait": {"face_images", "style_image", "prompt", "width", "height", "num_images", "seed"},
    "upscale": {"image_url", "scale"},
    "video": {"image_url", "prompt", "width", "height", "length", "steps", "seed"},
}
FEWER = {
    "model3d-hunyuan3d21": {"target_faces", "texture_size"},
    "portrait-qwen-edit-2511": {"style_image"},
}
CONCEPT = {
    "type": "text",
    "prompt": "one object, whole and centred, on a plain white background, soft even light",
    "count": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "caption-qwen3-vl": {"detail": "detailed"},
    "caption-florence2": {"detail": "detailed"},
    "concept-flux2-klein-4b": CONCEPT,
    "concept-flux2-klein-9b": CONCEPT,
    "control-z-image-turbo": {"control": "canny", "strength": 1.0},
    "control-z-image-turbo-depth": {"control": "depth", "strength": 1.0},
    "inpaint-flux2-klein-9b": {
        "prompt": "product on a surface",
        "steps": 4,
        "denoise": 1.0,
        "guidance": 4.0,
    },
    "mask-sam3": {"mask_dilation": 50, "mask_blur": 50},
    "mask-florence2-sam2": {"mask_dilation": 50, "mask_blur": 50.0},
    "model3d-trellis2": {"target_faces": 200_000, "texture_size": 2048},
    "portrait-qwen-edit-2511": {"width": 1024, "height": 1024, "num_images": 1},
    "upscale-realesrgan": {"scale": 2},
}
VIDEO = {"width": 832, "height": 480, "length": 33, "steps": 20}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_have_the_names_of_the_api(name: str) -> None:
    workflow = bundled()[name]
    assert set(workflow.manifest.params) == PARAMS[workflow.tool] - FEWER.get(name, set())


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_are_those_of_the_api(name: str) -> None:
    assert bundled()[name].defaults == DEFAULTS[name]


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("video-")])
def test_a_video_has_the_same_defaults_in_each_variant(name: str) -> None:
    defaults = bundled()[name].defaults
    assert isinstance(defaults.pop("prompt"), str)
    assert defaults == VIDEO


def graph_of(name: str, files: dict[str, int] | None = None, **values: Any) -> dict[str, Any]:
    """The inputs of each node of a call's graph."""
    workflow = bundled()[name]
    given = {p: "a mug" for p, param in workflow.manifest.params.items() if param.required}
    uploads = {
        p: [f"jobs/r/{p}-{n}.png" for n in range((files or {}).get(p, int(param.required)))]
        for p, param in workflow.manifest.params.items()
        if param.upload
    }
    sent = {p: v for p, v in given.items() if p not in uploads} | values
    info = installed(name)
    made = workflow.bind(sent, run_id="r", object_info=info, uploads=uploads).graph
    return {node: data["inputs"] for node, data in made.items()}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("mask-sam3", {"mask_blur": 51}),
        ("mask-sam3", {"mask_dilation": -1}),
        ("mask-sam3", {"mask_dilation": 2.5}),
        ("inpaint-flux2-klein-9b", {"steps": 0}),
        ("inpaint-flux2-klein-9b", {"denoise": 1.5}),
        ("video-wan2.1-480p", {"length": 34}),
        ("video-wan2.1-480p", {"width": 833}),
        ("video-wan2.2-14b", {"steps": 1}),
        ("video-wan2.2-5b", {"width": 848}),
        ("upscale-realesrgan", {"scale": 3}),
        ("upscale-realesrgan", {"scale": 8}),
        ("caption-qwen3-vl", {"detail": "rude"}),
        ("caption-florence2", {"detail": "tags"}),
        ("control-z-image-turbo", {"control": "depth"}),
        ("control-z-image-turbo-depth", {"control": "canny"}),
        ("control-z-image-turbo", {"width": 1000}),
        ("concept-flux2-klein-9b", {"type": "video"}),
        ("concept-flux2-klein-9b", {"count": 5}),
        ("model3d-trellis2", {"texture_size": 1000}),
        ("model3d-trellis2", {"target_faces": 10}),
        ("portrait-flux2-klein-9b-multiref", {"num_images": 0}),
    ],
)
def test_bounds_steps_and_choices_are_enforced(name: str, values: dict[str, Any]) -> None:
    (param,) = values
    with pytest.raises(ParamError) as refused:
        graph_of(name, **values)
    assert (refused.value.param, refused.value.code) == (param, "invalid_param")


def test_a_mask_without_blur_is_not_resampled_either() -> None:
    blurred, sharp = graph_of("mask-sam3", mask_blur=25), graph_of("mask-sam3", mask_blur=0)
    assert (blurred["8"]["sigma"], blurred["8"]["blur_radius"]) == (0.3226, 16)
    assert {"7", "8", "9", "10"}.isdisjoint(sharp)
    assert sharp["11"]["image"] == ["6", 0]


def test_the_scene_is_its_own_mask_unless_one_is_sent() -> None:
    alone = graph_of("inpaint-flux2-klein-9b")
    assert alone["2"]["image"] == alone["1"]["image"] == "jobs/r/scene_url-0.png"
    masked = graph_of("inpaint-flux2-klein-9b", {"mask_url": 1, "scene_url": 1, "reference_url": 1})
    assert masked["1"]["image"] == "jobs/r/scene_url-0.png"
    assert masked["2"]["image"] == "jobs/r/mask_url-0.png"


def test_the_steps_of_a_two_part_video_are_halved_between_its_models() -> None:
    graph = graph_of("video-wan2.2-14b", steps=30, seed=7)
    high, low = graph["11"], graph["12"]
    assert (high["steps"], high["start_at_step"], high["end_at_step"]) == (30, 0, 15)
    assert (low["steps"], low["start_at_step"]) == (30, 15)
    assert high["noise_seed"] == low["noise_seed"] == 7


@pytest.mark.parametrize("faces", [1, 2, 5])
def test_each_face_is_one_more_reference(faces: int) -> None:
    graph = graph_of("portrait-flux2-klein-9b-multiref", {"face_images": faces}, width=512)
    last = "" if faces == 1 else f"_{faces}"
    assert graph["34"]["positive"] == [f"13{last}", 0]
    assert graph["34"]["negative"] == [f"14{last}", 0]
    assert graph[f"10{last}"]["image"] == f"jobs/r/face_images-{faces - 1}.png"
    assert graph["30"]["width"] == graph["31"]["width"] == 512


@pytest.mark.parametrize(
    ("name", "faces"), [("portrait-flux2-klein-9b-multiref", 6), ("portrait-qwen-edit-2511", 4)]
)
def test_more_faces_than_a_model_takes_are_refused(name: str, faces: int) -> None:
    with pytest.raises(ParamError) as refused:
        graph_of(name, {"face_images": faces})
    assert refused.value.param == "face_images"


@pytest.mark.parametrize("faces", [1, 2, 3])
def test_places_for_faces_that_are_not_filled_are_gone(faces: int) -> None:
    graph = graph_of("portrait-qwen-edit-2511", {"face_images": faces})
    there = {key for key in graph["11"] if key.startswith("image")}
    assert there == {f"image{n + 1}" for n in range(faces)}
    assert there == {key for key in graph["12"] if key.startswith("image")}
    assert sum(node in graph for node in ("7", "8", "9")) == faces


def test_a_ready_control_picture_is_not_searched_for_edges() -> None:
    assert graph_of("control-z-image-turbo")["8"]["image"] == ["7", 0]
    ready = graph_of("control-z-image-turbo", control="ready")
    assert ready["8"]["image"] == ["6", 0]
    assert "7" not in ready


def test_the_size_of_a_guided_picture_is_the_guides_unless_said() -> None:
    assert graph_of("control-z-image-turbo")["13"]["width"] == ["12", 0]
    sized = graph_of("control-z-image-turbo", width=768, height=512)
    assert (sized["13"]["width"], sized["13"]["height"]) == (768, 512)
    assert "12" not in sized


@pytest.mark.parametrize("name", ["concept-flux2-klein-4b", "concept-flux2-klein-9b"])
def test_a_concept_comes_from_a_picture_and_a_style_when_they_are_sent(name: str) -> None:
    words = graph_of(name)
    assert (words["34"]["positive"], words["34"]["negative"]) == (["4", 0], ["5", 0])
    assert {"10", "11", "12", "20", "21", "22"}.isdisjoint(words)
    picture = graph_of(name, {"image_url": 1}, type="image")
    assert (picture["34"]["positive"], picture["34"]["negative"]) == (["13", 0], ["14", 0])
    assert {"20", "21", "22"}.isdisjoint(picture)
    style = graph_of(name, {"style_image": 1})
    assert (style["34"]["positive"], style["23"]["conditioning"]) == (["23", 0], ["4", 0])
    assert (style["34"]["negative"], style["24"]["conditioning"]) == (["24", 0], ["5", 0])
    both = graph_of(name, {"image_url": 1, "style_image": 1}, type="image")
    assert (both["34"]["positive"], both["23"]["conditioning"]) == (["23", 0], ["13", 0])
    assert (both["34"]["negative"], both["24"]["conditioning"]) == (["24", 0], ["14", 0])
    assert both["10"]["image"] == "jobs/r/image_url-0.png"
    assert both["20"]["image"] == "jobs/r/style_image-0.png"


@pytest.mark.parametrize("faces", [1, 3])
def test_the_picture_of_a_style_comes_behind_the_last_face(faces: int) -> None:
    graph = graph_of("portrait-flux2-klein-9b-multiref", {"face_images": faces, "style_image": 1})
    last = "" if faces == 1 else f"_{faces}"
    assert (graph["34"]["positive"], graph["34"]["negative"]) == (["23", 0], ["24", 0])
    assert graph["23"]["conditioning"] == [f"13{last}", 0]
    assert graph["24"]["conditioning"] == [f"14{last}", 0]


def test_a_trigger_word_comes_first_in_a_caption() -> None:
    asked = graph_of("caption-qwen3-vl", detail="tags", trigger_word="TOK_MUG")["3"]["prompt"]
    assert asked.startswith("List what")
    assert "TOK_MUG" in asked
    joined = graph_of("caption-florence2", trigger_word="TOK_MUG")
    assert joined["5"]["string_a"] == "TOK_MUG"
    assert joined["4"]["source"] == ["5", 0]
    assert graph_of("caption-florence2")["4"]["source"] == ["3", 2]


def test_twice_the_size_is_half_of_four_times() -> None:
    assert graph_of("upscale-realesrgan", scale=2)["4"]["scale_by"] == 0.5
    four = graph_of("upscale-realesrgan", scale=4)
    assert four["5"]["images"] == ["3", 0]


def test_one_seed_drives_every_stage_of_a_model() -> None:
    graph = graph_of("model3d-trellis2", seed=9, texture_size=1024)
    assert {graph[n]["seed"] for n in ("14", "19", "21", "24")} == {9}
    assert (graph["30"]["texture_size"], graph["29"]["resolution"]) == (1024, 1024)


def test_a_workflow_tells_which_words_it_takes_and_how_many_files() -> None:
    assert bundled()["caption-florence2"].choices == {"detail": ("brief", "detailed")}
    assert bundled()["control-z-image-turbo"].choices == {"control": ("canny", "ready")}
    concept = bundled()["concept-flux2-klein-9b"]
    assert concept.choices["type"] == ("text", "image")
    assert concept.files == {"image_url": 1, "style_image": 1}
    assert bundled()["portrait-qwen-edit-2511"].files == {"face_images": 3}
    portrait = bundled()["portrait-flux2-klein-9b-multiref"]
    assert portrait.files == {"face_images": 5, "style_image": 1}
    assert bundled()["mask-sam3"].choices == {}
