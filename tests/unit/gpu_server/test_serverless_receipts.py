"""A job's hold on its run, against a store of receipts."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from gpu_server.protocol import Receipt, ReceiptNote, RunStatus
from gpu_server.serverless import receipts
from gpu_server.serverless.failing import CallFailed
from gpu_server.serverless.receipts import TakenRun
from tests.support.note_store import NoteStore, keeping

RUN = "01890000-0000-7000-8000-00000000bbbb"
DONE = RunStatus(run_id=RUN, state="completed", executed=True, params={"seed": 3})


@pytest.fixture
async def store() -> AsyncGenerator[NoteStore]:
    async with keeping() as store:
        yield store


def taken(store: NoteStore, job: str = "mine") -> TakenRun:
    return TakenRun(Receipt(**store.receipt(RUN)), job_id=job, run_id=RUN)


async def claimed(store: NoteStore, job: str = "mine") -> RunStatus | str | None:
    """What a claim comes to: it may begin (None), how the run ended, or why it may not."""
    async with taken(store, job) as run:
        try:
            return await run.claim()
        except CallFailed as error:
            return f"{error.failure.kind} {error.failure.code}"


async def test_a_run_without_receipt_is_taken_by_writing_the_jobs_id(store: NoteStore) -> None:
    assert await claimed(store) is None
    assert store.note(RUN) == {"job": "mine"}
    assert ReceiptNote.model_validate(store.note(RUN)).job == "mine"


async def test_the_end_of_a_run_is_written_once_and_read_by_every_later_job(
    store: NoteStore,
) -> None:
    async with taken(store) as run:
        assert await run.claim() is None
        await run.close(DONE)
        assert run.kept
        await run.close(DONE.model_copy(update={"state": "failed"}))
    assert [await claimed(store, job) for job in ("mine", "another")] == [DONE, DONE]
    assert len(store.puts) == 2


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ({"job": "mine"}, None),
        ({"job": "another"}, "transient taken_elsewhere"),
        ({"cancelled": True}, RunStatus(run_id=RUN, state="cancelled")),
        ({"job": "another", "status": DONE.model_dump(mode="json")}, DONE),
        ({}, None),
        ({"job": 3}, "transient storage_unavailable"),
        ({"job": "mine", "colour": "red"}, "transient storage_unavailable"),
    ],
)
async def test_what_a_receipt_says_decides_what_a_job_does(
    store: NoteStore, note: dict[str, Any], expected: object
) -> None:
    store.lay(RUN, note)
    assert await claimed(store) == expected
    # a job that may not begin leaves the receipt as it is
    assert bool(store.puts) == (expected is None)


async def test_storage_that_stumbles_is_asked_again(store: NoteStore) -> None:
    store.answers = [503, 429, 403]
    assert await claimed(store) is None
    assert store.note(RUN)["job"] == "mine"


async def test_storage_that_stays_away_lets_no_run_begin(
    store: NoteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receipts, "_CLAIM_S", 0.5)
    store.away = True
    assert await claimed(store) == "transient storage_unavailable"
    assert "storage answered 503" in caplog.text
    assert "secret" not in caplog.text


async def test_nobody_at_the_address_lets_no_run_begin(
    store: NoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "_CLAIM_S", 0.5)
    store.url = "http://127.0.0.1:9"
    assert await claimed(store) == "transient storage_unavailable"
    store.url = "nowhere:"
    assert await claimed(store) == "transient storage_unavailable"


async def test_storage_that_keeps_nothing_lets_no_run_begin(store: NoteStore) -> None:
    async def lose(path: str) -> None:
        del store.kept[path]

    store.after_put = lose
    assert await claimed(store) == "transient storage_unavailable"


async def test_a_result_does_not_wait_for_storage_for_ever(
    store: NoteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receipts, "_END_S", 0.5)
    async with taken(store) as run:
        assert await run.claim() is None
        store.away = True
        await run.close(DONE)
        assert not run.kept
    assert "secret" not in caplog.text
    assert store.note(RUN)["job"] == "mine"


async def test_a_cancel_written_while_the_job_takes_the_run_is_obeyed(store: NoteStore) -> None:
    async def cancel(_path: str) -> None:
        store.lay(RUN, {"cancelled": True})

    store.after_put = cancel
    assert await claimed(store) == RunStatus(run_id=RUN, state="cancelled")


async def test_of_two_jobs_that_both_found_nothing_one_begins(store: NoteStore) -> None:
    both = asyncio.Barrier(2)

    async def together(_path: str) -> None:
        await both.wait()

    # neither has written before both have read, neither reads again before both have written
    store.before_put = store.after_put = together
    ends = await asyncio.gather(claimed(store, "one"), claimed(store, "two"))
    assert sorted(ends, key=str) == [None, "transient taken_elsewhere"]
