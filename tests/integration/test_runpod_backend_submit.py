"""Submitting to RunPod: once, whatever becomes of the answer."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.base import BackendFull, BackendUnreachable, Order, RunFailed
from tests.support.runpod_double import API_KEY, Fault, Runpod, runpod
from tests.support.runpod_site import OURS, PUBLIC, SETTLING_S, Site, completed, runpod_site


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod(webhooks="lost") as double:
        yield double


@pytest.fixture
async def site(double: Runpod, tmp_path: Path) -> AsyncGenerator[Site]:
    async with runpod_site(double, tmp_path) as site:
        yield site


async def asked_again(site: Site, order: Order) -> str:
    """What the runner does after an unanswered start."""
    async with asyncio.timeout(120):
        while True:
            try:
                return await site.backend.start(replace(order, again=True))
            except BackendUnreachable:
                await asyncio.sleep(0.05)


async def test_a_worker_is_sent_all_it_needs_to_carry_the_run_out(site: Site) -> None:
    order = site.order(timeout_s=100)
    job = await site.started(order)
    assert job.input["run_id"] == order.run_id
    assert job.input["params"] == order.call.params
    assert job.input["graph"]
    assert job.input["manifest"]["tool"] == "generate"
    assert job.input["details"] is True
    assert not job.input.get("patient")
    told = str(job.input)
    assert OURS not in told
    assert job.input["outputs"][0]["url"].startswith(PUBLIC)
    assert job.input["receipt"]["get"].startswith(f"{PUBLIC}/api/slots/receipts/")
    assert job.webhook == f"{PUBLIC}/hook/{order.run_id}"
    assert API_KEY not in told
    assert job.execution_s == 400
    # what is left of the hour, and a little
    assert 3590 < job.ttl_s <= 3630


async def test_a_run_is_submitted_with_one_call(site: Site) -> None:
    await site.started(site.order())
    assert site.double.calls["run"] == 1
    assert len(site.double.endpoint.jobs) == 1


@pytest.mark.parametrize("status", [500, 502, None], ids=str)
async def test_a_submit_that_was_carried_out_and_not_answered_is_found_by_its_receipt(
    site: Site, status: int | None
) -> None:
    site.double.faults.append(Fault(op="run", status=status, after=True))
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    # it waits in the queue: longer than a submit takes to show, and is not paid for again
    with pytest.raises(BackendUnreachable):
        await site.backend.start(replace(order, again=True))
    await asyncio.sleep(1.5 * SETTLING_S)
    with pytest.raises(BackendUnreachable, match="may have been taken"):
        await site.backend.start(replace(order, again=True))
    job = site.taken()
    await site.note(order.run_id, job=job.id)
    assert await site.backend.start(replace(order, again=True)) == job.id
    assert site.double.calls["run"] == 1


async def test_a_submit_that_was_not_carried_out_is_made_again_once_that_is_sure(
    site: Site,
) -> None:
    site.double.faults.append(Fault(op="run", status=500))
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    reference = await asked_again(site, order)
    assert list(site.double.endpoint.jobs) == [reference]
    assert site.double.calls["run"] == 2


async def test_jobs_of_other_runs_do_not_hide_one_that_was_taken_unanswered(site: Site) -> None:
    other, done = await site.started(site.order()), await site.started(site.order())
    assert site.taken() is other
    site.tells(site.taken(), output={})
    assert done.over
    site.double.faults.append(Fault(op="run", status=500, after=True))
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    await asyncio.sleep(1.5 * SETTLING_S)
    # two are unfinished, and only one of the two that are known can be one of them
    with pytest.raises(BackendUnreachable, match="may have been taken"):
        await site.backend.start(replace(order, again=True))
    site.double.endpoint.cancel(list(site.double.endpoint.jobs.values())[-1])
    await site.backend.start(replace(order, again=True))
    assert site.double.calls["run"] == 4


async def test_another_process_looks_before_it_submits(
    site: Site, double: Runpod, tmp_path: Path
) -> None:
    order = site.order()
    reference = await site.backend.start(order)
    async with runpod_site(double, tmp_path, rows=site.rows) as next_site:
        with pytest.raises(BackendUnreachable):
            await next_site.backend.start(replace(order, again=True))
        await site.note(order.run_id, job=reference)
        assert await next_site.backend.start(replace(order, again=True)) == reference
    assert double.calls["run"] == 1


async def test_a_run_that_ended_meanwhile_is_adopted_with_its_end(site: Site) -> None:
    order = site.order(again=True)
    await site.note(order.run_id, job="gone-u1", status=completed(order.run_id))
    reference = await site.backend.start(order)
    produced = await site.follower(order.run_id, reference).produced()
    assert [output.slot for output in produced.outputs] == ["images/0"]
    assert site.double.calls["run"] == 0


async def test_too_many_submits_make_it_full_for_a_moment_and_cost_nothing(site: Site) -> None:
    site.double.rates["run"] = 0
    with pytest.raises(BackendFull):
        await site.backend.start(site.order())
    assert site.backend.capacity == 3
    assert not site.double.endpoint.jobs


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_an_endpoint_that_refuses_us_takes_no_more_runs_until_it_answers(
    site: Site, status: int
) -> None:
    site.double.faults.append(Fault(op="run", status=status))
    with pytest.raises(BackendFull):
        await site.backend.start(site.order())
    assert site.backend.capacity == 0
    assert str(status) in (site.backend.trouble or "")
    await site.backend.look()
    assert site.backend.capacity == 3
    assert site.backend.trouble is None


async def test_a_wrong_key_is_said_without_the_key(double: Runpod, tmp_path: Path) -> None:
    key = "rpa_not-the-key"
    async with runpod_site(double, tmp_path, key=key) as site:
        assert site.backend.capacity == 0
        assert "RUNPOD_API_KEY" in (site.backend.trouble or "")
        assert key not in (site.backend.trouble or "")
        assert (readiness := site.backend.readiness("checkpoint", "")) is not None
        assert readiness.readiness == "unknown"


async def test_an_endpoint_nobody_answers_for_is_known_not_to_have_taken_it(
    double: Runpod, tmp_path: Path
) -> None:
    async with runpod_site(double, tmp_path, url="http://127.0.0.1:9/v2/ep0test") as site:
        with pytest.raises(BackendFull):
            await site.backend.start(site.order())
        assert site.backend.capacity == 0


@pytest.mark.parametrize("status", [400, 413])
async def test_a_request_that_is_refused_fails_its_job(site: Site, status: int) -> None:
    site.double.faults.append(Fault(op="run", status=status))
    with pytest.raises(RunFailed) as failed:
        await site.backend.start(site.order())
    assert (failed.value.failure.code, failed.value.failure.kind) == ("request_refused", "fatal")
    assert not failed.value.executed


async def test_a_call_larger_than_runpod_takes_is_not_sent(site: Site) -> None:
    with pytest.raises(RunFailed) as failed:
        await site.backend.start(site.order(prompt="x" * 10_000_000))
    assert failed.value.failure.code == "request_too_large"
    assert site.double.calls["run"] == 0


async def test_a_call_of_a_former_workflow_is_not_sent(site: Site) -> None:
    order = site.order()
    changed: dict[str, Any] = {"digest": "0" * 64}
    with pytest.raises(RunFailed) as failed:
        await site.backend.start(replace(order, call=replace(order.call, **changed)))
    assert failed.value.failure.code == "workflow_changed"
    assert site.double.calls["run"] == 0


async def test_an_answer_that_is_not_runpods_is_no_answer(site: Site) -> None:
    site.double.faults.append(Fault(op="run", status=200))
    with pytest.raises(BackendUnreachable):
        await site.backend.start(site.order())
