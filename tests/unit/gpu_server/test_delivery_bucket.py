"""Into a bucket: length and MD5 are known before, and no refusal costs GPU time."""

import asyncio
import base64
import errno
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gpu_server import delivery
from gpu_server.comfy import ComfyUnavailable
from gpu_server.finish import finishing
from gpu_server.protocol import Failure, RunStatus
from tests.support.asgi import serving
from tests.support.gpu_bench import PNG, MakeBench, smooth
from tests.support.slots import Slots
from tests.support.stack import free_port

LONG_AWAY = 40
BUCKET = {"sized": True, "content_md5": True}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of tries in less time."""
    monkeypatch.setattr(delivery, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(delivery, "LONGEST_DELAY_S", 0.002)


def failure_of(status: RunStatus) -> Failure:
    assert status.failure is not None
    return status.failure


@pytest.mark.parametrize("tells_length", [True, False], ids=["length told", "length not told"])
async def test_a_bucket_is_told_length_and_md5_of_every_file(
    bench: MakeBench, slots: Slots, *, tells_length: bool
) -> None:
    slots.options = BUCKET
    bench_ = bench(smooth)
    bench_.comfy.tells_length = tells_length
    status = await bench_.start(slots).wait()
    (sent,), taken = status.outputs, slots.taken["/a/images/0"]
    digest = hashlib.md5(taken.content, usedforsecurity=False)
    assert taken.length == str(taken.count) == str(sent.bytes)
    assert taken.md5 == base64.b64encode(digest.digest()).decode()
    assert (sent.md5, sent.sha256) == (digest.hexdigest(), taken.sha256)


async def test_md5_is_told_the_gateway_where_the_bucket_is_not_to_have_it(
    bench: MakeBench, slots: Slots
) -> None:
    slots.options = {"sized": True}
    status = await bench(smooth).start(slots).wait()
    assert slots.taken["/a/images/0"].md5 is None
    assert status.outputs[0].md5 is not None


async def test_a_gateways_own_slot_gets_the_file_as_it_comes(
    bench: MakeBench, slots: Slots, tmp_path: Path
) -> None:
    status = await bench(smooth).start(slots).wait()
    assert (slots.taken["/a/images/0"].md5, status.outputs[0].md5) == (None, None)
    assert not (tmp_path / "finishing").exists()


@pytest.mark.parametrize("answer", [301, 307, 400, 403, 404, 405, 409, 411, 500, 501, 503, 507])
async def test_whatever_a_bucket_refuses_it_gets_in_the_end(
    bench: MakeBench, slots: Slots, answer: int
) -> None:
    slots.options, slots.answers = BUCKET, [answer] * LONG_AWAY
    bench_ = bench(smooth)
    assert (await bench_.start(slots, patient=True).wait()).state == "completed"
    # the file lies here meanwhile: ComfyUI may go away
    assert (bench_.comfy.views, slots.puts) == (1, LONG_AWAY + 1)


@pytest.mark.parametrize(
    ("answer", "said"), [(413, b""), (400, b"<Error><Code>EntityTooLarge</Code></Error>")]
)
@pytest.mark.parametrize("options", [BUCKET, {}], ids=["bucket", "gateway"])
async def test_a_file_that_is_too_large_for_storage_is_not_made_again(
    bench: MakeBench, slots: Slots, answer: int, said: bytes, options: dict[str, bool]
) -> None:
    slots.options, slots.answers, slots.said = options, [answer], said
    failure = failure_of(await bench(smooth).start(slots).wait())
    assert (failure.kind, failure.code) == ("fatal", "output_too_large")
    assert slots.puts == 1


async def test_the_buckets_word_is_logged_and_no_address(
    bench: MakeBench, slots: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    slots.options, slots.answers = BUCKET, [403, 403]
    slots.said = b"<Error><Code>AccessDenied</Code><Resource>/a</Resource></Error>"
    await bench(smooth).start(slots).wait()
    (told,) = [r.getMessage() for r in caplog.records if r.name == delivery.__name__]
    assert "403 (AccessDenied)" in told
    assert slots.url not in caplog.text


async def test_whoever_is_patient_waits_beyond_the_executions_time_and_knows_for_what(
    bench: MakeBench,
) -> None:
    port = free_port()
    slots = Slots(url=f"http://127.0.0.1:{port}", options=BUCKET)
    run = bench(smooth).start(slots, timeout_s=0.01, patient=True)
    async with asyncio.timeout(30):
        async for event in run.events(heartbeat_s=30):
            assert event is not None
            if event.progress is not None and event.progress.waits_for == "storage":
                break
    await asyncio.sleep(0.05)
    assert not run.over
    async with serving(slots, port=port):
        status = await run.wait()
    assert (status.state, status.progress.waits_for) == ("completed", None)


async def test_whoever_did_not_ask_is_not_told_what_it_waits_for(
    bench: MakeBench, slots: Slots
) -> None:
    slots.answers = [503] * 3
    run = bench(smooth).start(slots)
    told = [event async for event in run.events(heartbeat_s=30)]
    assert all(e is not None and (e.progress is None or not e.progress.waits_for) for e in told)


async def test_a_full_disk_beside_the_service_is_waited_for(
    bench: MakeBench, slots: Slots, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries, save = list[Path](), finishing.save

    async def short_of_room(pieces: AsyncIterator[bytes], path: Path) -> None:
        tries.append(path)
        if len(tries) <= 3:
            raise OSError(errno.ENOSPC, "No space left", str(path))
        await save(pieces, path)

    monkeypatch.setattr(finishing, "save", short_of_room)
    slots.options = BUCKET
    assert (await bench(smooth).start(slots).wait()).state == "completed"
    assert (len(tries), slots.puts) == (4, 1)
    assert list((tmp_path / "finishing").iterdir()) == []


async def test_a_comfyui_that_breaks_off_while_the_file_is_kept_is_asked_again(
    bench: MakeBench, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, save = list[Path](), finishing.save

    async def broken(pieces: AsyncIterator[bytes], path: Path) -> None:
        tries.append(path)
        if len(tries) == 1:
            await anext(pieces)
            raise ComfyUnavailable("ComfyUI broke off")
        await save(pieces, path)

    monkeypatch.setattr(finishing, "save", broken)
    slots.options = BUCKET
    assert (await bench(smooth).start(slots).wait()).state == "completed"
    assert slots.taken["/a/images/0"].count == len(PNG)
