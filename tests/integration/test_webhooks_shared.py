"""Who delivers an event when several could, one stops or dies, and receivers are dead."""

import asyncio
from datetime import timedelta

import pytest

from gateway.db import Database
from gateway.db.webhooks import Delivery
from tests.support.receiver import PATIENCE_S, receiver
from tests.support.webhooks import CALLER, Clock, Desk, MakeDesk, desks


@pytest.fixture
def a_desk(database_url: str) -> MakeDesk:
    return desks(database_url)


async def test_a_dead_receiver_delays_nobody_elses_events(a_desk: MakeDesk) -> None:
    async with receiver(held=True) as dead, receiver() as alive, a_desk(per_host=4) as desk:
        for _ in range(12):
            await desk.event(dead.url)
        await dead.until(4)
        events = [await desk.event(alive.url) for _ in range(6)]
        for event in events:
            await desk.delivered(event)
        assert dead.answered == 0
        assert len(dead.received) == 4
        dead.gate.set()
        await dead.until(12)
    assert dead.most_open == 4
    assert len({came.id for came in dead.received}) == 12


async def test_a_receiver_whose_last_try_was_in_vain_is_tried_one_by_one(
    a_desk: MakeDesk,
) -> None:
    async with (
        receiver(status=500) as there,
        receiver() as alive,
        a_desk(per_host=4) as desk,
    ):
        await desk.tried(await desk.event(there.url), 1)
        there.gate.clear()
        events = [await desk.event(there.url) for _ in range(3)]
        await there.until(2)
        # taken in order of time: when this one has come, the three have been looked at
        desk.clock.at += timedelta(seconds=1)
        await desk.delivered(await desk.event(alive.url))
        assert there.open == 1
        there.status = 200
        there.gate.set()
        for event in events:
            await desk.delivered(event)
        assert len(there.received) == 4


async def test_two_replicas_deliver_each_event_once(database_url: str) -> None:
    db = Database(database_url)
    clock = Clock()
    async with receiver() as there:
        desks = [Desk(db, clock, poll_s=0.01) for _ in range(3)]
        events = [await desks[0].event(there.url) for _ in range(20)]
        for desk in desks:
            await desk.webhooks.start()
        for event in events:
            await desks[0].delivered(event)
        for desk in desks:
            await desk.webhooks.stop()
    await db.close()
    assert sorted(came.id for came in there.received) == sorted(event.id for event in events)


async def test_a_stop_lets_a_try_end(a_desk: MakeDesk) -> None:
    async with receiver(held=True) as there, a_desk(grace_s=PATIENCE_S) as desk:
        event = await desk.event(there.url)
        await there.until(1)
        stopping = asyncio.create_task(desk.webhooks.stop())
        there.gate.set()
        await stopping
        assert (await desk.get(event))[0].status == "delivered"


async def test_a_stop_gives_back_what_takes_long(a_desk: MakeDesk) -> None:
    async with receiver(held=True) as there:
        async with a_desk(grace_s=0.05) as desk:
            event = await desk.event(there.url)
            await there.until(1)
            await desk.webhooks.stop()
            left, deliveries = await desk.get(event)
            assert (left.status, left.attempts, left.next_at) == ("pending", 0, desk.clock.at)
            assert not deliveries
        there.gate.set()
        async with a_desk(Clock(desk.clock.at)) as next_one:
            await next_one.delivered(event)


async def test_what_a_dead_process_had_taken_is_taken_again_when_its_time_is_up(
    a_desk: MakeDesk,
) -> None:
    async with receiver() as there, a_desk() as desk:
        # taken, as by a process that dies then
        desk.webhooks._stopping = True
        desk.webhooks._due.set()
        assert desk.webhooks._loop is not None
        await desk.webhooks._loop
        event = await desk.event(there.url)
        until = desk.clock.at + timedelta(seconds=60)
        taken = await desk.webhooks._rows.claim(busy=[], now=desk.clock.at, until=until)
        assert taken is not None
        assert await desk.webhooks._rows.claim(busy=[], now=desk.clock.at, until=until) is None
        desk.webhooks._stopping = False
        await desk.webhooks.start()
        desk.clock.at = until
        done = await desk.delivered(event)
    assert (done.attempts, len(there.received)) == (1, 1)


async def test_a_late_failure_does_not_undo_what_happened_since(a_desk: MakeDesk) -> None:
    async with receiver() as there, a_desk() as desk:
        event = await desk.event(there.url)
        await desk.delivered(event)
        late = Delivery(at=desk.clock.at, duration_ms=1, error="did not answer in time")
        await desk.webhooks._rows.failed(event, late, None)
        now, deliveries = await desk.get(event)
    assert (now.status, now.attempts, len(deliveries)) == ("delivered", 2, 2)


async def test_an_event_whose_job_is_deleted_meanwhile_is_forgotten(a_desk: MakeDesk) -> None:
    async with receiver(held=True) as there, a_desk() as desk:
        event = await desk.event(there.url)
        await there.until(1)
        assert await desk.rows.delete(event.job_id or "")
        there.gate.set()
        while desk.webhooks._tries:
            await asyncio.wait(desk.webhooks._tries)
        assert await desk.webhooks.get(CALLER, event.id) is None
