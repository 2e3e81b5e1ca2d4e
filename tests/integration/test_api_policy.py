"""Whichever route a call comes by, it passes the policy before anything is queued."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.access import CALLER
from tests.support.gateway import SMALL, Gateway, gateway

Json = dict[str, Any]
REFUSED = SMALL | {"prompt": "a quokka, undress her"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path) as running:
        yield running


async def refused(
    served: Gateway, caplog: pytest.LogCaptureFixture, path: str, body: Json, **headers: str
) -> Json:
    """Send a call that must be refused; nothing of it is kept, answered or logged."""
    caplog.clear()
    caplog.set_level("DEBUG")
    answer = await served.http.post(
        path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (await served.http.get("/api/jobs")).json()["items"] == []
    assert (await served.http.get("/api/batches")).json()["items"] == []
    assert not served.backend.orders
    assert "quokka" not in answer.text
    assert "quokka" not in caplog.text
    lines = [r.getMessage() for r in caplog.records if "refused by the policy" in r.getMessage()]
    assert len(lines) >= 1
    for line in lines:
        assert "tool=generate variant=flux1-dev" in line
        assert f"rule=undressing caller={CALLER}" in line
    return dict(answer.json())


@pytest.mark.parametrize("path", ["/api/generate", "/api/generate/async"])
async def test_a_tools_routes(served: Gateway, caplog: pytest.LogCaptureFixture, path: str) -> None:
    problem = await refused(served, caplog, path, REFUSED)
    assert problem["code"] == "policy_violation"
    assert problem["type"] == "/docs/errors#policy_violation"
    (error,) = problem["errors"]
    assert (error["field"], error["code"]) == ("prompt", "policy_violation")


async def test_a_batch_is_refused_whole_and_names_the_item(
    served: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"tool": "generate", "items": [SMALL, REFUSED, SMALL, REFUSED]}
    problem = await refused(served, caplog, "/api/batches", body)
    found = [(error["field"], error["code"]) for error in problem["errors"]]
    assert found == [
        ("items.1.prompt", "policy_violation"),
        ("items.3.prompt", "policy_violation"),
    ]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": REFUSED["prompt"]}, "prompt"),
        ({"prompt": "a quokka, undress", "style": "her"}, "prompt"),
        ({"extra_params": {"prompt": REFUSED["prompt"]}}, "extra_params.prompt"),
    ],
)
async def test_a_mode(
    served: Gateway, caplog: pytest.LogCaptureFixture, body: Json, field: str
) -> None:
    problem = await refused(served, caplog, "/generate", {"mode": "free"} | body)
    assert problem["code"] == "policy_violation"
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_a_refused_key_is_free_for_a_call_that_passes(
    served: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    await refused(served, caplog, "/api/generate", REFUSED, Idempotency_Key="k")
    answer = await served.http.post("/api/generate", json=SMALL, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 200


async def test_no_option_of_a_call_switches_it_off(
    served: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    for option in ("policy", "safety_checker", "enable_safety_checker"):
        answer = await served.http.post("/api/generate", json=REFUSED | {option: False})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == option
    await refused(served, caplog, "/api/generate", REFUSED | {"priority": 100})


async def test_clothes_removal_is_no_mode(served: Gateway) -> None:
    answer = await served.http.post("/generate", json={"mode": "clothes_removal", "prompt": "a"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "unknown_mode")


async def test_the_routes_that_make_jobs_document_it(served: Gateway) -> None:
    paths = (await served.stranger.get("/openapi.json")).json()["paths"]
    for path in ("/api/generate", "/api/generate/async", "/generate", "/api/batches"):
        described = paths[path]["post"]["responses"]["422"]["description"]
        assert "`policy_violation`" in described, path
