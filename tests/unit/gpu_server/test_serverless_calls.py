"""What a job asks for: which form, which workflow, which files; without ComfyUI."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.tools import TOOLS
from gpu_server.addresses import FetchError
from gpu_server.comfy.failures import execution_failure
from gpu_server.protocol import RunStatus, WorkflowStatus
from gpu_server.serverless.bucket import Bucket
from gpu_server.serverless.calls import is_plain, read_plain, read_request, require_text
from gpu_server.serverless.failing import CallFailed, told_to_gateway, told_to_people
from gpu_server.serverless.fitness import Unfit, judge
from gpu_server.serverless.inline import InlineFetcher
from gpu_server.serverless.results import checked, of_request
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.tools import CHOOSING, DEFAULT_VARIANTS, OPERATIONS, RESCALE, Endpoint
from gpu_server.workflow import Workflow
from tests.support.recordings import bundled

TEST_INPUTS = Path(__file__).parents[3] / "gpu_server" / "test_inputs"
S3: dict[str, Any] = {
    "storage_url": "s3://bucket",
    "s3_endpoint_url": "http://127.0.0.1:9000",
    "s3_access_key_id": "id",
    "s3_secret_access_key": "a-secret",
}


def endpoint(ready: Callable[[Workflow], bool] = lambda _: True, **settings: Any) -> Endpoint:
    return Endpoint(workflows=bundled(), settings=WorkerSettings(**settings), ready=ready)


def chosen(call: dict[str, Any], **settings: Any) -> str:
    return endpoint(**settings).chosen(call).name


def test_defaults_are_the_gateways() -> None:
    tools = {tool.name: tool for tool in TOOLS if tool.name != RESCALE}
    assert DEFAULT_VARIANTS.keys() == tools.keys()
    assert {n: t.default_variant for n, t in tools.items()} == dict(DEFAULT_VARIANTS)
    assert set(OPERATIONS.values()) <= {*tools, RESCALE}


def test_no_parameter_is_called_like_what_chooses() -> None:
    for workflow in bundled().values():
        assert not set(CHOOSING) & workflow.manifest.params.keys()
        assert not {"output_format", "output_quality"} & workflow.manifest.params.keys()


@pytest.mark.parametrize(
    ("call", "settings", "workflow"),
    [
        ({"operation": "mask"}, {}, "mask-sam3"),
        ({"tool": "mask"}, {}, "mask-sam3"),
        ({"operation": "generate_concepts"}, {}, "concept-flux2-klein-4b"),
        ({"operation": "generate_model"}, {}, "model3d-trellis2"),
        ({"operation": "mask", "variant": "florence2-sam2"}, {}, "mask-florence2-sam2"),
        ({"workflow": "checkpoint"}, {}, "checkpoint"),
        ({}, {"runpod_tool": "mask"}, "mask-sam3"),
        ({}, {"runpod_workflows": "mask-florence2-sam2"}, "mask-florence2-sam2"),
        (
            {"operation": "mask"},
            {"runpod_workflows": "checkpoint,mask-florence2-sam2,mask-sam3"},
            "mask-florence2-sam2",
        ),
    ],
)
def test_a_plain_call_means_one_workflow(
    call: dict[str, Any], settings: dict[str, Any], workflow: str
) -> None:
    assert chosen(call, **settings) == workflow


def test_where_the_default_lacks_models_another_one_that_has_them_is_taken() -> None:
    only = endpoint(lambda workflow: workflow.name == "mask-florence2-sam2")
    assert only.chosen({"operation": "mask"}).name == "mask-florence2-sam2"
    assert endpoint(lambda _: False).chosen({"operation": "mask"}).name == "mask-sam3"


@pytest.mark.parametrize(
    ("call", "settings"),
    [
        ({}, {}),
        ({"operation": "undress"}, {}),
        ({"workflow": "mask-sam3"}, {"runpod_tool": "generate"}),
        ({"workflow": "mask-sam3"}, {"runpod_workflows": "checkpoint"}),
        ({"operation": "mask"}, {"runpod_workflows": "checkpoint"}),
        ({"operation": "mask", "variant": "checkpoint"}, {}),
        ({"variant": 3, "operation": "mask"}, {}),
    ],
)
def test_what_is_not_served_is_refused(call: dict[str, Any], settings: dict[str, Any]) -> None:
    with pytest.raises(CallFailed) as caught:
        chosen(call, **settings)
    assert caught.value.failure.kind == "usage"


@pytest.mark.parametrize(
    ("asked", "plain"),
    [
        ({"prompt": "x"}, True),
        ({"workflow": "mask-sam3"}, True),
        ({"workflow": {"name": "x", "digest": "0" * 64}}, False),
        ({"graph": {}, "manifest": {}}, False),
        ("text", True),
        (None, True),
    ],
)
def test_the_two_forms_are_told_apart(asked: object, *, plain: bool) -> None:
    assert is_plain(asked) is plain


def nested(depth: int) -> Any:
    found: Any = "x"
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"prompt": "a \ud800 b"}, "valid Unicode"),
        ({"\udfff": 1}, "valid Unicode"),
        ({"prompt": nested(100_000)}, "nested too deeply"),
    ],
)
def test_text_that_nothing_can_write_is_refused_before_it_costs_anything(
    raw: Any, said: str
) -> None:
    with pytest.raises(CallFailed, match=said):
        require_text(raw)
    require_text({"prompt": "a 🦀 b", "n": nested(50)})


async def test_every_test_input_fits_the_workflow_it_means() -> None:
    paths = {path.stem: path for path in sorted(TEST_INPUTS.glob("*.json"))}
    assert paths.keys() == {*DEFAULT_VARIANTS, RESCALE}
    # it has no workflow
    del paths[RESCALE]
    for path in paths.values():
        asked = json.loads(path.read_text())["input"]
        call = await read_plain(asked, endpoint(), None)
        assert call.workflow.tool == path.stem
        assert call.workflow.variant == DEFAULT_VARIANTS[path.stem]
        call.workflow.check_names(call.request.params, call.request.inputs)
        for files in call.request.inputs.values():
            assert [file.ours for file in files] == [False] * len(files)


async def test_a_plain_calls_files_have_a_slot_each_in_the_bucket() -> None:
    settings = WorkerSettings(**S3, project_name="shop")
    bucket = Bucket.of(settings)
    assert bucket is not None
    asked = {"operation": "generate", "prompt": "x", "num_images": 3, "output_format": "webp"}
    call = await read_plain(asked, endpoint(), bucket)
    assert list(call.keys) == ["images/0", "images/1", "images/2"]
    for slot in call.request.outputs:
        key = call.keys[slot.name]
        assert slot.url.startswith(f"http://127.0.0.1:9000/bucket/{key}?")
        assert "a-secret" not in slot.url
        # R2 and GCS refuse what botocore would have the sender do by default
        assert "checksum" not in slot.url.lower()
        assert (slot.sized, slot.format) == (True, "webp")
        assert bucket.own_key(bucket.address(key)) == key
    text = await read_plain(
        {"operation": "caption", "image_url": "https://x/y"}, endpoint(), bucket
    )
    assert text.request.outputs == []


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/shop/other/x.png",
        "s3://bucket/shop/serverless/../x.png",
        "s3://bucket/shop/serverless//x.png",
        "s3://other/shop/serverless/x.png",
        "https://bucket/shop/serverless/x.png",
    ],
)
def test_only_files_of_earlier_plain_calls_are_read_from_the_bucket(address: str) -> None:
    bucket = Bucket.of(WorkerSettings(**S3, project_name="shop"))
    assert bucket is not None
    assert bucket.own_key(address) is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"storage_url": "file:///data"}, "storage_url"),
        ({"storage_url": "s3://bucket"}, "S3_ACCESS_KEY_ID"),
        ({"storage_url": "r2://bucket"}, "R2_ENDPOINT_URL"),
        ({"storage_url": "gs://bucket"}, "GCS_ACCESS_KEY_ID"),
        ({"runpod_result_mb": 50}, "runpod_result_mb"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkerSettings(**settings)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("url", "content", "media_type"),
    [
        ("data:image/png;base64,aGVsbG8=", b"hello", "image/png"),
        ("DATA:,hel%6Co", b"hello", None),
        ("data:text/plain;charset=utf-8,hello", b"hello", "text/plain"),
    ],
)
async def test_a_data_address_is_read_where_it_stands(
    url: str, content: bytes, media_type: str | None
) -> None:
    async with InlineFetcher() as fetcher:
        async with fetcher.open(url, max_bytes=10, timeout_s=5) as download:
            assert b"".join([chunk async for chunk in download.chunks]) == content
            assert (download.media_type, download.size) == (media_type, 5)
        for bad in ("data:image/png;base64,%%%", "data:image/png", "data:," + "x" * 11):
            with pytest.raises(FetchError):
                async with fetcher.open(bad, max_bytes=10, timeout_s=5):
                    pass


def test_results_are_json_and_small_enough() -> None:
    assert checked({"a": "ü" * 10}, 100) == {"a": "ü" * 10}
    with pytest.raises(CallFailed, match="result_too_large"):
        checked({"a": "ü" * 60}, 100)
    with pytest.raises(CallFailed, match="internal_error"):
        checked({"a": float("inf")}, 100)
    run = "01890000-0000-7000-8000-000000000000"
    status = RunStatus(run_id=run, state="completed", params={"seed": 7})
    assert RunStatus.model_validate(of_request(status)) == status


def test_failures_are_texts() -> None:
    failure = CallFailed("usage", "invalid_param", "width must be a number").failure
    assert told_to_people(failure)["error"] == "width must be a number"
    assert json.loads(str(told_to_gateway(failure)["error"])) == {
        "kind": "usage",
        "code": "invalid_param",
        "message": "width must be a number",
    }


def test_a_run_id_is_a_uuid() -> None:
    with pytest.raises(CallFailed, match="run_id"):
        read_request({"run_id": "../x"}, catalogue=None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("CUDA error: an illegal memory access was encountered", "gpu_failed"),
        ("CUDA error: device-side assert triggered", "gpu_failed"),
        ("CUDA error: unspecified launch failure", "gpu_failed"),
        ("CUDA error: uncorrectable ECC error encountered", "gpu_failed"),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "gpu_failed"),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx", "gpu_failed"),
        ("No CUDA GPUs are available", "gpu_failed"),
        ("CUDA error: out of memory", "out_of_memory"),
        ("CUDA error: no kernel image is available for execution", "execution_failed"),
        ("CUDA error: invalid argument", "execution_failed"),
        ("an unknown error in the prompt", "execution_failed"),
    ],
)
def test_only_errors_that_stay_break_the_gpu(message: str, code: str) -> None:
    data = {"node_id": "3", "node_type": "KSampler", "exception_type": "torch.AcceleratorError"}
    told = [("execution_error", {**data, "exception_message": message})]
    assert execution_failure(told).failure.code == code


def test_a_worker_is_fit_when_each_tool_it_serves_has_a_workflow_that_can_run() -> None:
    found = {
        name: WorkflowStatus(
            name=name, digest=w.digest, readiness="ready" if name == "mask-sam3" else "missing"
        )
        for name, w in bundled().items()
    }
    workflows = dict(bundled())
    judge(WorkerSettings(), workflows, found)
    judge(WorkerSettings(runpod_tool=("mask",)), workflows, found)
    unfit: list[dict[str, Any]] = [
        {"runpod_tool": ("mask", "upscale")},
        {"runpod_workflows": ("checkpoint",)},
    ]
    for settings in unfit:
        with pytest.raises(Unfit, match=r"upscale|checkpoint"):
            judge(WorkerSettings(**settings), workflows, found)
