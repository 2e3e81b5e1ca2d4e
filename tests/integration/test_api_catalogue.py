"""`/api/tools`, `/api/models`, `/generate` and the health routes."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.examples import MUG
from gateway.tools import MODES, TOOLS
from gpu_server.protocol import Failure, Health
from tests.support.gateway import PNG, SMALL, Gateway, ScriptedBackend, gateway

FREE: dict[str, Any] = {
    "mode": "free",
    "prompt": "a mug",
    "extra_params": {"width": 256, "height": 256, "num_inference_steps": 2},
}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


async def variants(served: Gateway) -> dict[str, dict[str, Any]]:
    tool = (await served.http.get("/api/tools/generate")).json()
    return {v["name"]: v for v in tool["variants"]}


async def test_the_catalogue_shows_each_variant_with_its_own_values(served: Gateway) -> None:
    listed = (await served.http.get("/api/tools")).json()["items"]
    assert [tool["name"] for tool in listed] == [tool.name for tool in TOOLS]
    assert listed[0]["default_variant"] == "flux1-dev"
    assert listed[0]["params_schema"]["properties"]["prompt"]["description"]
    found = await variants(served)
    assert set(found) == {"flux1-dev", "z-image-turbo", "checkpoint:tiny.safetensors"}
    turbo = found["z-image-turbo"]
    assert (turbo["defaults"]["num_inference_steps"], turbo["commercial"]) == (8, True)
    assert "negative_prompt" not in turbo["params"]
    assert found["flux1-dev"]["commercial"] is False
    assert any("Non-Commercial" in x["licence"] for x in found["flux1-dev"]["licences"])


async def test_limits_are_those_of_tool_and_variant_together(served: Gateway) -> None:
    limits = (await variants(served))["checkpoint:tiny.safetensors"]["limits"]
    assert limits["width"] == {"minimum": 256, "maximum": 2048, "multiple_of": 16}
    assert limits["num_inference_steps"] == {"minimum": 1, "maximum": 100}


async def test_readiness_says_what_is_missing(tmp_path: Path) -> None:
    states: Any = {"flux1-dev": "missing", "z-image-turbo": "unknown"}
    async with gateway(tmp_path, ScriptedBackend(states=states, installed={})) as served:
        found = await variants(served)
        assert found["flux1-dev"]["readiness"] == "missing"
        assert found["flux1-dev"]["missing"][0]["name"] == "flux1-dev.safetensors"
        assert found["z-image-turbo"]["readiness"] == "unknown"
        assert found["checkpoint:<file>"]["readiness"] == "missing"
        assert (await served.http.get("/api/tools/generate")).json()["readiness"] == "unknown"


async def test_an_unknown_tool_is_a_404(served: Gateway) -> None:
    assert (await served.http.get("/api/tools/nothing")).status_code == 404


async def test_a_model_is_registered_once_and_listed(served: Gateway) -> None:
    body = {
        "name": "mug",
        "lora": "style.safetensors",
        "trigger_word": "TOK_MUG",
        "base_model": "flux1-dev",
    }
    answer = await served.http.post("/api/models", json=body)
    assert answer.status_code == 201
    model = answer.json()
    assert model.items() >= body.items()
    assert answer.headers["location"] == f"/api/models/{model['id']}"
    assert (await served.http.get(answer.headers["location"])).json() == model
    again = await served.http.post("/api/models", json=body)
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    await served.http.post("/api/models", json=body | {"name": "second"})
    page = (await served.http.get("/api/models?limit=1")).json()
    rest = (await served.http.get("/api/models", params={"cursor": page["next_cursor"]})).json()
    assert [m["name"] for m in page["items"] + rest["items"]] == ["second", "mug"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"lora": "nowhere.safetensors"}, "lora"),
        ({"base_model": "sdxl"}, "base_model"),
        ({"base_model": "checkpoint:nowhere.safetensors"}, "base_model"),
        ({"name": ""}, "name"),
        ({"trigger_word": ""}, "trigger_word"),
        ({"name": " \u00a0"}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "\u0001"}, "name"),
        ({"trigger_word": "TOK\n"}, "trigger_word"),
        ({"trigger_word": " "}, "trigger_word"),
        ({"base_model": ""}, "base_model"),
        ({"url": "https://example.com"}, "url"),
    ],
)
async def test_a_model_that_cannot_be_used_is_not_registered(
    served: Gateway, change: dict[str, Any], field: str
) -> None:
    body = {"name": "mug", "lora": "style.safetensors", "base_model": "flux1-dev"} | change
    answer = await served.http.post("/api/models", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
    assert (await served.http.get("/api/models")).json()["items"] == []


async def test_a_wrong_model_address_is_named(served: Gateway) -> None:
    assert (await served.http.get("/api/models/1")).status_code == 404
    for path, field in (("/api/models/x", "model_id"), ("/api/models?cursor=x", "cursor")):
        answer = await served.http.get(path)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == field


async def test_the_free_mode_makes_a_picture(tmp_path: Path) -> None:
    backend = ScriptedBackend()
    async with gateway(tmp_path, backend) as served:
        queued = (await served.http.post("/generate", json=FREE)).json()
        task_id = queued.pop("task_id")
        assert queued == {"status": "queued", "image": None, "error": None}
        backend.gate.set()
        await served.http.get(f"/api/generate/{task_id}?wait=30")
        done = (await served.http.get(f"/generate/{task_id}")).json()
        assert (done["status"], done["error"]) == ("done", None)
        assert base64.b64decode(done["image"]) == PNG


async def test_a_mode_waits_when_it_is_asked_to(served: Gateway) -> None:
    answer = await served.http.post(
        "/generate", json=FREE | {"style": "ink"}, headers={"Prefer": "wait=30"}
    )
    assert answer.json()["status"] == "done"
    assert served.backend.orders[0].call.params["prompt"] == "a mug, ink"


async def test_a_failed_task_says_why(served: Gateway) -> None:
    served.backend.fails = Failure(kind="fatal", code="execution_failed", message="It broke.")
    answer = await served.http.post("/generate", json=FREE, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["error"]) == ("failed", "It broke.")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": "clothes_removal"}, "mode"),
        ({"mode": "nothing"}, "mode"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"extra_params": {"width": 833}}, "extra_params.width"),
        ({"extra_params": {"what": 1}}, "extra_params.what"),
        ({"extra_params": {"prompt": "b"}}, "extra_params.prompt"),
        ({"extra_params": {"variant": "sdxl"}}, "extra_params.variant"),
        ({"extra_params": {"base_model": "sdxl"}}, "extra_params.base_model"),
        ({"extra_params": {"loras": [{"name": "no"}]}}, "extra_params.loras.0.name"),
        ({"style": "a\0"}, "style"),
        ({"style": " "}, "style"),
        ({"prompt": None, "style": "ink", "extra_params": {"prompt": "a mug"}}, "style"),
        ({"prompt": "a" * 7990, "style": "b" * 20}, "style"),
        ({"face_images": ["aGk="]}, "face_images"),
        ({"face_images": ["aGk="] * 6}, "face_images"),
        ({"target_image": "aGk="}, "target_image"),
        ({"what": 1}, "what"),
    ],
)
async def test_a_wrong_call_by_mode_names_its_field(
    served: Gateway, change: dict[str, Any], field: str
) -> None:
    answer = await served.http.post("/generate", json=FREE | change)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field
    if field == "mode":
        assert "use one of concept, cutout, edit, free" in answer.json()["detail"]


async def test_a_call_by_mode_may_have_only_what_some_mode_takes(tmp_path: Path) -> None:
    async with gateway(tmp_path, max_image_size_mb=1, max_face_images=1) as served:
        answer = await served.http.post("/generate", json=FREE | {"target_image": "a" * 2_700_000})
        assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")


async def test_pictures_of_a_call_by_mode_become_inputs_of_its_tool(served: Gateway) -> None:
    picture = MUG.partition(",")[2]
    for body, param, count in (
        ({"mode": "upscale", "target_image": picture}, "image_url", 1),
        ({"mode": "cutout", "target_image": MUG}, "image_url", 1),
        ({"mode": "portrait", "prompt": "x", "face_images": [picture] * 2}, "face_images", 2),
    ):
        answer = await served.http.post("/generate", json=body, headers={"Prefer": "wait=30"})
        assert answer.json()["status"] == "done", answer.text
        order = served.backend.orders[-1]
        assert len(order.inputs[param]) == count
        assert all(file.media_type == "image/png" for file in order.inputs[param])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"mode": "upscale"}, "target_image"),
        ({"mode": "upscale", "target_image": "aGk="}, "target_image"),
        ({"mode": "upscale", "target_image": "?"}, "target_image"),
        ({"mode": "upscale", "face_images": ["aGk="]}, "face_images"),
        ({"mode": "portrait", "prompt": "x"}, "face_images"),
        ({"mode": "portrait", "prompt": "x", "face_images": ["aGk="]}, "face_images.0"),
        (
            {"mode": "upscale", "target_image": "aGk=", "extra_params": {"image_url": MUG}},
            "extra_params.image_url",
        ),
    ],
)
async def test_a_picture_a_mode_cannot_take_is_named_as_it_was_sent(
    served: Gateway, body: dict[str, Any], field: str
) -> None:
    answer = await served.http.post("/generate", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_the_modes_are_listed(served: Gateway) -> None:
    modes = (await served.http.get("/modes")).json()["items"]
    assert [(mode["name"], mode["tool"]) for mode in modes] == [
        (mode.name, mode.tool.name) for mode in MODES
    ]


def said(**changes: Any) -> Health:
    values: dict[str, Any] = {
        "status": "healthy",
        "comfyui_available": True,
        "version": "0.1.0",
        "protocol": ["v1"],
        "capacity": 2,
    }
    return Health(**(values | changes))


@pytest.mark.parametrize(
    ("health", "status", "available"),
    [
        (said(), "healthy", True),
        (said(status="degraded", comfyui_available=False), "degraded", True),
        (None, "degraded", False),
    ],
)
async def test_health_says_how_the_gpu_services_are(
    tmp_path: Path,
    health: Health | None,
    status: str,
    available: bool,  # noqa: FBT001  # parametrised
) -> None:
    async with gateway(tmp_path, ScriptedBackend(health=health)) as served:
        answer = await served.stranger.get("/health")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["status"], body["gpu_available"]) == (status, available)
        assert body["version"] == "1.0.0"


async def test_a_health_check_that_breaks_says_unhealthy(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(type(served.context.jobs), "counts", broken)
    answer = await served.stranger.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "unhealthy")


async def test_readiness_ends_when_the_process_stops(served: Gateway) -> None:
    assert (await served.stranger.get("/readyz")).json() == {"status": "ready"}
    served.context.stopping.set()
    assert (await served.stranger.get("/readyz")).status_code == 503
    assert (await served.stranger.get("/livez")).status_code == 200


async def test_a_gateway_without_its_database_says_so_and_wants_no_traffic(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(served.context.jobs), "database_answers", False)
    answer = await served.stranger.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "no_database"})
    health = (await served.stranger.get("/health")).json()
    assert (health["status"], health["detail"]) == ("degraded", "The database does not answer.")
    assert (await served.stranger.get("/livez")).status_code == 200


async def test_a_sync_call_and_a_mode_share_one_implementation(served: Gateway) -> None:
    await served.http.post("/generate", json=FREE, headers={"Prefer": "wait=30"})
    await served.http.post("/api/generate", json=SMALL)
    first, second = (o.call for o in served.backend.orders)
    assert first.workflow == second.workflow
    assert {k: v for k, v in first.params.items() if k != "seed"} == {
        k: v for k, v in second.params.items() if k != "seed"
    }
