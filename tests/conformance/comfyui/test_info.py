import uuid

import httpx
import pytest

from .graphs import CHECKPOINT, LORA, picture
from .wire import Comfy, Listener

JOBS = (0, 5, 2)

USED_NODES = [
    "CheckpointLoaderSimple",
    "LoraLoader",
    "CLIPTextEncode",
    "EmptyLatentImage",
    "KSampler",
    "VAEDecode",
    "SaveImage",
    "PreviewImage",
    "LoadImage",
    "EmptyImage",
]


@pytest.mark.parametrize("name", USED_NODES)
def test_a_class_is_described_with_its_inputs_and_outputs(comfy: Comfy, name: str) -> None:
    answer = comfy.http.get(f"/object_info/{name}")
    assert answer.status_code == 200
    described = answer.json()[name]
    assert {
        "input",
        "input_order",
        "output",
        "output_is_list",
        "output_name",
        "name",
        "display_name",
        "description",
        "python_module",
        "category",
        "output_node",
    } <= set(described)
    assert described["name"] == name
    required = described["input"].get("required", {})
    assert described["input_order"].get("required", []) == list(required)
    assert described["output_node"] == (name in {"SaveImage", "PreviewImage"})


def test_all_classes_come_at_once_and_agree_with_those_asked_for_singly(comfy: Comfy) -> None:
    everything = comfy.http.get("/object_info").json()
    assert set(USED_NODES) <= set(everything)
    one = comfy.http.get("/object_info/KSampler").json()["KSampler"]
    assert everything["KSampler"] == one


def test_an_unknown_class_is_answered_200_with_nothing(comfy: Comfy) -> None:
    answer = comfy.http.get("/object_info/NobodyWroteThisNode")
    assert (answer.status_code, answer.json()) == (200, {})


def test_a_number_is_described_with_its_range_and_a_seed_goes_to_64_bits(comfy: Comfy) -> None:
    inputs = comfy.http.get("/object_info/KSampler").json()["KSampler"]["input"]["required"]
    kind, options = inputs["seed"]
    assert kind == "INT"
    assert (options["min"], options["max"]) == (0, 2**64 - 1)
    assert inputs["steps"][1]["min"] == 1


def test_an_old_style_choice_lists_its_values(comfy: Comfy) -> None:
    inputs = comfy.http.get("/object_info/KSampler").json()["KSampler"]["input"]["required"]
    assert {"euler", "dpmpp_2m"} <= set(inputs["sampler_name"][0])
    assert "normal" in inputs["scheduler"][0]


@pytest.mark.parametrize(
    ("folder", "file", "name", "field"),
    [
        ("checkpoints", CHECKPOINT, "CheckpointLoaderSimple", "ckpt_name"),
        ("loras", LORA, "LoraLoader", "lora_name"),
    ],
)
def test_model_files_are_listed_by_folder_and_as_a_loaders_choices(
    comfy: Comfy, folder: str, file: str, name: str, field: str
) -> None:
    listed = comfy.http.get(f"/models/{folder}").json()
    assert file in listed
    described = comfy.http.get(f"/object_info/{name}").json()[name]
    assert described["input"]["required"][field][0] == listed


def test_an_unknown_model_folder_is_an_empty_404(comfy: Comfy) -> None:
    answer = comfy.http.get("/models/nobody")
    assert (answer.status_code, answer.content) == (404, b"")


def test_the_model_folders_are_listed(comfy: Comfy) -> None:
    folders = comfy.http.get("/models").json()
    assert {"checkpoints", "loras", "vae", "text_encoders", "diffusion_models"} <= set(folders)


def test_system_stats_tell_the_version_and_each_devices_memory(comfy: Comfy) -> None:
    stats = comfy.http.get("/system_stats").json()
    assert {
        "os",
        "ram_total",
        "ram_free",
        "comfyui_version",
        "python_version",
        "pytorch_version",
        "embedded_python",
        "argv",
    } <= set(stats["system"])
    assert set(stats["devices"][0]) == {
        "name",
        "type",
        "index",
        "vram_total",
        "vram_free",
        "torch_vram_total",
        "torch_vram_free",
    }


def test_features_tell_the_limit_of_a_body(comfy: Comfy) -> None:
    features = comfy.http.get("/features").json()
    assert features["supports_preview_metadata"] is True
    assert isinstance(features["max_upload_size"], int)


def test_embeddings_are_a_list(comfy: Comfy) -> None:
    assert isinstance(comfy.http.get("/embeddings").json(), list)


@pytest.mark.parametrize(
    "path",
    ["/prompt", "/queue", "/history", "/system_stats", "/features", "/object_info/SaveImage"],
)
def test_every_route_exists_under_api_too(comfy: Comfy, path: str) -> None:
    assert comfy.http.get(f"/api{path}").status_code == 200


def test_a_run_can_be_made_by_the_api_routes_alone(comfy: Comfy) -> None:
    listener = Listener(f"{comfy.url}/api", uuid.uuid4().hex)
    body = {"prompt": picture(), "client_id": listener.client_id}
    prompt_id = comfy.http.post("/api/prompt", json=body).json()["prompt_id"]
    listener.until_end(prompt_id)
    listener.close()
    assert comfy.http.get(f"/api/history/{prompt_id}").json()[prompt_id]["outputs"]


def test_a_foreign_origin_is_forbidden_on_loopback(comfy: Comfy) -> None:
    if httpx.URL(comfy.url).host not in {"127.0.0.1", "localhost"}:
        pytest.skip("only a loopback address is guarded")
    answer = comfy.http.get("/queue", headers={"Origin": "http://example.com"})
    assert (answer.status_code, answer.content) == (403, b"")
    own = comfy.url.replace("localhost", "127.0.0.1")
    assert comfy.http.get("/queue", headers={"Origin": own}).status_code == 200


def test_newer_versions_refuse_what_a_browser_marks_as_cross_site(comfy: Comfy) -> None:
    answer = comfy.http.get("/queue", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == (403 if comfy.version >= (0, 18, 2) else 200)


def test_jobs_are_listed_by_newer_versions_only(comfy: Comfy) -> None:
    prompt_id = comfy.submit(picture())
    comfy.wait_history(prompt_id)
    answer = comfy.http.get(f"/api/jobs/{prompt_id}")
    if comfy.version < JOBS:
        assert answer.status_code == 404
        assert comfy.http.get("/api/jobs").status_code == 404
        return
    job = answer.json()
    assert (job["id"], job["status"], job["outputs_count"]) == (prompt_id, "completed", 1)
    assert prompt_id in [job["id"] for job in comfy.http.get("/api/jobs").json()["jobs"]]
