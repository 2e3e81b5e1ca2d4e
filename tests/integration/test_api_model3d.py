"""Image to 3D as callers meet it: stages behind one call, and what is refused before the first."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.base import WorkflowReadiness
from gateway.examples import BOX, MUG
from gateway.job import Source, run_id
from gateway.operations import NORMALISE, RESCALE
from gpu_server.protocol import Failure
from tests.support.gateway import Gateway, ScriptedBackend, gateway
from tests.support.reading import data_uri, picture

WORKFLOWS = Path(__file__).parents[2] / "workflows"
RULE = "picture: {max_ratio: 4}"
SMALL = {"input_image_url": MUG, "target_faces": 5000}


class GpuBackend(ScriptedBackend):
    """Says, as a GPU service does, that it knows nothing of the gateway's own operations."""

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        if workflow.startswith("cpu:"):
            return WorkflowReadiness(readiness="unknown")
        return super().readiness(workflow, digest)


async def made(at: Gateway, **body: Any) -> dict[str, Any]:
    answer = await at.http.post("/api/model3d", json={**SMALL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def refused(at: Gateway, path: str = "/api/model3d", **body: Any) -> dict[str, Any]:
    answer = await at.http.post(path, json={**SMALL, **body})
    assert answer.status_code >= 400, answer.text
    return answer.json()


async def test_a_picture_becomes_a_mesh_and_the_mesh_goes_through_the_cpu(tmp_path: Path) -> None:
    async with gateway(tmp_path) as at:
        result = await made(at, seed=5)
        first, second = at.backend.orders
    assert (first.call.workflow, second.call.workflow) == ("model3d-trellis2", NORMALISE)
    assert second.run_id == run_id(first.run_id, 1, 0)
    assert first.call.params["target_faces"] == 5000
    assert list(first.inputs) == ["input_image_url"]
    assert list(second.inputs) == ["model_url"]
    assert result["model_params"]["seed"] == 5
    assert result["model_params"]["texture_size"] == 2048
    assert result["normalized_model_url"].startswith("/api/meshes/")
    assert result["normalized_model_url"].endswith(".glb")
    assert len(result["files"]) == 1


async def test_with_a_prompt_the_picture_is_drawn_anew_from_the_same_seed(tmp_path: Path) -> None:
    async with gateway(tmp_path) as at:
        result = await made(at, prompt="a mug with a lid", styleId="clay")
        drawn, modelled, _ = at.backend.orders
        (job,) = (await at.http.get("/api/jobs")).json()["items"]
        stored = await at.context.jobs.get(job["job_id"])
    assert drawn.call.workflow == "concept-flux2-klein-4b"
    assert (drawn.call.params["type"], drawn.call.params["count"]) == ("image", 1)
    assert "a mug with a lid" in str(drawn.call.params["prompt"])
    assert drawn.call.params["prompt"] != "a mug with a lid"
    assert drawn.call.params["seed"] == modelled.call.params["seed"]
    assert list(drawn.inputs) == ["image_url"]
    assert "prompt" not in modelled.call.params
    assert result["model_params"]["prompt"] == "a mug with a lid"
    assert result["model_params"]["styleId"] == "clay"
    assert stored is not None
    assert [call.ends_at for call in stored.call.stages] == [0.2, 0.9, 1.0]
    made_by = stored.call.stages[1].inputs["input_image_url"]
    assert made_by == (Source(slot="images/0", media_type="image/png"),)


async def test_a_style_alone_draws_anew_too(tmp_path: Path) -> None:
    async with gateway(tmp_path) as at:
        await made(at, styleId="clay")
        assert len(at.backend.orders) == 3
        await made(at, prompt=None, styleId=None)
        assert len(at.backend.orders) == 5


async def test_each_stage_has_the_time_out_of_its_own_tool(tmp_path: Path) -> None:
    async with gateway(tmp_path, tool_timeouts=(("concept", 7.0), ("model3d", 8.0))) as at:
        await made(at, styleId="clay")
        assert [order.call.timeout_s for order in at.backend.orders[:2]] == [7, 8]


async def test_a_picture_to_be_drawn_anew_is_refused_by_the_name_it_was_sent_as(
    tmp_path: Path,
) -> None:
    workflows = tmp_path / "workflows"
    shutil.copytree(WORKFLOWS, workflows)
    manifest = workflows / "concept-flux2-klein-4b.yaml"
    said = manifest.read_text()
    at_most = said.replace("image_url: {upload: image,", f"image_url: {{{RULE}, upload: image,")
    assert at_most != said
    manifest.write_text(at_most)
    async with gateway(tmp_path / "workspace", workflows_path=workflows) as at:
        long = data_uri(picture(size=(90, 10)))
        problem = await refused(at, input_image_url=long, styleId="clay")
        assert [(e["field"], e["code"]) for e in problem["errors"]] == [
            ("input_image_url", "wrong_size")
        ]
        assert at.backend.orders == []


async def test_a_picture_that_fails_where_it_is_drawn_anew_is_told_by_the_name_it_was_sent_as(
    tmp_path: Path,
) -> None:
    broken = Failure(kind="usage", code="unreadable_image", message="image_url: is cut off")
    backend = ScriptedBackend(fails=broken)
    backend.gate.set()
    async with gateway(tmp_path, backend) as at:
        problem = await refused(at, styleId="clay")
        assert list(at.backend.orders[0].inputs) == ["image_url"]
    assert (problem["status"], problem["code"]) == (422, "unreadable_image")
    assert problem["detail"] == "input_image_url: is cut off"


async def test_what_a_variant_does_not_take_is_refused(tmp_path: Path) -> None:
    async with gateway(tmp_path) as at:
        problem = await refused(at, variant="hunyuan3d21")
        assert [e["field"] for e in problem["errors"]] == ["target_faces"]
        problem = await refused(at, styleId="nobody-has-it")
        assert [e["field"] for e in problem["errors"]] == ["styleId"]
        assert at.backend.orders == []


async def test_a_stage_that_lacks_its_models_is_told_before_anything_is_made(
    tmp_path: Path,
) -> None:
    backend = ScriptedBackend(states={"concept-flux2-klein-4b": "missing"})
    backend.gate.set()
    async with gateway(tmp_path, backend) as at:
        await made(at, prompt="a mug with a lid")
        assert backend.orders[0].call.workflow == "concept-flux2-klein-9b"
        backend.states["concept-flux2-klein-9b"] = "missing"
        problem = await refused(at, prompt="a mug with a lid")
        assert (problem["status"], problem["code"]) == (503, "missing_model")
        await made(at)


async def test_a_gpu_service_never_gets_an_operation_of_the_gateway(tmp_path: Path) -> None:
    backend = GpuBackend()
    backend.gate.set()
    async with gateway(tmp_path, backend) as at:
        body = {"model_url": BOX, "scale_factor": 2}
        taken = await at.http.post("/api/model3d/rescale/async", json=body)
        assert taken.status_code == 202
        await made_something(at)
        view = await at.http.get(f"/api/jobs/{taken.json()['job_id']}")
        assert view.json()["status"] == "pending"
        assert RESCALE not in [order.call.workflow for order in backend.orders]


async def made_something(at: Gateway) -> None:
    answer = await at.http.post("/api/upscale", json={"image_url": MUG})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/api/model3d", "/api/model3d/rescale"])
async def test_both_routes_have_their_own_status(tmp_path: Path, path: str) -> None:
    body = {"model_url": BOX, "scale_factor": 2} if path.endswith("rescale") else SMALL
    async with gateway(tmp_path, ScriptedBackend()) as at:
        taken = await at.http.post(f"{path}/async", json=body)
        view = await at.http.get(taken.headers["location"])
        other = "/api/model3d/rescale" if path == "/api/model3d" else "/api/model3d"
        elsewhere = await at.http.get(f"{other}/{taken.json()['job_id']}")
    assert view.json()["job_id"] == taken.json()["job_id"]
    assert elsewhere.status_code == 404
