"""Cancelling and forgetting runs at RunPod, its counts, and who is told to look."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from gateway.backends.base import BackendUnreachable
from tests.support.gpu_double import WORKFLOWS
from tests.support.runpod_double import Fault, Runpod, runpod
from tests.support.runpod_site import Site, as_json, completed, runpod_site


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod(webhooks="lost") as double:
        yield double


@pytest.fixture
async def site(double: Runpod, tmp_path: Path) -> AsyncGenerator[Site]:
    async with runpod_site(double, tmp_path) as site:
        yield site


async def test_a_waiting_job_is_cancelled_and_never_taken(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    await site.backend.cancel(order.run_id, job.id)
    assert job.status == "CANCELLED"
    assert site.double.endpoint.take("w1") is None


async def test_the_worker_of_a_running_job_is_told_to_stop(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    site.taken()
    await site.backend.cancel(order.run_id, job.id)
    assert site.double.endpoint.stops("w1") == [job.id]


async def test_a_job_that_is_over_or_unknown_is_no_error(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    site.taken()
    site.tells(job, output=as_json(completed(order.run_id)))
    await site.backend.cancel(order.run_id, job.id)
    await site.backend.cancel(order.run_id, "nobody-u1")
    # what RunPod answers here is not documented
    site.double.faults.append(Fault(op="cancel", status=400))
    await site.backend.cancel(order.run_id, job.id)


@pytest.mark.parametrize("status", [401, 429, 500, None], ids=str)
async def test_a_cancel_that_was_not_heard_is_said_so(site: Site, status: int | None) -> None:
    order = site.order()
    job = await site.started(order)
    site.double.faults.append(Fault(op="cancel", status=status))
    with pytest.raises(BackendUnreachable):
        await site.backend.cancel(order.run_id, job.id)
    assert job.status == "IN_QUEUE"
    await site.backend.cancel(order.run_id, job.id)
    assert job.status == "CANCELLED"


async def test_a_cancel_that_was_refused_while_the_job_goes_on_is_said_so(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    site.double.faults.append(Fault(op="cancel", status=400))
    with pytest.raises(BackendUnreachable):
        await site.backend.cancel(order.run_id, job.id)


async def test_a_run_whose_submit_was_not_answered_is_cancelled_by_its_receipt(site: Site) -> None:
    site.double.faults.append(Fault(op="run", status=500, after=True))
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    job = site.taken()
    await site.note(order.run_id, job=job.id)
    await site.backend.cancel(order.run_id, None)
    assert job.status == "CANCELLED"


async def test_a_run_nobody_knows_a_job_of_is_cancelled_before_it_begins(site: Site) -> None:
    order = site.order()
    await site.backend.cancel(order.run_id, None)
    note = await site.receipts.read(order.run_id)
    assert note is not None
    assert note.cancelled


async def test_a_second_job_of_a_run_is_cancelled_with_it(site: Site) -> None:
    order = site.order()
    first, second = await site.started(order), await site.started(order)
    await site.note(order.run_id, job=first.id)
    await site.backend.cancel(order.run_id, second.id)
    assert (first.status, second.status) == ("CANCELLED", "CANCELLED")


async def test_the_receipt_of_a_run_goes_with_it(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    await site.note(order.run_id, job=job.id, status=completed(order.run_id))
    await site.backend.forget(order.run_id, job.id)
    assert await site.receipts.read(order.run_id) is None
    await site.backend.forget(order.run_id, job.id)


async def test_a_receipt_stays_while_another_job_of_its_run_may_come_upon_it(site: Site) -> None:
    site.double.faults.append(Fault(op="run", status=500, after=True))
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    job = site.taken()
    await site.note(order.run_id, job=job.id, status=completed(order.run_id))
    adopted = await site.backend.start(order)
    await site.backend.forget(order.run_id, adopted)
    assert await site.receipts.read(order.run_id) is not None


async def test_its_jobs_and_workers_are_counted(site: Site) -> None:
    await site.started(site.order())
    await site.started(site.order())
    site.taken()
    await site.backend.look()
    counts = site.backend.counts
    assert counts is not None
    assert (counts.jobs["inQueue"], counts.jobs["inProgress"]) == (1, 1)
    assert counts.workers["running"] == 1


async def test_it_takes_nothing_while_its_health_does_not_answer(site: Site) -> None:
    looks: list[int] = []
    site.backend.on_change = lambda: looks.append(site.backend.capacity)
    site.double.faults.append(Fault(op="health", status=500))
    await site.backend.look()
    assert site.backend.readiness("checkpoint", "").readiness == "unknown"  # pyright: ignore[reportOptionalMemberAccess]  # None fails the test, too
    await site.backend.look()
    assert looks == [0, 3]


async def test_it_says_nothing_of_workflows_that_are_not_for_it(
    double: Runpod, tmp_path: Path
) -> None:
    only = {"checkpoint": WORKFLOWS["checkpoint"]}
    async with runpod_site(double, tmp_path, workflows=only) as site:
        assert site.backend.readiness("caption-qwen3-vl", "") is None
        assert site.backend.readiness("own.one", "") is None
        assert site.backend.readiness("checkpoint", "") is not None
        assert (site.backend.kind, site.backend.billed) == ("runpod", True)
        assert site.backend.installed is None
