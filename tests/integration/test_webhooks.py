"""What a receiver is sent and when, with real receivers and real databases."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from pydantic import JsonValue

from gateway.db.webhooks import WebhookEvent, WebhookQuery
from gateway.jobs import receivers, webhooks
from gateway.jobs.webhooks import SCHEDULE_S
from gateway.security.signing import webhook_secret
from tests.support.receiver import receiver
from tests.support.stack import free_port
from tests.support.webhooks import CALLER, SECRET, Clock, MakeDesk, desks

OTHER_SECRET = webhook_secret(b"of another test" * 3)


@pytest.fixture
def a_desk(database_url: str) -> MakeDesk:
    return desks(database_url)


async def test_an_event_is_delivered_once_and_verified_by_the_librarys_own_verifier(
    a_desk: MakeDesk,
) -> None:
    async with receiver() as there, a_desk() as desk:
        event = await desk.event(there.url)
        done = await desk.delivered(event)
        said = there.received[0].verified(SECRET)
    assert said["type"] == "job.cancelled"
    assert said["data"] == {"job_id": event.job_id}
    assert datetime.fromisoformat(said["timestamp"]) == event.created_at
    assert there.received[0].id == event.id
    assert there.received[0].headers["content-type"] == "application/json"
    assert len(there.received) == 1
    assert (done.attempts, done.delivered_at) == (1, desk.clock.at)


async def test_a_receiver_that_was_down_for_an_hour_gets_every_event_once(
    a_desk: MakeDesk,
) -> None:
    down = SCHEDULE_S[:4]
    # the verifier knows the real time alone: the hour has to end now
    clock = Clock(datetime.now(UTC) - timedelta(seconds=sum(down)))
    port = free_port()
    async with a_desk(clock) as desk:
        began = clock.at
        events = [await desk.event(f"http://127.0.0.1:{port}/hooks") for _ in range(5)]
        for times, wait in enumerate(down, start=1):
            tried = [await desk.tried(event, times) for event in events]
            assert {(e.status, e.attempts) for e in tried} == {("pending", times)}
            assert {e.next_at for e in tried} == {clock.at + timedelta(seconds=wait)}
            if times < len(down):
                clock.at += timedelta(seconds=wait)
        async with receiver(port=port) as there:
            clock.at += timedelta(seconds=down[-1])
            assert clock.at - began > timedelta(hours=1)
            for event in events:
                await desk.delivered(event)
        _, deliveries = await desk.get(events[0])
    assert sorted(came.id for came in there.received) == sorted(event.id for event in events)
    for came in there.received:
        assert came.verified(SECRET)["type"] == "job.cancelled"
    assert [d.status_code for d in deliveries] == [None, None, None, None, 200]
    assert deliveries[0].error == "the connection failed (ConnectError)"


async def test_ten_tries_are_made_and_a_redelivery_goes_out_under_the_same_id(
    a_desk: MakeDesk,
) -> None:
    async with receiver(status=500) as there, a_desk() as desk:
        event = await desk.event(there.url)
        for times, wait in enumerate(SCHEDULE_S, start=1):
            assert (await desk.tried(event, times)).status == "pending"
            desk.clock.at += timedelta(seconds=wait)
        last = await desk.tried(event, len(SCHEDULE_S) + 1)
        assert (last.status, last.attempts, last.delivered_at) == ("failed", 10, None)
        there.status = 204
        again = await desk.webhooks.redeliver(CALLER, event.id)
        assert again is not None
        assert (again.status, again.next_at) == ("pending", desk.clock.at)
        await desk.delivered(event)
        _, deliveries = await desk.get(event)
    assert [d.n for d in deliveries] == list(range(1, 12))
    assert [d.status_code for d in deliveries] == [500] * 10 + [204]
    assert {came.id for came in there.received} == {event.id}


async def test_what_was_delivered_can_be_delivered_again(a_desk: MakeDesk) -> None:
    async with receiver() as there, a_desk() as desk:
        event = await desk.event(there.url)
        await desk.delivered(event)
        assert await desk.webhooks.redeliver("somebody else", event.id) is None
        await desk.webhooks.redeliver(CALLER, event.id)
        await desk.until(event, lambda e: e.status == "delivered" and e.attempts == 2)
    assert [came.id for came in there.received] == [event.id, event.id]


async def test_a_receiver_that_says_it_is_gone_is_not_asked_again(a_desk: MakeDesk) -> None:
    async with receiver(status=410) as there, a_desk() as desk:
        event = await desk.event(there.url)
        last = await desk.tried(event, 1)
    assert (last.status, last.attempts) == ("failed", 1)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (lambda _: "7200", 7200),
        (lambda now: format_datetime(now + timedelta(hours=3), usegmt=True), 10_800),
        (lambda _: "1", SCHEDULE_S[0]),
        (lambda _: "soon", SCHEDULE_S[0]),
        (lambda _: "9" * 30, 86_400),
        (lambda _: "Wed, 21 Oct 2099 07:28:00 +99999999999999999999", SCHEDULE_S[0]),
        (lambda _: "Wed, 21 Oct 9999999999 07:28:00 GMT", SCHEDULE_S[0]),
    ],
    ids=["seconds", "date", "sooner", "nonsense", "forever", "no offset", "no year"],
)
async def test_retry_after_is_honoured(
    a_desk: MakeDesk, status: int, retry_after: Callable[[datetime], str], seconds: int
) -> None:
    clock = Clock(datetime.now(UTC).replace(microsecond=0))
    headers = {"retry-after": retry_after(clock.at)}
    async with receiver(status=status, answer_headers=headers) as there, a_desk(clock) as desk:
        tried = await desk.tried(await desk.event(there.url), 1)
    assert tried.next_at - clock.at == timedelta(seconds=seconds)


async def test_other_statuses_do_not_move_the_next_try_by_their_retry_after(
    a_desk: MakeDesk,
) -> None:
    answer: dict[str, Any] = {"status": 500, "answer_headers": {"retry-after": "7200"}}
    async with receiver(**answer) as there, a_desk() as desk:
        tried = await desk.tried(await desk.event(there.url), 1)
    assert tried.next_at - desk.clock.at == timedelta(seconds=SCHEDULE_S[0])


async def test_a_redirect_is_not_followed(a_desk: MakeDesk) -> None:
    async with receiver() as elsewhere, a_desk() as desk:
        moved = {"location": elsewhere.url}
        async with receiver(status=307, answer_headers=moved) as there:
            event = await desk.event(there.url)
            await desk.tried(event, 1)
        _, deliveries = await desk.get(event)
    assert not elsewhere.received
    assert (deliveries[0].status_code, deliveries[0].error) == (307, "redirects are not followed")


async def test_an_answer_that_never_ends_is_not_read(a_desk: MakeDesk) -> None:
    async with receiver(endless=True) as there, a_desk() as desk:
        event = await desk.event(there.url)
        await desk.delivered(event)
        there.endless = False


async def test_a_receiver_that_does_not_answer_is_given_up(
    a_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receivers, "TOTAL_S", 0.2)
    async with receiver(held=True) as there, a_desk() as desk:
        event = await desk.event(there.url)
        await desk.tried(event, 1)
        _, deliveries = await desk.get(event)
    assert deliveries[0].error == "did not answer in time"
    assert deliveries[0].status_code is None


async def test_every_secret_signs_so_that_one_can_be_replaced(a_desk: MakeDesk) -> None:
    async with receiver() as there, a_desk(secrets=[SECRET, OTHER_SECRET]) as desk:
        await desk.delivered(await desk.event(there.url))
    came = there.received[0]
    assert len(came.headers["webhook-signature"].split(" ")) == 2
    assert came.verified(SECRET) == came.verified(OTHER_SECRET) == json.loads(came.body)


async def test_a_bug_while_rendering_fails_the_try_and_not_the_loop(
    a_desk: MakeDesk, caplog: pytest.LogCaptureFixture
) -> None:
    bugs: list[str] = []

    async def buggy(event: WebhookEvent) -> dict[str, JsonValue]:
        if not bugs:
            bugs.append(event.id)
            raise KeyError("a bug of ours")
        return {}

    async with receiver() as there, a_desk(render=buggy) as desk:
        first = await desk.event(there.url)
        await desk.tried(first, 1)
        await desk.delivered(await desk.event(there.url))
        _, deliveries = await desk.get(first)
    assert deliveries[0].error == "could not be sent; the gateway's log says why"
    assert first.id in caplog.text


async def test_a_bug_while_reading_the_answer_fails_the_try(
    a_desk: MakeDesk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr(webhooks, "_answered", buggy)
    async with receiver() as there, a_desk() as desk:
        tried = await desk.tried(await desk.event(there.url), 1)
    assert tried.next_at - desk.clock.at == timedelta(seconds=SCHEDULE_S[0])
    assert tried.id in caplog.text


async def test_a_private_address_is_not_called_whatever_was_known_at_the_submit(
    a_desk: MakeDesk,
) -> None:
    async with receiver() as there, a_desk(allow_private=False) as desk:
        event = await desk.event(there.url)
        await desk.tried(event, 1)
        _, deliveries = await desk.get(event)
    assert deliveries[0].error == "127.0.0.1 is not a public address"
    assert not there.received


async def test_the_list_is_walked_page_by_page_and_filtered(a_desk: MakeDesk) -> None:
    async with receiver() as there, a_desk() as desk:
        events: list[WebhookEvent] = []
        for _ in range(5):
            desk.clock.at += timedelta(seconds=1)
            events.append(await desk.event(there.url))
        for event in events:
            await desk.delivered(event)
        seen: list[str] = []
        cursor: str | None = None
        while True:
            query = WebhookQuery(caller=CALLER, cursor=cursor, limit=2)
            page = await desk.webhooks.list(query)
            seen += [event.id for event in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        pending = await desk.webhooks.list(WebhookQuery(caller=CALLER, status="pending"))
        foreign = await desk.webhooks.list(WebhookQuery(caller="somebody else"))
    assert seen == [event.id for event in reversed(events)]
    assert not pending.items
    assert not foreign.items
