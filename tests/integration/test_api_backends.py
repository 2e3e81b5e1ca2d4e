"""`backend` on a call, and where work goes by the settings, as callers see it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.base import WorkflowReadiness
from gateway.examples import MUG
from gateway.job import new_job_id
from gateway.own_workflows.example import EXAMPLE
from tests.support.gateway import SMALL, Gateway, ScriptedBackend, gateway

Json = dict[str, Any]
PATIENCE_S = 120


class Serverless(ScriptedBackend):
    """It carries out the tools it is for, and nothing else."""

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness | None:  # type: ignore[override]  # the protocol allows None
        if workflow.startswith(("own.", "cpu:")):
            return None
        return super().readiness(workflow, digest)


def serverless(**changes: Any) -> Serverless:
    made = Serverless(name="runpod:a1", kind="runpod", billed=True, installed=None, **changes)
    made.gate.set()
    return made


def served(
    folder: Path, *others: ScriptedBackend, **env: Any
) -> AbstractAsyncContextManager[Gateway]:
    return gateway(folder / "workspace", others=others, **env)


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with served(tmp_path, serverless()) as running:
        yield running


async def generate(running: Gateway, **options: Any) -> Json:
    answer = await running.http.post(
        "/api/generate", json={**SMALL, **options}, headers={"Prefer": f"wait={PATIENCE_S}"}
    )
    return {"status_code": answer.status_code, **answer.json()}


async def reasons(running: Gateway, job_id: str) -> list[tuple[str, str]]:
    log = [event async for event in running.context.jobs.watch(job_id)]
    return [(e.data["backend"], e.data["reason"]) for e in log if e.type == "processing"]  # type: ignore[misc]


async def test_a_call_says_where_it_is_carried_out(both: Gateway) -> None:
    usual, asked, named = (
        await generate(both),
        await generate(both, backend="runpod"),
        await generate(both, backend="runpod:a1"),
    )
    assert [made["backend"] for made in (usual, asked, named)] == [
        "scripted",
        "runpod:a1",
        "runpod:a1",
    ]
    assert await reasons(both, usual["job_id"]) == [("scripted", "first choice")]
    assert await reasons(both, named["job_id"]) == [("runpod:a1", "asked for by the call")]


async def test_its_reason_is_told_by_the_jobs_events(both: Gateway) -> None:
    job_id = (await generate(both))["job_id"]
    told = await both.http.get(f"/api/jobs/{job_id}/events")
    assert '"reason":"first choice"' in told.text.replace(": ", ":")


async def test_media_of_a_card_are_made_where_the_form_says(both: Gateway) -> None:
    form = {"card_id": "card-1", "prompt": "a mug", "media_type": "image"}
    for backend, made_by in (("", "scripted"), ("runpod", "runpod:a1")):
        answer = await both.http.post("/api/media/generate", data={**form, "backend": backend})
        assert answer.status_code == 200, answer.text
        told = await reasons(both, answer.json()["job_id"])
        assert [name for name, _ in told] == [made_by]
    refused = await both.http.post("/api/media/generate", data={**form, "backend": "fal"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_backend")


@pytest.mark.parametrize("word", ["fal", "cpu", "runpod:other"])
async def test_a_backend_that_cannot_carry_the_tool_out_is_refused_with_those_that_can(
    both: Gateway, word: str
) -> None:
    answer = await generate(both, backend=word)
    assert (answer["status_code"], answer["code"]) == (422, "unknown_backend")
    assert answer["errors"] == [
        {
            "field": "backend",
            "code": "unknown_backend",
            "message": "use one of gpu, runpod, scripted, runpod:a1",
        }
    ]


async def test_a_batch_goes_where_its_call_says_and_is_refused_once_for_all_items(
    both: Gateway,
) -> None:
    batch: Json = {"tool": "generate", "items": [SMALL] * 3, "backend": "runpod"}
    answer = await both.http.post("/api/batches", json=batch)
    assert answer.status_code == 202, answer.text
    path = f"/api/batches/{answer.json()['batch_id']}"
    done = (await both.http.get(path, params={"wait": PATIENCE_S})).json()
    assert done["counts"]["completed"] == 3, done
    assert both.backend.orders == []
    refused = await both.http.post("/api/batches", json={**batch, "backend": "fal"})
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_backend")
    assert [error["field"] for error in refused.json()["errors"]] == ["backend"]


async def test_what_the_asked_backend_lacks_is_refused_though_another_has_it(
    tmp_path: Path,
) -> None:
    lacking = serverless()
    async with served(tmp_path, lacking) as running:
        for workflow in running.context.catalogue.workflows:
            lacking.states[workflow] = "missing"
        assert (await generate(running))["status_code"] == 200
        answer = await generate(running, backend="runpod")
        assert (answer["status_code"], answer["code"]) == (503, "missing_model")
        assert "no backend of runpod has" in answer["detail"]


async def test_what_no_backend_ever_carries_out_is_refused_at_once_and_shown_as_missing(
    tmp_path: Path,
) -> None:
    endpoint = {"runpod_api_key": "key", "runpod_endpoint_id": "a1"}
    address = {"public_url": "https://gateway.example.com"}
    only: Json = {"backends": ("runpod",), "own_workflows": True, **endpoint, **address}
    async with gateway(tmp_path / "workspace", serverless(), **only) as alone:
        assert (await generate(alone))["status_code"] == 200
        sent = await alone.http.post("/api/workflows", json={**EXAMPLE, "name": "mine"})
        assert (sent.status_code, sent.json()["readiness"]) == (201, "missing"), sent.text
        answer = await alone.http.post("/api/workflows/mine/run", json={"picture": MUG})
        assert (answer.status_code, answer.json()["code"]) == (503, "no_backend"), answer.text
        assert "BACKENDS" in answer.json()["detail"]
        assert "retry-after" not in answer.headers


async def test_a_tool_whose_order_names_no_backend_there_is_is_refused(tmp_path: Path) -> None:
    orders = (("generate", ("runpod",)),)
    async with served(tmp_path, tool_backends=orders) as running:
        assert (await generate(running))["code"] == "no_backend"
        shown = (await running.http.get("/api/tools/generate")).json()
        assert shown["readiness"] == "missing"


async def test_what_no_order_of_the_settings_names_makes_nothing_ready(tmp_path: Path) -> None:
    async with served(tmp_path, serverless(), backends=("gpu",)) as running:
        for workflow in running.context.catalogue.workflows:
            running.backend.states[workflow] = "missing"
        assert (await generate(running))["status_code"] == 503
        # a call may ask for it all the same
        assert (await generate(running, backend="runpod"))["backend"] == "runpod:a1"


async def test_a_tool_goes_where_its_own_order_says(tmp_path: Path) -> None:
    orders = (("generate", ("runpod", "gpu")),)
    async with served(tmp_path, serverless(), tool_backends=orders) as running:
        assert (await generate(running))["backend"] == "runpod:a1"


async def test_work_goes_to_the_next_choice_while_the_first_is_away(tmp_path: Path) -> None:
    async with served(tmp_path, serverless(), fallback_after_s=0) as running:
        running.backend.capacity = 0
        made = await generate(running)
        assert made["backend"] == "runpod:a1"
        assert await reasons(running, made["job_id"]) == [
            ("runpod:a1", "scripted has not answered for 0 s")
        ]
        running.backend.capacity = 4
        assert (await generate(running))["backend"] == "scripted"


async def test_estimates_count_the_reserve_only_while_it_is_used(tmp_path: Path) -> None:
    async with served(tmp_path, serverless(capacity=3)) as running:
        catalogue = running.context.catalogue
        assert catalogue.executes_at_once("generate") == 1
        assert catalogue.goes_as_usual("generate", ("gpu",))
        assert not catalogue.goes_as_usual("generate", ("runpod",))
        running.backend.capacity = 0
        assert catalogue.executes_at_once("generate") == 3
        assert catalogue.share_places("generate", "video")
        assert not catalogue.share_places("generate", "rescale")


async def test_an_idempotency_key_with_another_backend_is_another_request(both: Gateway) -> None:
    headers = {"Idempotency-Key": new_job_id()}
    for backend, status in (("gpu", 200), ("gpu", 200), ("runpod", 422)):
        answer = await both.http.post(
            "/api/generate", json={**SMALL, "backend": backend}, headers=headers
        )
        assert answer.status_code == status, answer.text
