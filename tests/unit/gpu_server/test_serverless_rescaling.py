"""Which plain calls rescale a mesh, what they may ask, and what their failures are."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.examples import BOX
from gateway.tools.rescale import RescaleParams
from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.files import NotFetched
from gpu_server.protocol import Failure
from gpu_server.serverless.calls import read_plain
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.fitness import Unfit, check, judge
from gpu_server.serverless.meshes import working
from gpu_server.serverless.rescaling import read_rescale
from gpu_server.serverless.settings import WorkerSettings
from gpu_server.serverless.tools import Endpoint
from tests.support.recordings import bundled

MESH = "https://example.com/x.glb"


def endpoint(**settings: Any) -> Endpoint:
    return Endpoint(workflows=bundled(), settings=WorkerSettings(**settings), ready=lambda _: True)


@pytest.mark.parametrize(
    ("call", "settings", "rescales"),
    [
        ({"operation": "rescale_model"}, {}, True),
        ({"tool": "rescale", "variant": "cpu"}, {}, True),
        ({}, {"runpod_tool": "rescale"}, True),
        ({"operation": "rescale_model"}, {"runpod_tool": "model3d,rescale"}, True),
        ({"operation": "generate_model"}, {"runpod_tool": "model3d,rescale"}, False),
        ({"workflow": "mask-sam3"}, {}, False),
        ({}, {"runpod_workflows": "mask-sam3"}, False),
    ],
)
def test_an_operation_means_a_rescaling(
    call: dict[str, Any], settings: dict[str, Any], *, rescales: bool
) -> None:
    assert endpoint(**settings).rescales(call) is rescales


@pytest.mark.parametrize(
    ("call", "settings", "named"),
    [
        ({"operation": "rescale_model"}, {"runpod_tool": "model3d"}, "model3d"),
        ({"operation": "rescale"}, {"runpod_workflows": "mask-sam3"}, "mask"),
        ({"operation": "rescale", "variant": "trellis2"}, {}, "cpu"),
        ({}, {"runpod_tool": "model3d,rescale"}, "model3d, rescale"),
        ({}, {}, "rescale"),
    ],
)
def test_an_endpoint_that_does_not_rescale_says_what_it_does(
    call: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(CallFailed) as caught:
        endpoint(**settings).rescales(call)
    assert named in caught.value.failure.message


@pytest.mark.parametrize(
    "asked",
    [
        {"scale_factor": 2.5},
        {"scale_factor": 1, "format": "3mf"},
        {"target_dimensions": {"x": 100, "unit": "mm"}},
        {"target_dimensions": {"y": 1, "z": 2, "unit": "ft", "mode": "stretch"}},
        {},
        {"scale_factor": 0},
        {"scale_factor": True},
        {"scale_factor": "2"},
        {"scale_factor": float("inf")},
        {"scale_factor": 2, "target_dimensions": {"x": 100, "unit": "mm"}},
        {"target_dimensions": {"unit": "mm"}},
        {"target_dimensions": {"x": 1}},
        {"target_dimensions": {"x": -1, "unit": "mm"}},
        {"target_dimensions": {"x": 1, "unit": "mm", "w": 1}},
        {"scale_factor": 2, "format": "fbx"},
        {"scale_factor": 2, "colour": "red"},
    ],
)
def test_the_worker_takes_and_refuses_what_the_gateway_does(asked: dict[str, Any]) -> None:
    try:
        params = RescaleParams.model_validate({"model_url": MESH, **asked})
    except ValidationError as error:
        first = error.errors()[0]
        with pytest.raises(CallFailed) as caught:
            read_rescale({"operation": "rescale", "model_url": MESH, **asked})
        failure = caught.value.failure
        assert failure.kind == "usage"
        assert str(first["loc"][-1]) in failure.message
        if first["type"] not in ("extra_forbidden", "missing"):
            assert first["msg"] in failure.message
        return
    call = read_rescale({"operation": "rescale", "model_url": MESH, **asked})
    assert call.model_dump() == params.model_dump(exclude={"variant"})


def test_what_is_missing_or_unknown_is_named() -> None:
    for asked, code, named in (
        ({"scale_factor": 2}, "missing_param", "model_url"),
        ({"model_url": MESH, "scale_factor": 2, "prompt": "x"}, "unknown_param", "scale_factor"),
        ({"model_url": 3, "scale_factor": 2}, "invalid_param", "model_url"),
    ):
        with pytest.raises(CallFailed) as caught:
            read_rescale(asked)
        assert caught.value.failure.code == code
        assert named in caught.value.failure.message


def test_the_test_input_can_be_read() -> None:
    path = Path(__file__).parents[3] / "gpu_server" / "test_inputs" / "rescale.json"
    asked = json.loads(path.read_text())["input"]
    assert asked["model_url"] == BOX
    assert endpoint().rescales(asked)
    assert read_rescale(asked).target_dimensions is not None


async def test_every_workflow_of_model3d_hands_its_mesh_over_normalised() -> None:
    for name, workflow in bundled().items():
        call = await read_plain({"workflow": name}, endpoint(), None)
        assert call.mesh == ("models" if workflow.tool == "model3d" else None)


async def test_an_endpoint_that_only_rescales_is_fit_without_comfyui() -> None:
    # nobody listens there
    away: dict[str, Any] = {"comfyui_api_url": "http://127.0.0.1:9", "comfyui_start_s": 0.1}
    await check(WorkerSettings(runpod_tool=("rescale",), **away))
    with pytest.raises(CallFailed, match="comfyui_unavailable"):
        await check(WorkerSettings(runpod_tool=("rescale", "mask"), **away))
    with pytest.raises(Unfit, match="nothing"):
        judge(WorkerSettings(runpod_tool=("rescale", "nothing")), {}, {})


@pytest.mark.parametrize(
    ("error", "ours", "kind", "code", "message"),
    [
        (MeshError("mesh_flat", "No."), False, "usage", "mesh_flat", "model_url: No."),
        (MeshError("mesh_timeout", "No."), False, "usage", "mesh_timeout", "No."),
        (MeshError("mesh_empty", "No."), True, "fatal", "mesh_empty", "No."),
        (MeshError("mesh_crashed", "No."), True, "transient", "mesh_crashed", "No."),
        (
            NotFetched(Failure(kind="usage", code="url_refused", message="model_url: no")),
            False,
            "usage",
            "url_refused",
            "model_url: no",
        ),
    ],
)
async def test_failures_are_told_and_leave_no_files(
    tmp_path: Path, error: Exception, code: str, kind: str, message: str, *, ours: bool
) -> None:
    async def fail() -> None:
        async with working(tmp_path / "work", ours=ours) as folder:
            (folder / "source.glb").touch()
            raise error

    with pytest.raises(CallFailed) as caught:
        await fail()
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.message) == (kind, code, message)
    assert list((tmp_path / "work").iterdir()) == []


async def test_a_disk_that_takes_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CallFailed, match="disk_full"):
        async with working(tmp_path / "file" / "work", ours=False):
            pass


async def test_a_full_disk_shows_no_path(tmp_path: Path) -> None:
    with pytest.raises(CallFailed) as caught:
        async with working(tmp_path, ours=False):
            raise OSError(28, "No space left on device", "/secret/path")
    failure = caught.value.failure
    assert (failure.kind, failure.code) == ("transient", "disk_full")
    assert "secret" not in failure.message
