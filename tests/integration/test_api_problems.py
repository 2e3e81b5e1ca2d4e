"""Wrong calls: each gets a problem that names the field and the way out."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.db import DatabaseUnavailable
from tests.support.gateway import KEY, SMALL, Gateway, ScriptedBackend, gateway


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


async def refused(served: Gateway, body: object, status: int = 422) -> dict[str, Any]:
    answer = await served.http.post("/api/generate", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == f"/docs/errors#{problem['code']}"
    assert problem["instance"] == "/api/generate"
    assert not served.backend.orders
    return problem


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"width": 833}, "width", "must be a multiple of 16: use 832 or 848"),
        ({"num_inference_steps": 0}, "num_inference_steps", "must be at least 1"),
        ({"seed": -1}, "seed", "must be at least 0"),
        ({"guidance_scale": 31}, "guidance_scale", "must be at most 30"),
        ({"steps": 4}, "steps", "is not a parameter here: remove it"),
        ({"prompt": None}, "prompt", "must be text"),
        ({"width": "wide"}, "width", "must be a whole number"),
        ({"width": 256.5}, "width", "must be a whole number"),
        ({"loras": [{"nam": "x"}]}, "loras.0.name", "is required"),
        ({"loras": "x"}, "loras", "must be a list"),
        ({"model_id": 99}, "model_id", "no trained model has that id"),
        ({"loras": [{"name": "../x"}]}, "loras.0.name", "is not among the loras"),
        ({"variant": "sdxl"}, "variant", "use one of flux1-dev, checkpoint:<file>, z-image"),
        ({"variant": "checkpoint"}, "variant", "use one of"),
        ({"variant": "flux1-dev:x"}, "variant", "use one of"),
        ({"variant": "checkpoint:no.ckpt"}, "variant", "'no.ckpt' is not among the checkpoints"),
        ({"base_model": "sdxl"}, "base_model", "use one of flux1-dev"),
        ({"base_model": "flux1-dev", "variant": "z-image-turbo"}, "base_model", "two names"),
        ({"variant": ""}, "variant", "must not be empty"),
        ({"variant": "a\nb"}, "variant", "must not contain control characters"),
        ({"prompt": ""}, "prompt", "must not be empty"),
        ({"prompt": " \n"}, "prompt", "must not be blank"),
        ({"width": True}, "width", "must be a whole number"),
        ({"width": "512"}, "width", "must be a whole number"),
        ({"guidance_scale": True}, "guidance_scale", "must be a number"),
        ({"base_model": "z-image-turbo", "negative_prompt": "x"}, "negative_prompt", "no such"),
        ({"variant": "z-image-turbo", "num_inference_steps": 60}, "num_inference_steps", "most 50"),
    ],
)
async def test_the_problem_names_the_field_and_the_fix(
    served: Gateway, change: dict[str, Any], field: str, message: str
) -> None:
    problem = await refused(served, SMALL | change)
    error = problem["errors"][0]
    assert error["field"] == field
    assert message in error["message"]
    assert field in problem["detail"]


async def test_a_huge_prompt_is_refused_without_being_sent_back(served: Gateway) -> None:
    problem = await refused(served, {"prompt": "a" * 200_000})
    assert problem["errors"][0]["message"] == "must be at most 8000 characters long"
    assert len(str(problem)) < 1000


async def test_a_huge_field_name_is_cut_in_the_answer(served: Gateway) -> None:
    problem = await refused(served, {"prompt": "a"} | {f"{n}" * 5000: 1 for n in range(40)})
    assert len(problem["errors"]) == 20
    assert len(str(problem)) < 10_000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": ', "is not valid JSON"),
        (b'{"prompt": "a\nb"}', "Invalid control character at character 13"),
        (b"[1]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"", "is required"),
        (b"\x80{}", "could not be read as JSON"),
        (b"[" * 100_000, "could not be read as JSON"),
    ],
)
async def test_a_body_that_is_no_json_object_is_a_422(
    served: Gateway, body: bytes, message: str
) -> None:
    answer = await served.http.post(
        "/api/generate", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    error = answer.json()["errors"][0]
    assert error["field"] == "body"
    assert message in error["message"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_another_media_type_is_a_415(served: Gateway, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    answer = await served.http.post("/api/generate", content=b'{"prompt": "a"}', headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_json_with_a_charset_or_a_suffix_is_json(served: Gateway) -> None:
    for media_type in ("application/json; charset=utf-8", "application/vnd.x+json"):
        answer = await served.http.post(
            "/api/generate/async", content=b'{"prompt": "a"}', headers={"Content-Type": media_type}
        )
        assert answer.status_code == 202


@pytest.mark.parametrize("stated", [True, False])
async def test_a_body_beyond_the_limit_is_a_413(served: Gateway, stated: bool) -> None:  # noqa: FBT001  # parametrised
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    content = b" " * 2_000_000 if stated else pieces()
    answer = await served.http.post(
        "/api/generate", content=content, headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "payload_too_large")
    assert "1000000 bytes" in answer.json()["detail"]


async def test_an_unknown_route_is_a_404_and_a_wrong_method_a_405(served: Gateway) -> None:
    missing = await served.http.get("/api/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    wrong = await served.http.put("/api/generate", json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/models", ["GET", "POST"]),
        ("PUT", "/api/jobs/01890000-0000-7000-8000-000000000000", ["GET", "DELETE"]),
        ("POST", "/api/images/x.png", ["GET", "HEAD"]),
        ("DELETE", "/docs", ["GET"]),
    ],
)
async def test_a_405_names_every_method_of_the_path(
    served: Gateway, method: str, path: str, allowed: list[str]
) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == ", ".join(allowed)
    assert f"use {' or '.join(allowed)}." in answer.json()["detail"]


async def test_an_id_or_name_that_is_none_of_ours_is_a_404_at_any_length(served: Gateway) -> None:
    for path in ("/api/jobs/", "/api/generate/", "/generate/", "/api/images/", "/api/tools/"):
        for name in ("x", "x" * 1000):
            answer = await served.http.get(path + name)
            assert (answer.status_code, len(answer.text) < 1000) == (404, True), path


async def test_a_browser_that_knows_only_the_address_finds_the_documentation(
    served: Gateway,
) -> None:
    for path in ("/", "/docs/"):
        answer = await served.stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/docs")


async def test_without_the_key_nothing_is_read_and_nothing_is_told(served: Gateway) -> None:
    for path in ("/api/generate", "/api/nothing", "/api/jobs", "/generate"):
        answer = await served.stranger.post(path, content=b"{", headers={"X-Request-Id": "r-1"})
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"] == "r-1"
    for header in ("Bearer wrong", f"Basic {KEY}", "Bearer", f"{KEY}"):
        answer = await served.stranger.get("/api/jobs", headers={"Authorization": header})
        assert answer.status_code == 401


async def test_health_and_documentation_are_open(served: Gateway) -> None:
    for path in ("/health", "/livez", "/readyz", "/docs", "/docs/errors", "/openapi.json"):
        assert (await served.stranger.get(path)).status_code == 200, path


async def test_a_gateway_without_a_key_is_open_to_all(tmp_path: Path) -> None:
    async with gateway(tmp_path, key=None) as served:
        assert (await served.stranger.get("/api/jobs")).status_code == 200


async def test_a_missing_model_is_a_503_before_anything_is_queued(tmp_path: Path) -> None:
    backend = ScriptedBackend(states={"flux1-dev": "missing"})
    async with gateway(tmp_path, backend) as served:
        problem = await refused(served, SMALL, status=503)
        assert problem["code"] == "missing_model"
        assert problem["missing"] == [
            {
                "kind": "model",
                "name": "flux1-dev.safetensors",
                "directory": "diffusion_models",
                "url": "https://example.com/flux1-dev.safetensors",
                "bytes": 23_800_000_000,
                "license": "FLUX.1 [dev] Non-Commercial License",
            }
        ]
        for said in ("diffusion_models/flux1-dev.safetensors", "23.8 GB", "z-image-turbo"):
            assert said in problem["detail"]
        assert (await served.http.get("/api/jobs")).json()["items"] == []


async def test_work_is_taken_while_no_gpu_service_was_seen(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("flux1-dev", "z-image-turbo", "checkpoint"), "unknown")
    backend = ScriptedBackend(states=dict.fromkeys(unknown, "unknown"), capacity=0, installed=None)
    async with gateway(tmp_path, backend) as served:
        body = SMALL | {"variant": "checkpoint:any.safetensors", "loras": [{"name": "any"}]}
        answer = await served.http.post("/api/generate/async", json=body)
        assert answer.json()["status"] == "pending"


async def test_a_request_id_is_passed_on_or_made(served: Gateway) -> None:
    sent = await served.http.get("/livez", headers={"X-Request-Id": "abc-123"})
    assert sent.headers["x-request-id"] == "abc-123"
    for bad in ("a b", "x" * 200, "<script>"):
        made = await served.http.get("/livez", headers={"X-Request-Id": bad})
        assert made.headers["x-request-id"] != bad


async def test_a_bug_is_a_500_that_says_nothing_of_its_inside(
    served: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(served.context.jobs), "get", broken)
    answer = await served.http.get("/api/jobs/01890000-0000-7000-8000-000000000000")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret detail" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.json()["detail"]
    assert any(request_id in r.getMessage() and r.exc_info for r in caplog.records)


async def test_an_allowed_origin_may_call_and_no_other(tmp_path: Path) -> None:
    async with gateway(tmp_path, cors_origins="https://app.example.com") as served:
        asked = {"Access-Control-Request-Method": "POST"}
        good = await served.stranger.options(
            "/api/generate", headers=asked | {"Origin": "https://app.example.com"}
        )
        assert good.headers["access-control-allow-origin"] == "https://app.example.com"
        bad = await served.stranger.options(
            "/api/generate", headers=asked | {"Origin": "https://evil.example.com"}
        )
        assert "access-control-allow-origin" not in bad.headers


async def test_a_database_that_does_not_answer_is_a_503_that_says_when_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(tmp_path) as served:

        async def away(job_id: str) -> None:
            raise DatabaseUnavailable(job_id)

        monkeypatch.setattr(served.context.jobs, "get", away)
        answer = await served.http.get("/api/jobs/00000000-0000-7000-8000-000000000000")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == str(answer.json()["retry_after"]) == "5"
