"""The GPU service judges workflows that are in no files of its own."""

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from gpu_server.workflow import content_digest
from tests.support.gpu import Gpu, Json, gpu_stack
from tests.support.recordings import files
from tests.support.slots import Slots
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with gpu_stack(tmp_path_factory.mktemp("gpu"), "simulator", "gpu_server") as stack:
        yield stack


@pytest.fixture
async def gpu(stack: Stack) -> AsyncIterator[Gpu]:
    async with Gpu(stack) as gpu:
        await gpu.connected()
        gpu.sim(step_ms=1)
        yield gpu
        await gpu.tidy()


def brought(title: str, checkpoint: str = "tiny-sd15.ckpt") -> Json:
    graph, manifest = files("checkpoint")
    graph["1"]["inputs"]["ckpt_name"] = checkpoint
    del manifest["params"]["checkpoint"], manifest["guard"]
    manifest["title"] = title
    digest = content_digest(graph, manifest)
    return {"digest": digest, "graph": graph, "manifest": manifest}


async def check(gpu: Gpu, *workflows: Json, refresh: bool = False) -> list[Json]:
    body = {"workflows": workflows, "refresh": refresh}
    answer = await gpu.http.post("/workflows/check", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["workflows"]


async def test_one_that_came_once_is_known_by_its_digest(gpu: Gpu, slots: Slots) -> None:
    workflow = brought("known later")
    named = {"digest": workflow["digest"]}
    (unknown,) = await check(gpu, named)
    assert (unknown["known"], unknown["readiness"]) == (False, "unknown")
    assert [one["readiness"] for one in await check(gpu, workflow, named)] == ["ready", "ready"]
    params = {"prompt": "a fox", "width": 64, "height": 64, "num_inference_steps": 1}
    request = {
        "workflow": {"name": "own.mine", "digest": workflow["digest"]},
        "params": params,
        "outputs": slots.slots("a"),
    }
    assert (await gpu.run(request))["state"] == "completed"


async def test_what_is_missing_is_told_until_it_is_there(gpu: Gpu) -> None:
    workflow = brought("waits", "tiny-sd15.ckpt")
    gpu.sim(hide=["tiny-sd15.ckpt"])
    (lacking,) = await check(gpu, workflow, refresh=True)
    assert lacking["readiness"] == "missing"
    (thing,) = lacking["missing"]
    assert (thing["kind"], thing["name"]) == ("model", "tiny-sd15.ckpt")
    gpu.sim(hide=[])
    (found,) = await check(gpu, {"digest": workflow["digest"]}, refresh=True)
    assert found["readiness"] == "ready"


async def test_a_model_of_a_bundled_workflow_comes_with_its_address(gpu: Gpu) -> None:
    workflow = brought("rare")
    workflow["graph"]["1"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"},
    }
    workflow["graph"]["40"] = {
        "class_type": "HouseOfCards",
        "inputs": {"samples": ["6", 0]},
    }
    workflow["graph"]["7"]["inputs"]["samples"] = ["40", 0]
    workflow["digest"] = content_digest(workflow["graph"], workflow["manifest"])
    gpu.sim(hide=["flux1-dev.safetensors"])
    (checked,) = await check(gpu, workflow, refresh=True)
    gpu.sim(hide=[])
    assert checked["known"], checked
    found = {thing["name"]: thing for thing in checked["missing"]}
    assert "HouseOfCards" in found, checked
    assert found["HouseOfCards"]["kind"] == "node"
    model = found["flux1-dev.safetensors"]
    assert model["url"].startswith("https://huggingface.co/")
    assert model["directory"] == "diffusion_models"


async def test_another_content_than_the_digest_says_is_not_known(gpu: Gpu) -> None:
    workflow = brought("forged") | {"digest": "0" * 64}
    (checked,) = await check(gpu, workflow)
    assert checked["known"] is False


async def test_one_that_does_not_fit_says_where(gpu: Gpu) -> None:
    workflow = brought("unfit")
    workflow["manifest"]["params"]["prompt"]["bind"] = "3.words"
    workflow["digest"] = content_digest(workflow["graph"], workflow["manifest"])
    (checked,) = await check(gpu, workflow)
    assert checked["missing"][0]["name"] == "3.words"


async def test_node_classes_are_told_as_comfyui_tells_them(gpu: Gpu) -> None:
    body = {"classes": ["KSampler", "HouseOfCards"]}
    nodes = (await gpu.http.post("/nodes", json=body)).json()["nodes"]
    assert nodes.keys() == {"KSampler"}
    assert nodes["KSampler"]["input"]["required"]["steps"][0] == "INT"


async def test_both_questions_need_the_token_and_have_a_bounded_body(gpu: Gpu) -> None:
    async with httpx.AsyncClient(base_url=gpu.http.base_url, trust_env=False) as stranger:
        for path in ("/workflows/check", "/nodes"):
            assert (await stranger.post(path, json={})).status_code == 401
            assert (await gpu.http.post(path, json={"x": 1})).status_code == 422
            assert (await gpu.http.post(path, content=b" " * 9_000_000)).status_code == 413
