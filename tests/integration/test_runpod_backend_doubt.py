"""What RunPod denies or does not tell for a while: nothing is paid for twice because of it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.base import BackendUnreachable, RunFailed, RunLost
from tests.support.runpod_double import Fault, Runpod, runpod
from tests.support.runpod_site import SETTLING_S, Followed, Site, as_json, completed, runpod_site


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod(webhooks="lost") as double:
        yield double


@pytest.fixture
async def site(double: Runpod, tmp_path: Path) -> AsyncGenerator[Site]:
    async with runpod_site(double, tmp_path) as site:
        yield site


async def nudged(site: Site, run_id: str, there: Callable[[], bool]) -> None:
    """Let the follower look again and again until something shows."""
    async with asyncio.timeout(60):
        while not there():
            site.backend.look_now(run_id)
            await asyncio.sleep(0.02)


async def lost(follower: Followed) -> RunLost:
    with pytest.raises(RunLost) as caught:
        await follower.produced()
    return caught.value


async def cancelled(site: Site, run_id: str) -> bool:
    note = await site.receipts.read(run_id)
    return note is not None and note.cancelled


@pytest.mark.parametrize("claimed", [True, False])
async def test_a_job_that_was_alive_is_not_lost_because_runpod_denies_it_for_a_while(
    site: Site, *, claimed: bool
) -> None:
    order = site.order()
    job = await site.started(order)
    follower = site.follower(order.run_id, job.id)
    await follower.until_seen(1)
    site.taken()
    if claimed:
        await site.note(order.run_id, job=job.id)
    fault = Fault(op="status", status=404, times=5)
    site.double.faults.append(fault)
    await nudged(site, order.run_id, lambda: fault.times == 0)
    site.tells(job, output=as_json(completed(order.run_id)))
    await follower.produced()
    assert site.double.calls["run"] == 1


async def test_a_job_that_has_claimed_its_run_is_not_lost_to_one_who_never_saw_it(
    site: Site,
) -> None:
    order = site.order()
    job = await site.started(order)
    site.taken()
    await site.note(order.run_id, job=job.id)
    fault = Fault(op="status", status=404, times=5)
    site.double.faults.append(fault)
    follower = site.follower(order.run_id, job.id)
    await nudged(site, order.run_id, lambda: fault.times == 0)
    site.tells(job, output=as_json(completed(order.run_id)))
    await follower.produced()


async def test_a_job_nobody_has_seen_is_not_lost_while_the_endpoint_has_one_too_many(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.backends.runpod_follow._LOOK_TWICE_S", 0.0)
    order = site.order()
    job = await site.started(order)
    fault = Fault(op="status", status=404, times=8)
    site.double.faults.append(fault)
    follower = site.follower(order.run_id, job.id)
    await nudged(site, order.run_id, lambda: fault.times == 0)
    assert not await cancelled(site, order.run_id)
    site.taken()
    site.tells(job, output=as_json(completed(order.run_id)))
    await follower.produced()


async def test_a_run_that_is_given_up_can_not_begin_later(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    site.double.endpoint.purge()
    assert not (await lost(site.follower(order.run_id, job.id))).executed
    assert await cancelled(site, order.run_id)


async def test_a_run_that_is_claimed_as_it_is_given_up_is_gone_on_with(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = site.order()
    job = await site.started(order)
    site.double.endpoint.purge()
    written = asyncio.Event()
    cancel = site.receipts.cancel

    async def outwritten(run_id: str) -> None:
        await cancel(run_id)
        await site.note(run_id, job=job.id)
        site.double.endpoint.gone.clear()
        written.set()

    monkeypatch.setattr(site.receipts, "cancel", outwritten)
    follower = site.follower(order.run_id, job.id)
    async with asyncio.timeout(60):
        await written.wait()
    site.taken()
    site.tells(job, output=as_json(completed(order.run_id)))
    await follower.produced()


async def test_a_submit_in_doubt_is_not_repeated_while_nobody_counts_the_jobs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.double.faults.append(Fault(op="run", status=500, after=True))
    told: dict[str, Any] = {"jobs": {"inQueue": None}, "workers": {}}
    monkeypatch.setattr(site.double.endpoint, "health", lambda: told)
    order = site.order()
    with pytest.raises(BackendUnreachable):
        await site.backend.start(order)
    await asyncio.sleep(1.5 * SETTLING_S)
    with pytest.raises(BackendUnreachable, match="may have been taken"):
        await site.backend.start(replace(order, again=True))
    assert site.double.calls["run"] == 1
    await site.backend.look()
    assert site.backend.capacity == 3


async def test_a_cancel_that_runpod_denies_is_repeated_and_the_job_does_not_begin(
    site: Site,
) -> None:
    order = site.order()
    job = await site.started(order)
    site.double.faults.append(Fault(op="cancel", status=404))
    with pytest.raises(BackendUnreachable):
        await site.backend.cancel(order.run_id, job.id)
    assert job.status == "IN_QUEUE"
    assert await cancelled(site, order.run_id)
    await site.backend.cancel(order.run_id, job.id)
    assert job.status == "CANCELLED"


async def test_another_job_of_a_cancelled_run_does_not_begin_either(site: Site) -> None:
    order = site.order()
    job = await site.started(order)
    await site.backend.cancel(order.run_id, job.id)
    assert await cancelled(site, order.run_id)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"job": 1}', b'{"more": 1}'])
async def test_a_receipt_that_cannot_be_read_keeps_no_cancel_from_its_end(
    site: Site, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    order = site.order()
    job = await site.started(order)
    url = site.receipts.addresses(order.run_id, timedelta(hours=1)).put

    async def whole() -> AsyncIterator[bytes]:
        yield content

    key = url.partition("/api/slots/")[2].partition("?")[0]
    await site.storage.write(key, "application/json", whole())
    await site.backend.cancel(order.run_id, job.id)
    assert job.status == "CANCELLED"
    assert await cancelled(site, order.run_id)
    assert "is not readable" in caplog.text


async def test_what_waits_behind_busy_workers_is_left_there(double: Runpod, tmp_path: Path) -> None:
    async with runpod_site(double, tmp_path, queue_s=0.2) as site:
        first, order = await site.started(site.order()), site.order()
        assert site.taken() is first
        job = await site.started(order)
        follower = site.follower(order.run_id, job.id)
        await follower.until_seen(1)
        looks = double.calls["health"]
        await nudged(site, order.run_id, lambda: double.calls["health"] > looks + 5)
        assert job.status == "IN_QUEUE"
        # nobody is left who would take it
        site.tells(first, output={})
        with pytest.raises(RunFailed) as failed:
            await follower.produced()
        assert failed.value.failure.code == "not_taken_up"
        assert not failed.value.executed


async def test_what_waits_where_the_counts_are_not_told_is_taken_back(
    double: Runpod, tmp_path: Path
) -> None:
    async with runpod_site(double, tmp_path, queue_s=0.2) as site:
        order = site.order()
        job = await site.started(order)
        double.faults.append(Fault(op="health", status=500, times=100))
        with pytest.raises(RunFailed):
            await site.follower(order.run_id, job.id).produced()
        assert job.status == "CANCELLED"
