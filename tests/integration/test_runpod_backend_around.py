"""What surrounds the RunPod backend: its receiver, receipts in storage, doctor, other gateways."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from gateway.api.hooks import webhook_path
from gateway.backends.runpod_looks import Serverless
from gateway.db import Database, DatabaseUnavailable
from gateway.db.serverless import ServerlessRows
from gateway.receipts import Receipts
from gpu_server.protocol import ReceiptNote
from tests.support.doctor import doctored, everything, found
from tests.support.gateway import gateway
from tests.support.runpod_double import API_KEY, Fault, Runpod, runpod
from tests.support.runpod_site import Site, as_json, completed, runpod_site
from tests.support.serverless_gateway import endpoint_env
from tests.support.sweeping import DAY, FOREVER, HOUR, Place

RUN = "7a1e7a6c-6f0e-4c0e-9c0e-0123456789ab"


@pytest.fixture
async def double() -> AsyncGenerator[Runpod]:
    async with runpod(webhooks="lost") as double:
        yield double


@pytest.fixture
async def site(double: Runpod, tmp_path: Path) -> AsyncGenerator[Site]:
    async with runpod_site(double, tmp_path) as site:
        yield site


class Others:
    """The other gateways, one of which follows every run."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.away = False

    async def tell_followers(self, run_id: str) -> None:
        if self.away:
            raise DatabaseUnavailable
        self.told.append(run_id)

    def on_look(self, look: object) -> None:
        del look


async def test_a_word_that_a_run_is_over_makes_its_follower_look_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # without such a word it would not look again in this test's time
    monkeypatch.setattr("gateway.backends.runpod_follow.LONGEST_S", 600)
    monkeypatch.setattr("gateway.backends.runpod_follow.FIRST_S", 600)
    order = site.order()
    job = await site.started(order)
    follower = site.follower(order.run_id, job.id)
    await follower.until_seen(1)
    site.taken()
    site.tells(job, output=as_json(completed(order.run_id)))
    others = Others()
    await Serverless([site.backend], others).look(order.run_id)
    await follower.produced()
    assert others.told == []


async def test_a_run_nobody_follows_here_is_looked_at_by_another_gateway(site: Site) -> None:
    others = Others()
    await Serverless([site.backend], others).look(RUN)
    assert others.told == [RUN]
    # RunPod is answered all the same: whoever follows it looks by himself
    others.away = True
    await Serverless([site.backend], others).look(RUN)
    await Serverless([], others).look(RUN)
    assert others.told == [RUN]


async def test_gateways_on_one_database_tell_one_another_to_look(postgres_url: str) -> None:
    one, other = Database(postgres_url), Database(postgres_url)
    heard: asyncio.Queue[str] = asyncio.Queue()
    ServerlessRows(other).on_look(heard.put_nowait)
    hearing = asyncio.create_task(other.hear())
    try:
        assert other.notices is not None
        await other.notices.listening.wait()
        await ServerlessRows(one).tell_followers(RUN)
        async with asyncio.timeout(120):
            assert await heard.get() == RUN
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await one.close()
        await other.close()


async def test_a_receiver_takes_any_body_and_believes_none(tmp_path: Path) -> None:
    async with gateway(tmp_path) as served:
        path = webhook_path(served.context.signer, RUN)
        for body in (b"", b"{", b"x" * 3_000_000):
            answer = await served.stranger.post(path, content=body)
            assert answer.status_code == 200
        other = webhook_path(served.context.signer, RUN.replace("7", "8"))
        run, _, signature = path.rpartition("/")
        given = (other.rpartition("/")[2], signature + "0", signature.upper(), "é", "x")
        for wrong in (f"{run}/{each}" for each in given):
            assert (await served.stranger.post(wrong)).status_code == 404
        assert (await served.stranger.get(path)).status_code == 405


async def test_a_worker_writes_its_receipt_into_this_gateway(tmp_path: Path) -> None:
    async with gateway(tmp_path) as served:
        receipts = Receipts(served.context.storage, served.context.signer)
        # of a run that no job's row names, or names no more
        addresses = receipts.addresses(RUN, timedelta(hours=1))
        get, put = (
            f"{parts.path}?{parts.query}"
            for parts in (urlsplit(addresses.get), urlsplit(addresses.put))
        )
        assert (await served.stranger.get(get)).status_code == 404
        for note in (ReceiptNote(job="a-u1"), ReceiptNote(job="a-u1", status=completed(RUN))):
            answer = await served.stranger.put(put, content=note.model_dump_json())
            assert answer.is_success, answer.text
            assert await receipts.read(RUN) == note
        answer = await served.stranger.get(get)
        assert ReceiptNote.model_validate_json(answer.content) == note
        large = {"Content-Length": str(33 * 1024**2)}
        assert (await served.stranger.put(put, headers=large)).status_code == 413
        await receipts.remove(RUN)
        assert (await served.stranger.get(get)).status_code == 404


async def test_receipts_outlive_their_jobs_and_go_after_eight_days(tmp_path: Path) -> None:
    async with gateway(tmp_path) as served:
        place = Place(served)
        receipts = Receipts(served.context.storage, served.context.signer)
        job_id = (await place.made())["job_id"]
        await receipts.cancel(job_id)
        await place.sweep(FOREVER, 2 * HOUR)
        await place.sweep(FOREVER, 7 * DAY)
        assert (note := await receipts.read(job_id)) is not None
        assert note.cancelled
        await place.sweep(FOREVER, 8 * DAY + HOUR)
        assert await receipts.read(job_id) is None
        # its result has its own time
        assert len(await place.keys()) == 1


async def test_doctor_says_how_an_endpoint_is(double: Runpod, tmp_path: Path) -> None:
    env = endpoint_env(double)
    seen = await doctored(tmp_path, **env)
    said = [f.said for f in seen.findings if f.group == "RunPod"]
    assert any("takes our key" in each for each in said), said
    assert any("none now" in each for each in said), said
    # nothing was paid for
    assert double.calls.keys() == {"health"}
    double.endpoint.seen("w1")
    double.endpoint.unhealthy.append({})
    seen = await doctored(tmp_path, **env)
    assert "1 unhealthy" in everything(seen)
    double.faults.append(Fault(op="health", status=500))
    finding = found(await doctored(tmp_path, **env), "RunPod", f"runpod:{double.endpoint_id}")
    assert finding.verdict == "failed"


async def test_doctor_warns_of_jobs_without_workers_and_a_key_that_is_none(
    double: Runpod, tmp_path: Path
) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        await http.post(f"{double.url}/run", json={"input": {}}, headers=double.headers)
    env = endpoint_env(double)
    assert "raise the endpoint's max workers" in everything(await doctored(tmp_path, **env))
    seen = await doctored(tmp_path, **env | {"runpod_api_key": "rpa_not-the-key"})
    assert "RUNPOD_API_KEY" in everything(seen)
    assert "rpa_not-the-key" not in everything(seen)
    assert API_KEY not in everything(seen)
