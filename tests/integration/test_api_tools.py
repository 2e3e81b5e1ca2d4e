"""The routes of a tool, through the app, over real jobs, database and storage."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gpu_server.protocol import Failure
from tests.support.gateway import PNG, SMALL, Gateway, ScriptedBackend, gateway


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Gateway]:
    """A gateway whose runs end when the test opens the gate."""
    async with gateway(tmp_path, ScriptedBackend()) as running:
        yield running


async def post(served: Gateway, body: dict[str, Any], **headers: str) -> Any:
    return await served.http.post(
        "/api/generate", json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


async def test_a_sync_call_answers_the_result_as_the_contract_has_it(served: Gateway) -> None:
    answer = await post(served, SMALL | {"seed": 7})
    assert answer.status_code == 200
    result = answer.json()
    assert result["success"] is True
    file = result["files"][0]
    assert result["image_url"] == file["url"]
    assert file["url"].startswith("/api/images/")
    assert file["link"].startswith(file["url"] + "?expires=")
    assert result["r2_path"] == file["r2_path"]
    assert file["r2_path"].startswith("local://files/generated/")
    assert result["job_id"] in file["r2_path"]
    assert (file["media_type"], file["bytes"]) == ("image/png", len(PNG))
    assert (file["width"], file["height"]) == (256, 256)
    assert result["generation_params"] == {
        "lora_scale": 1.0,
        "width": 256,
        "height": 256,
        "steps": 2,
        "seed": 7,
        "guidance_scale": 1.0,
        "negative_prompt": "",
    }
    assert (result["prompt"], result["model_id"], result["loras"]) == ("a mug", None, [])
    assert (result["engine"], result["backend"]) == ("simulator", "scripted")
    assert (result["variant"], result["duration_seconds"]) == ("flux1-dev", 0.5)


async def test_a_file_is_read_by_key_by_link_and_by_nobody_else(served: Gateway) -> None:
    file = (await post(served, SMALL)).json()["files"][0]
    assert (await served.http.get(file["url"])).content == PNG
    assert (await served.stranger.get(file["link"])).content == PNG
    assert (await served.stranger.get(file["url"])).status_code == 401
    assert (await served.stranger.get(file["link"] + "x")).status_code == 403


async def test_what_is_not_sent_takes_the_variants_own_values(served: Gateway) -> None:
    body = {"prompt": "a", "variant": "z-image-turbo"}
    turbo = (await post(served, body)).json()["generation_params"]
    assert (turbo["steps"], turbo["negative_prompt"]) == (8, None)
    body = {"prompt": "a", "base_model": "checkpoint:tiny.safetensors"}
    checkpoint = (await post(served, body)).json()
    assert checkpoint["variant"] == "checkpoint:tiny.safetensors"
    assert checkpoint["generation_params"]["guidance_scale"] == 7.0
    assert served.backend.orders[-1].call.params["checkpoint"] == "tiny.safetensors"


async def test_a_seed_is_drawn_and_reported(served: Gateway) -> None:
    seeds = {(await post(served, SMALL)).json()["generation_params"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert all(0 <= seed < 2**53 for seed in seeds)


async def test_num_images_makes_as_many_slots_and_files(served: Gateway) -> None:
    result = (await post(served, SMALL | {"num_images": 3})).json()
    assert len({file["url"] for file in result["files"]}) == 3
    assert [s.name for s in served.backend.orders[-1].slots] == [f"images/{n}" for n in range(3)]


async def test_loras_are_passed_on_with_their_strengths(served: Gateway) -> None:
    loras = [{"name": "style.safetensors"}, {"name": "ink.safetensors", "scale": 0.25}]
    result = (await post(served, SMALL | {"loras": loras, "lora_scale": 0.8})).json()
    used = [
        {"name": "style.safetensors", "scale": 0.8},
        {"name": "ink.safetensors", "scale": 0.25},
    ]
    assert result["loras"] == used
    call = served.backend.orders[-1].call
    assert call.params["loras"] == used
    assert "loras/ink.safetensors" in call.models


async def test_an_async_call_answers_its_id_at_once(held: Gateway) -> None:
    answer = await held.http.post("/api/generate/async", json=SMALL)
    assert answer.status_code == 202
    job_id = answer.json()["job_id"]
    assert answer.json() == {"job_id": job_id, "status": "pending", "eta_seconds": None}
    assert answer.headers["location"] == f"/api/generate/{job_id}"
    held.backend.gate.set()
    job = (await held.http.get(f"/api/generate/{job_id}", params={"wait": 30})).json()
    assert job["status"] == "completed"


async def test_a_job_view_has_every_field_of_the_contract(held: Gateway) -> None:
    job_id = (await held.http.post("/api/generate/async", json=SMALL)).json()["job_id"]
    job = (await held.http.get(f"/api/generate/{job_id}")).json()
    assert {"job_id", "status", "progress", "result", "error"} <= set(job)
    assert {"created_at", "started_at", "finished_at", "tool", "variant", "events_url"} <= set(job)
    assert job["created_at"].endswith("Z")
    assert (job["result"], job["error"], job["finished_at"]) == (None, None, None)
    held.backend.gate.set()
    done = (await held.http.get(f"/api/generate/{job_id}?wait=30")).json()
    assert (done["progress"], done["status"]) == (1.0, "completed")
    assert done["result"]["image_url"]
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]


@pytest.mark.parametrize(("prefer", "applied"), [("wait=0", "wait=0"), ("respond-async",) * 2])
async def test_a_call_that_is_not_done_in_time_is_a_202_with_the_job(
    held: Gateway, prefer: str, applied: str
) -> None:
    answer = await post(held, SMALL, Prefer=prefer)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == applied
    job = answer.json()
    assert answer.headers["location"] == f"/api/generate/{job['job_id']}"
    assert job["status"] in {"pending", "processing"}
    held.backend.gate.set()
    done = (await held.http.get(answer.headers["location"], params={"wait": 30})).json()
    assert done["result"]["job_id"] == job["job_id"]


@pytest.mark.parametrize(
    ("kind", "code", "status"),
    [
        ("usage", "invalid_input", 422),
        ("fatal", "missing_model", 503),
        ("fatal", "timeout", 504),
        ("fatal", "execution_failed", 502),
    ],
)
async def test_a_job_that_fails_while_a_call_waits_answers_its_own_error(
    served: Gateway, kind: Any, code: str, status: int
) -> None:
    served.backend.fails = Failure(kind=kind, code=code, message="It went wrong.")
    answer = await post(served, SMALL)
    problem = answer.json()
    assert (answer.status_code, problem["status"]) == (status, status)
    assert (problem["code"], problem["detail"]) == (code, "It went wrong.")
    job = (await served.http.get(f"/api/generate/{problem['job_id']}")).json()
    assert job["status"] == "failed"
    assert job["error"] == {"code": code, "message": "It went wrong."}


async def test_cancelling_a_job_ends_the_call_that_waits_for_it(held: Gateway) -> None:
    waiting = asyncio.create_task(post(held, SMALL))
    await held.backend.begun.wait()
    jobs = (await held.http.get("/api/jobs")).json()["items"]
    await held.http.post(f"/api/jobs/{jobs[0]['job_id']}/cancel")
    answer = await waiting
    assert answer.status_code == 409
    assert answer.json()["code"] == "cancelled"
    assert answer.json()["title"] == "The job was cancelled"


async def test_stopping_the_process_answers_those_who_wait_with_their_job(held: Gateway) -> None:
    waiting = asyncio.create_task(post(held, SMALL))
    await held.backend.begun.wait()
    held.context.stopping.set()
    assert (await waiting).status_code == 202


async def test_the_same_key_and_body_find_the_same_job(served: Gateway) -> None:
    key = str(uuid.uuid4())
    first = (await post(served, SMALL, Idempotency_Key=key)).json()
    again = (await post(served, SMALL, Idempotency_Key=key)).json()
    assert first["job_id"] == again["job_id"]
    assert first["generation_params"]["seed"] == again["generation_params"]["seed"]
    other = await post(served, SMALL | {"seed": 1}, Idempotency_Key=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len(served.backend.orders) == 1


async def test_a_key_finds_its_job_whatever_the_installation_has_lost_since(
    served: Gateway,
) -> None:
    model = {"name": "mug", "lora": "style.safetensors", "base_model": "flux1-dev"}
    model_id = (await served.http.post("/api/models", json=model)).json()["id"]
    body = SMALL | {"model_id": model_id, "loras": [{"name": "ink.safetensors"}]}
    first = await post(served, body, Idempotency_Key="again")
    served.backend.states["flux1-dev"] = "missing"
    served.backend.installed = {}
    again = await post(served, body, Idempotency_Key="again")
    assert (again.status_code, again.json()["job_id"]) == (200, first.json()["job_id"])
    other = await post(served, body | {"seed": 1}, Idempotency_Key="again")
    assert other.json()["code"] == "idempotency_key_reused"
    assert (await post(served, SMALL, Idempotency_Key="new")).status_code == 503


@pytest.mark.parametrize("key", ["", "k" * 256])
async def test_an_idempotency_key_of_wrong_length_is_refused(served: Gateway, key: str) -> None:
    answer = await post(served, SMALL, Idempotency_Key=key)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "idempotency-key"


async def test_a_registered_model_brings_its_lora_and_its_variant(served: Gateway) -> None:
    body = {"name": "mug", "lora": "style.safetensors", "base_model": "z-image-turbo"}
    model_id = (await served.http.post("/api/models", json=body)).json()["id"]
    result = (await post(served, SMALL | {"model_id": model_id, "lora_scale": 0.5})).json()
    assert (result["model_id"], result["variant"]) == (model_id, "z-image-turbo")
    assert result["loras"] == [{"name": "style.safetensors", "scale": 0.5}]
    assert result["generation_params"]["lora_scale"] == 0.5
    clash = await post(served, SMALL | {"model_id": model_id, "variant": "flux1-dev"})
    assert clash.json()["errors"][0]["field"] == "variant"
    clash = await post(served, SMALL | {"model_id": model_id, "base_model": "flux1-dev"})
    assert clash.json()["errors"][0]["field"] == "base_model"


async def test_a_model_whose_base_is_gone_is_refused_at_the_field_that_named_it(
    served: Gateway,
) -> None:
    base = "checkpoint:tiny.safetensors"
    body = {"name": "mug", "lora": "style.safetensors", "base_model": base}
    model_id = (await served.http.post("/api/models", json=body)).json()["id"]
    served.backend.installed = {"loras": frozenset({"style.safetensors"})}
    for sent, field in (({}, "model_id"), ({"base_model": base}, "base_model")):
        error = (await post(served, SMALL | {"model_id": model_id} | sent)).json()["errors"][0]
        assert (error["field"], "'tiny.safetensors'" in error["message"]) == (field, True)


async def test_a_job_of_another_tool_or_no_job_is_a_404(served: Gateway) -> None:
    for job_id in (str(uuid.uuid4()), "async", "x" * 90):
        answer = await served.http.get(f"/api/generate/{job_id}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
