"""The container files, as far as they can be judged without Docker (docs/deploy.md)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.settings import Settings
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.settings import Settings as GpuSettings
from tests.support.containers import (
    filled,
    given,
    in_context,
    read_compose,
    read_dockerfile,
    required,
)
from tests.support.stack import ROOT

STAGES = read_dockerfile()
IMAGES = ("gateway", "gpu", "worker", "store")
COMPOSE = read_compose()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MEGABYTE = 1_000_000
PINNED = re.compile(r"[a-z][\w./-]*:\d+\.\d+(\.\d+)?[\w.-]*")
ENTRY_SCRIPTS = {"SIMULATOR", "COMFYUI_CODE", "COMFYUI_PYTHON", "COMFYUI_ARGS", "COMFYUI_AGAIN_S"}
OTHERS = {"PYTHONUNBUFFERED", "PIP_NO_CACHE_DIR", "PIP_DISABLE_PIP_VERSION_CHECK"}
OTHERS |= {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
RCLONE_KEY = '"genmedia,{}"'
each_image = pytest.mark.parametrize("image", IMAGES)
each_service = pytest.mark.parametrize("service", SERVICES)


def names_of(*settings: Any) -> set[str]:
    return {field.upper() for each in settings for field in each.model_fields}


KNOWN = {
    "gateway": names_of(Settings),
    "gpu": names_of(GpuSettings) | ENTRY_SCRIPTS,
    "gpu-simulator": names_of(GpuSettings) | ENTRY_SCRIPTS,
    "worker": names_of(WorkerSettings) | ENTRY_SCRIPTS,
    "postgres": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "store": {"RCLONE_AUTH_KEY"},
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_every_image_stands_on_one_version_of_its_base(stage: Any) -> None:
    assert PINNED.fullmatch(stage.base), stage.base


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.name)
def test_everything_copied_is_there_and_sent_to_the_build(stage: Any) -> None:
    context = in_context()
    earlier = list(STAGES)[: list(STAGES).index(stage.name)]
    for source_stage, sources in stage.copies():
        assert sources
        if source_stage is not None:
            assert source_stage in earlier
            continue
        for source in sources:
            assert [path for path in context if path == source or path.startswith(f"{source}/")]


def test_a_build_is_sent_little_and_nothing_private() -> None:
    context = in_context()
    assert sum((ROOT / path).stat().st_size for path in context) < 10 * MEGABYTE
    tops = {path.split("/")[0] for path in context}
    assert not tops & {".env", ".git", "data", "tests", "docs", "logs", ".venv"}
    assert not [path for path in context if Path(path).name.startswith(".env")]


@each_image
def test_no_image_runs_as_root(image: str) -> None:
    user = STAGES[image].last("USER")
    assert user is not None
    # a number: Kubernetes' runAsNonRoot cannot judge a name
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    last = [name for name, _ in STAGES[image].all_steps() if name in {"USER", "RUN"}][-1]
    assert last == "USER"


@each_image
def test_every_image_says_how_it_is_and_what_it_runs(image: str) -> None:
    assert STAGES[image].health()
    assert STAGES[image].command()


@each_image
def test_every_variable_of_an_image_is_a_known_setting(image: str) -> None:
    known = KNOWN[image] | OTHERS
    # the environment of ComfyUI is there before what runs beside it
    assert not STAGES[image].environment().keys() - known


def test_no_step_installs_what_is_not_pinned() -> None:
    for stage in STAGES.values():
        for name, rest in stage.steps:
            if "pip install" in rest:
                assert "--require-hashes" in rest
            if "apt-get install" in rest:
                assert "--no-install-recommends" in rest
                assert "rm -rf /var/lib/apt/lists/*" in rest
            if "git fetch" in rest:
                assert re.search(r" [0-9a-f]{40} ", rest)
            assert "curl" not in rest
            assert not (name in {"ENV", "ARG"} and re.search("KEY|SECRET|TOKEN|PASSWORD", rest))


def test_runpods_hub_builds_the_worker() -> None:
    # it builds the file to its end
    assert list(STAGES)[-1] == "worker"
    assert STAGES["worker"].command()[-1] == "gpu_server.runpod_handler"
    assert (ROOT / ".runpod" / "README.md").is_file()
    compile((ROOT / ".runpod" / "handler.py").read_text(), "handler.py", "exec")


def test_the_hubs_form_offers_settings_the_worker_has() -> None:
    hub = json.loads((ROOT / ".runpod" / "hub.json").read_text())
    assert hub["type"] == "serverless"
    assert hub["category"] in {"audio", "embedding", "language", "video", "image"}
    config = hub["config"]
    assert config.keys() >= {"runsOn", "containerDiskInGb", "gpuCount", "gpuIds"}
    offered = {each["key"]: each["input"] for each in config["env"]}
    assert offered.keys() <= KNOWN["worker"]
    for preset in config["presets"]:
        assert preset["defaults"].keys() <= offered.keys()
        WorkerSettings(**{k.lower(): v for k, v in preset["defaults"].items() if v})
        for name in filter(None, preset["defaults"]["RUNPOD_WORKFLOWS"].split(",")):
            assert (ROOT / "workflows" / f"{name}.json").is_file()
    defaults = {key.lower(): each["default"] for key, each in offered.items() if each["default"]}
    WorkerSettings(**defaults)


def test_the_hubs_tests_name_known_settings_and_a_tool() -> None:
    tests = json.loads((ROOT / ".runpod" / "tests.json").read_text())
    assert {each["key"] for each in tests["config"]["env"]} <= KNOWN["worker"]
    for each in tests["tests"]:
        assert each.keys() == {"name", "input", "timeout"}
        tool = each["input"]["operation"]
        assert (ROOT / "gpu_server" / "test_inputs" / f"{tool}.json").is_file()


@each_service
def test_every_service_is_pinned_restarted_and_says_how_it_is(service: str) -> None:
    found = SERVICES[service]
    assert found["restart"] == "unless-stopped"
    if "build" in found:
        stage = STAGES[found["build"]["target"]]
        assert found.get("healthcheck") or stage.health()
        assert (ROOT / found["build"]["context"]).is_dir()
    else:
        assert PINNED.fullmatch(found["image"])
        assert found["healthcheck"]["test"][0] == "CMD"


@each_service
def test_every_variable_of_a_service_is_a_known_setting(service: str) -> None:
    assert not SERVICES[service]["environment"].keys() - KNOWN[service]


def test_the_compose_file_fits_together() -> None:
    for found in SERVICES.values():
        for volume in found["volumes"]:
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for name in found.get("depends_on", ()):
            assert name in SERVICES
    # the two that may stand behind GPU_SERVICE_URL
    assert SERVICES["gpu"]["profiles"] != SERVICES["gpu-simulator"]["profiles"]
    assert SERVICES["gpu-simulator"]["networks"]["default"]["aliases"] == ["gpu"]


def test_only_the_gateway_is_published_and_only_to_this_machine() -> None:
    published = {name: found["ports"] for name, found in SERVICES.items() if "ports" in found}
    assert published.keys() == {"gateway"}
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])


def test_what_the_compose_file_asks_for_makes_valid_settings() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    secrets = dict.fromkeys(required(text), "0123456789abcdef" * 3)
    assert secrets.keys() == {
        *("GATEWAY_API_KEY", "GPU_SERVICE_TOKEN", "POSTGRES_PASSWORD", "STORE_SECRET_KEY")
    }
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert all(name in page for name in secrets)
    with pytest.raises(KeyError):
        filled(text, {})
    settings = settings_of(secrets)
    assert settings.storage_url == "s3://genmedia"
    assert settings.gpu_service_url == ("http://gpu:8001",)
    assert settings.s3_endpoint_url == "http://store:9000"
    secret = settings.s3_secret_access_key
    assert secret is not None
    assert RCLONE_KEY.format(secret.get_secret_value()) == store_key(secrets)


def settings_of(dotenv: dict[str, str]) -> Settings:
    environment = given(SERVICES["gateway"], dotenv)
    return Settings(_env_file=None, **{k.lower(): v for k, v in environment.items()})


def store_key(dotenv: dict[str, str]) -> str:
    return given(SERVICES["store"], dotenv)["RCLONE_AUTH_KEY"]


@pytest.mark.parametrize("url", ["s3://results", "r2://results", "gs://results", "file:///files"])
def test_a_bucket_of_ones_own_has_nothing_of_the_bundled_stores(url: str) -> None:
    dotenv = {
        **dict.fromkeys(required((ROOT / "docker-compose.yml").read_text()), "made-up-secret"),
        "STORAGE_URL": url,
    }
    bare = settings_of(dotenv)
    assert (bare.storage_url, bare.s3_endpoint_url) == (url, None)
    assert (bare.s3_access_key_id, bare.s3_secret_access_key) == (None, None)
    aws = {"S3_REGION": "eu-central-1", "S3_ACCESS_KEY_ID": "AKIA", "S3_SECRET_ACCESS_KEY": "aws"}
    own = settings_of(dotenv | aws)
    assert (own.s3_endpoint_url, own.s3_region, own.s3_access_key_id) == (
        *(None, "eu-central-1", "AKIA"),
    )
    assert store_key(dotenv | aws) == store_key(dotenv) == RCLONE_KEY.format("made-up-secret")


def test_comfyui_is_told_every_folder_that_workflows_take_models_from() -> None:
    paths = yaml.safe_load((ROOT / "deploy" / "extra_model_paths.yaml").read_text())["genmedia"]
    manifests = (yaml.safe_load(p.read_text()) for p in ROOT.glob("workflows/*.yaml"))
    needed = {model["directory"] for each in manifests for model in each.get("models", ())}
    assert needed - {""} <= paths.keys()
    assert all(name == folder for name, folder in paths.items() if name != "base_path")
