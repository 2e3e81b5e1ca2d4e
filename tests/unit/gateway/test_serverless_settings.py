"""Settings of serverless endpoints that cannot work together are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.agreement import (
    Misconfigured,
    endpoints,
    orders_of_backends,
    service_addresses,
    slots_address,
    worker_address,
)
from gateway.runtime import build
from gateway.settings import Settings
from gateway.tools import TOOLS

KEY = "rpa_a-key-no-text-may-show"
RUNPOD: dict[str, Any] = {"runpod_api_key": KEY, "runpod_endpoint_id": "ep0"}
PUBLIC = "https://gateway.example.com"
BUCKET: dict[str, Any] = {
    "storage_url": "s3://results",
    "s3_endpoint_url": "https://s3.example.com",
    "s3_access_key_id": "id",
    "s3_secret_access_key": "secret",
}
EVERY = frozenset(tool.name for tool in TOOLS)


@pytest.fixture(autouse=True)
def _on_no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_POD_ID", raising=False)


def settings(**values: Any) -> Settings:
    return Settings.model_validate(values)


def test_without_settings_there_is_no_endpoint() -> None:
    assert endpoints(settings()) == {}
    assert worker_address(settings()) is None


def test_one_endpoint_serves_every_tool_but_those_that_have_their_own() -> None:
    assert endpoints(settings(**RUNPOD)) == {"ep0": EVERY}
    several = endpoints(settings(**RUNPOD, runpod_endpoints="video=ep1,mask=ep1,caption=ep2"))
    assert several["ep1"] == {"video", "mask"}
    assert several["ep2"] == {"caption"}
    assert several["ep0"] == EVERY - {"video", "mask", "caption"}
    alone = endpoints(settings(runpod_api_key=KEY, runpod_endpoints="video=ep1"))
    assert alone == {"ep1": {"video"}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"runpod_endpoint_id": "ep0"}, "RUNPOD_API_KEY"),
        ({"runpod_api_key": KEY}, "RUNPOD_ENDPOINT_ID"),
        (RUNPOD | {"runpod_endpoints": "paint=ep1"}, "RUNPOD_ENDPOINTS.*paint"),
    ],
)
def test_half_a_configuration_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as refused:
        endpoints(settings(**given))
    assert KEY not in str(refused.value)


def test_the_key_that_runpod_puts_into_a_pod_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNPOD_POD_ID", "a-pod")
    assert endpoints(settings(runpod_api_key=KEY)) == {}


@pytest.mark.parametrize(
    "public",
    [
        None,
        "http://localhost:8000",
        "http://127.0.0.1:8000",
        "http://10.0.0.5:8000",
        "http://[fd00::1]:8000",
        "http://gateway:8000",
        "http://gateway.internal:8000",
        "http://127.1:8000",
        "http://0x7f000001:8000",
        "http://2130706433",
        "http://10.1",
        "http://gateway.localhost",
        "http://localhost.localdomain:8000",
        "http://gateway.home.arpa.",
        "http://Gateway.LOCAL",
        "http://gateway.lan",
        "http://gateway.test",
        "http://gateway.default.svc:8000",
        "http://gateway.default.svc.cluster.local",
        "http://224.0.0.1",
        "http://[ff02::1]",
        "http://[64:ff9b::a00:5]",
        "http://[::ffff:10.0.0.5]",
        "http://0.0.0.0:8000",
    ],
)
def test_files_on_this_machine_that_no_worker_could_reach_are_refused(public: str | None) -> None:
    with pytest.raises(Misconfigured, match="PUBLIC_URL"):
        worker_address(settings(**RUNPOD, public_url=public))


@pytest.mark.parametrize(
    "public",
    ["https://8.8.8.8", "http://[2606:4700::1111]:8000", "https://a.example.com:8443/gateway"],
)
def test_any_address_of_the_internet_will_do(public: str) -> None:
    assert worker_address(settings(**RUNPOD, public_url=public)) == public


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("public_url", f"https://me:{KEY}@gateway.example.com"),
        ("public_url", f"https://gateway.example.com/?key={KEY}"),
        ("public_url", f"https://gateway.example.com/#{KEY}"),
        ("public_url", f"https://gateway.example.com/ {KEY}"),
        ("runpod_api_url", f"https://me:{KEY}@api.example.com"),
        ("runpod_api_url", f"https://api.example.com?key={KEY}"),
        ("runpod_api_url", f"https://api.example.com:{KEY}"),
        ("runpod_api_url", "https://api.example.com:99999"),
        ("runpod_api_key", f"{KEY}\n"),
        ("runpod_api_key", f"{KEY} two"),
        ("runpod_api_key", f"{KEY}é"),
    ],
)
def test_what_no_request_could_be_made_with_is_refused_and_not_repeated(
    name: str, value: str
) -> None:
    with pytest.raises(ValidationError, match=name) as refused:
        settings(**{name: value})
    assert KEY not in str(refused.value)


@pytest.mark.parametrize("name", ["runpod_endpoints", "tool_backends"])
def test_a_tool_that_is_named_twice_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="names video twice"):
        settings(**{name: "video=runpod,mask=runpod,video=runpod"})


def test_workers_reach_files_on_this_machine_by_its_public_address() -> None:
    chosen = settings(**RUNPOD, public_url=PUBLIC)
    assert worker_address(chosen) == PUBLIC
    # the GPU service beside us keeps its way
    assert slots_address(chosen) == "http://127.0.0.1:8000"


@pytest.mark.parametrize("endpoint", ["http://localhost:9000", "http://10.1.1.1", "http://minio"])
def test_a_bucket_that_no_worker_could_reach_is_refused(endpoint: str) -> None:
    given = RUNPOD | BUCKET | {"s3_endpoint_url": endpoint}
    with pytest.raises(Misconfigured, match="STORAGE_URL names a bucket at"):
        worker_address(settings(**given))
    inputs = RUNPOD | BUCKET | {"storage_url": None, "input_buckets": "s3://assets"}
    with pytest.raises(Misconfigured, match="INPUT_BUCKETS names a bucket at"):
        worker_address(settings(**inputs | {"s3_endpoint_url": endpoint, "public_url": PUBLIC}))


def test_with_a_bucket_no_public_address_is_needed() -> None:
    assert worker_address(settings(**RUNPOD, **BUCKET)) is None
    # one for the machines next door is none for RunPod
    assert worker_address(settings(**RUNPOD, **BUCKET, public_url="http://10.0.0.5")) is None
    assert worker_address(settings(**RUNPOD, **BUCKET, public_url=PUBLIC)) == PUBLIC


def test_a_worker_on_this_machine_reaches_everything() -> None:
    here = settings(**RUNPOD, runpod_api_url="http://127.0.0.1:7000/v2")
    assert worker_address(here) == "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"backends": "gpu,cloud"}, "BACKENDS: no backend is named 'cloud'"),
        ({"backends": "runpod:ep9"}, "BACKENDS: no backend is named 'runpod:ep9'"),
        ({"tool_backends": "video=cloud"}, "TOOL_BACKENDS: no backend is named 'cloud'"),
        ({"tool_backends": "paint=gpu"}, "TOOL_BACKENDS: no tool is named 'paint'"),
        ({"backends": "runpod"}, "BACKENDS names no backend there is"),
    ],
)
def test_backends_that_are_not_there_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        orders_of_backends(settings(**given))


def test_backends_are_named_by_kind_or_by_their_own_name() -> None:
    orders_of_backends(settings(**RUNPOD, backends="localhost:8001,runpod:ep0"))
    orders_of_backends(settings(**RUNPOD, tool_backends="video=runpod,mask=gpu|runpod"))


def test_a_gateway_of_serverless_endpoints_alone_looks_for_no_gpu_service() -> None:
    assert service_addresses(settings(**RUNPOD, backends="runpod")) == {}
    remote: dict[str, Any] = {"gpu_service_url": "http://gpu.example.com"}
    assert slots_address(settings(**RUNPOD, **remote, backends="runpod")).startswith("http://127")
    assert service_addresses(settings(**RUNPOD, backends="runpod", tool_backends="mask=gpu"))
    assert service_addresses(settings(**RUNPOD, backends="runpod,localhost:8001"))


def test_endpoints_get_the_workflows_of_their_tools(tmp_path: Path) -> None:
    runtime = build(
        settings(
            workspace=tmp_path,
            public_url=PUBLIC,
            **RUNPOD,
            runpod_endpoints="caption=ep2",
            runpod_workflows="z-image-turbo,caption-qwen3-vl,checkpoint",
        )
    )
    by_name = {backend.name: backend for backend in runtime.built.serverless}
    assert by_name.keys() == {"runpod:ep0", "runpod:ep2"}
    default, captions = by_name["runpod:ep0"], by_name["runpod:ep2"]
    assert default.readiness("z-image-turbo", "") is not None
    assert default.readiness("caption-qwen3-vl", "") is None
    assert default.readiness("flux1-dev", "") is None
    assert captions.readiness("caption-qwen3-vl", "") is not None
    assert KEY not in repr(vars(default))


def test_a_workflow_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"RUNPOD_WORKFLOWS.*painting"):
        build(
            settings(workspace=tmp_path, public_url=PUBLIC, **RUNPOD, runpod_workflows="painting")
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"runpod_endpoints": "rescale=ep1"}, "RUNPOD_ENDPOINTS.* for rescale"),
        ({"runpod_endpoints": "rescale=ep1,video=ep1"}, "RUNPOD_ENDPOINTS.* for rescale"),
        (
            {"runpod_endpoints": "video=ep1", "runpod_workflows": "z-image-turbo"},
            "the serverless endpoint ep1 nothing to do",
        ),
        (
            {"runpod_endpoints": ",".join(f"{t}=ep1" for t in sorted(EVERY - {"rescale"}))}
            | {"runpod_endpoint_id": "ep0"},
            "the serverless endpoint ep0 nothing to do",
        ),
    ],
)
def test_an_endpoint_with_nothing_to_do_is_refused(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    with pytest.raises(Misconfigured, match=said):
        build(settings(workspace=tmp_path, public_url=PUBLIC, runpod_api_key=KEY, **given))
