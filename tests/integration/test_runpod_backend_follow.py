"""Following a run at RunPod: what each of its states, and the lack of one, means."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.backends.base import (
    BackendError,
    BackendUnreachable,
    Order,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gpu_server.protocol import Failure, RunStatus
from tests.support.runpod_double import Fault, Runpod, runpod
from tests.support.runpod_jobs import Job
from tests.support.runpod_site import Followed, Site, as_json, completed, runpod_site

DONE = "images/0"


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod(webhooks="lost") as double:
        yield double


@pytest.fixture
async def site(double: Runpod, tmp_path: Path) -> AsyncGenerator[Site]:
    async with runpod_site(double, tmp_path) as site:
        yield site


async def running(site: Site) -> tuple[Order, Job, Followed]:
    """A run that a worker has taken, and that is seen to."""
    order = site.order()
    job = await site.started(order)
    assert site.taken() is job
    await site.note(order.run_id, job=job.id)
    follower = site.follower(order.run_id, job.id)
    site.progress(job, 1, 0.25)
    await follower.until_seen(1)
    return order, job, follower


async def end_of(follower: Followed) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await follower.produced()
    return caught.value


def failure(error: BackendError) -> tuple[str, str, bool]:
    assert isinstance(error, RunFailed), repr(error)
    return error.failure.code, error.failure.kind, error.executed


def told(code: str, kind: Any = "fatal", message: str = "as it is") -> str:
    return Failure(kind=kind, code=code, message=message).model_dump_json()


async def test_a_run_is_seen_waiting_then_getting_on_and_never_back_and_then_done(
    site: Site,
) -> None:
    order = site.order()
    job = await site.started(order)
    follower = site.follower(order.run_id, job.id)
    await follower.until_seen(1)
    assert follower.seen[0].fraction == 0
    site.taken()
    site.progress(job, 1, 0.5)
    await follower.until_seen(2)
    site.progress(job, 2, 0.25)
    site.backend.look_now(order.run_id)
    site.progress(job, 3, 0.75)
    await follower.until_seen(3)
    site.tells(job, output=as_json(completed(order.run_id)))
    produced = await follower.produced()
    assert [output.slot for output in produced.outputs] == [DONE]
    assert produced.params == {"seed": 7}
    assert produced.engine == site.backend.engine == "simulator"
    assert [progress.fraction for progress in follower.seen] == [0, 0.5, 0.75]


async def test_a_run_is_gone_on_with_after_a_restart(site: Site, tmp_path: Path) -> None:
    order, job, follower = await running(site)
    follower.task.cancel()
    async with runpod_site(site.double, tmp_path, rows=site.rows) as next_site:
        follower = next_site.follower(order.run_id, job.id)
        await follower.until_seen(1)
        assert follower.seen[0].fraction == 0.25
        site.tells(job, output=as_json(completed(order.run_id)))
        await follower.produced()
    assert site.double.calls["run"] == 1


@pytest.mark.parametrize("oversize", ["empty", "hang"])
async def test_a_result_runpod_dropped_is_read_from_the_receipt(site: Site, oversize: Any) -> None:
    site.double.endpoint.oversize, site.double.endpoint.result_bytes = oversize, 10
    order, job, follower = await running(site)
    await site.note(order.run_id, job=job.id, status=completed(order.run_id))
    assert site.tells(job, output=as_json(completed(order.run_id))) == 400
    if oversize == "hang":
        # until the execution's own limit
        site.double.endpoint.advance(job.execution_s + 1)
    produced = await follower.produced()
    assert [output.slot for output in produced.outputs] == [DONE]


@pytest.mark.parametrize("output", [None, {}, "done", {"run_id": "x", "receipt": True}], ids=str)
async def test_a_result_that_is_nowhere_fails_the_job_and_is_not_made_again(
    site: Site, output: Any
) -> None:
    _, job, follower = await running(site)
    site.tells(job, output=output)
    assert failure(await end_of(follower)) == ("result_missing", "fatal", True)


@pytest.mark.parametrize("noted", [True, False])
async def test_a_run_that_runpod_has_forgotten_is_known_by_its_receipt(
    site: Site, *, noted: bool
) -> None:
    order, job, follower = await running(site)
    follower.task.cancel()
    if noted:
        await site.note(order.run_id, job=job.id, status=completed(order.run_id))
    site.tells(job, output=as_json(completed(order.run_id)))
    site.double.endpoint.advance(site.double.endpoint.retention_s + 1)
    follower = site.follower(order.run_id, job.id)
    if noted:
        assert (await follower.produced()).engine == "simulator"
    else:
        error = await end_of(follower)
        assert isinstance(error, RunLost)
        assert error.executed


async def test_a_run_that_was_purged_from_the_queue_is_lost_and_cost_nothing(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.post(f"{site.double.url}/purge-queue", headers=site.double.headers)
    error = await end_of(site.follower(order.run_id, job.id))
    assert isinstance(error, RunLost)
    assert not error.executed


async def test_an_endpoint_that_is_gone_loses_no_run(site: Site) -> None:
    order, job, follower = await running(site)
    site.double.endpoint_id = "another"
    assert isinstance(await end_of(follower), BackendUnreachable)
    site.double.endpoint_id = site.backend.name.removeprefix("runpod:")
    site.tells(job, output=as_json(completed(order.run_id)))
    await site.follower(order.run_id, job.id).produced()


@pytest.mark.parametrize("status", [401, 500, 503, None], ids=str)
async def test_no_answer_is_no_end(site: Site, status: int | None) -> None:
    order, job, follower = await running(site)
    site.double.faults.append(Fault(op="status", status=status))
    assert isinstance(await end_of(follower), BackendUnreachable)
    site.tells(job, output=as_json(completed(order.run_id)))
    await site.follower(order.run_id, job.id).produced()


async def test_too_many_looks_are_made_fewer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.backends.runpod_api._SLOW_S", 0.2)
    order, job, follower = await running(site)
    site.double.faults.append(Fault(op="status", status=429, times=3))
    site.tells(job, output=as_json(completed(order.run_id)))
    await follower.produced()


@pytest.mark.parametrize("kind", ["usage", "transient", "fatal"])
async def test_a_failure_is_told_as_the_worker_told_it(site: Site, kind: Any) -> None:
    order, job, follower = await running(site)
    status = RunStatus(
        run_id=order.run_id,
        state="failed",
        failure=Failure(kind=kind, code="out_of_memory", message="too large"),
        executed=True,
    )
    await site.note(order.run_id, job=job.id, status=status)
    site.tells(job, error=told("out_of_memory", kind))
    assert failure(await end_of(follower)) == ("out_of_memory", kind, True)


@pytest.mark.parametrize("code", ["lost", "comfyui_wedged"])
async def test_a_run_whose_comfyui_died_is_lost(site: Site, code: str) -> None:
    _, job, follower = await running(site)
    site.tells(job, error=told(code, "transient"))
    error = await end_of(follower)
    assert isinstance(error, RunLost)
    assert error.executed


async def test_what_a_broken_worker_says_reaches_nobody(site: Site) -> None:
    _, job, follower = await running(site)
    said = {"error_type": "OSError", "error_message": "/secret/place", "hostname": "pod-7"}
    site.tells(job, error=json.dumps(said))
    error = await end_of(follower)
    assert failure(error) == ("worker_failed", "transient", True)
    assert isinstance(error, RunFailed)
    assert "secret" not in str(error) + error.failure.message


async def test_a_job_another_one_was_faster_than_leads_to_that_one(site: Site) -> None:
    order, first = site.order(), await site.started(site.order())
    second = await site.started(order)
    await site.note(order.run_id, job=first.id)
    assert site.taken() is first
    assert site.taken() is second
    site.tells(second, error=told("taken_elsewhere", "transient"))
    follower = site.follower(order.run_id, second.id)
    site.progress(first, 1, 0.5)
    await follower.until_seen(1)
    site.tells(first, output=as_json(completed(order.run_id)))
    await follower.produced()


async def test_a_run_somebody_cancelled_at_runpod_is_cancelled(site: Site) -> None:
    _, job, follower = await running(site)
    site.double.endpoint.cancel(job)
    assert isinstance(await end_of(follower), RunCancelled)


async def test_a_run_whose_worker_died_is_lost_after_it_executed(site: Site) -> None:
    _, job, follower = await running(site)
    site.double.endpoint.workers["w1"].last -= site.double.endpoint.lost_after_s
    error = await end_of(follower)
    assert job.status == "TIMED_OUT"
    assert isinstance(error, RunLost)
    assert error.executed


async def test_a_run_that_took_longer_than_it_may_has_failed(site: Site) -> None:
    _, job, follower = await running(site)
    site.double.endpoint.advance(job.execution_s + 1)
    assert failure(await end_of(follower)) == ("timeout", "fatal", True)


@pytest.mark.parametrize("code", ["missing_model", "missing_node"])
async def test_an_endpoint_that_lacks_something_is_given_no_such_run_for_a_while(
    site: Site, code: str
) -> None:
    order = site.order()
    job = await site.started(order)
    site.taken()
    await site.note(order.run_id, job=job.id)
    looks: list[None] = []
    site.backend.on_change = lambda: looks.append(None)
    message = "ComfyUI lacks flux1-dev.safetensors in diffusion_models"
    site.tells(job, error=told(code, message=message))
    error = await end_of(site.follower(order.run_id, job.id))
    assert isinstance(error, RunLost)
    assert not error.executed
    assert (state := site.backend.readiness("checkpoint", "")) is not None
    assert state.readiness == "missing"
    assert "flux1-dev.safetensors" in state.missing[0].name
    assert looks
    assert (other := site.backend.readiness("caption-qwen3-vl", "")) is not None
    assert other.readiness == "ready"


async def test_what_no_worker_takes_up_is_taken_back(double: Runpod, tmp_path: Path) -> None:
    async with runpod_site(double, tmp_path, queue_s=0.5) as site:
        order = site.order()
        job = await site.started(order)
        error = await end_of(site.follower(order.run_id, job.id))
        assert failure(error) == ("not_taken_up", "transient", False)
        assert job.status == "CANCELLED"
        note = await site.receipts.read(order.run_id)
        assert note is not None
        assert note.cancelled
    # a gateway that comes upon it later does not take it for somebody's cancel
    async with runpod_site(double, tmp_path, rows=site.rows) as next_site:
        error = await end_of(next_site.follower(order.run_id, job.id))
        assert failure(error)[0] == "not_taken_up"


async def test_what_a_worker_has_just_taken_up_is_left_to_it(
    double: Runpod, tmp_path: Path
) -> None:
    async with runpod_site(double, tmp_path, queue_s=0.1) as site:
        order = site.order()
        job = await site.started(order)
        await site.note(order.run_id, job=job.id)
        follower = site.follower(order.run_id, job.id)
        await follower.until_seen(1)
        await asyncio.sleep(2)
        assert job.status == "IN_QUEUE"
        site.taken()
        site.tells(job, output=as_json(completed(order.run_id)))
        await follower.produced()
