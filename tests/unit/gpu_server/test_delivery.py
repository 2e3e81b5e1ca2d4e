"""A finished file is worth the GPU time it took: it is kept trying until the run's time is over."""

import asyncio
import errno
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpu_server import delivery
from gpu_server.comfy import Finished, RunEvent, RunFailed
from gpu_server.comfy.http import ComfyHttp
from gpu_server.finish import pictures
from gpu_server.finish.facts import Facts
from gpu_server.protocol import Failure, Slot
from tests.support.asgi import serving
from tests.support.gpu_bench import PNG, Comfy, MakeBench, produced, smooth
from tests.support.slots import Slots
from tests.support.stack import free_port

LONG_AWAY = 40


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same number of tries in less time."""
    monkeypatch.setattr(delivery, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(delivery, "LONGEST_DELAY_S", 0.002)


def failure_of(status: object) -> Failure:
    failure = getattr(status, "failure", None)
    assert isinstance(failure, Failure)
    return failure


@pytest.mark.parametrize("answer", [500, 503, 408, 429])
async def test_a_slot_that_is_troubled_for_long_gets_the_file_in_the_end(
    bench: MakeBench, slots: Slots, answer: int
) -> None:
    slots.answers = [answer] * LONG_AWAY
    status = await bench(smooth).start(slots).wait()
    assert status.state == "completed"
    assert slots.puts == LONG_AWAY + 1
    assert slots.taken["/a/images/0"].count == len(PNG)


async def test_a_slot_nobody_serves_gets_the_file_once_somebody_does(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    slots = Slots(url=f"http://127.0.0.1:{port}")
    bench_ = bench(smooth)
    run = bench_.start(slots)
    await bench_.comfy.until_viewed(LONG_AWAY)
    assert not run.over
    async with serving(slots, port=port):
        assert (await run.wait()).state == "completed"
    warnings = [r for r in caplog.records if r.name == delivery.__name__]
    assert len(warnings) < 4, "one line a reason, not one a try"


async def test_comfyui_may_be_away_while_a_file_is_read(bench: MakeBench, slots: Slots) -> None:
    bench_ = bench(smooth)
    bench_.comfy.away_for = LONG_AWAY
    assert (await bench_.start(slots).wait()).state == "completed"
    assert (bench_.comfy.views, slots.puts) == (LONG_AWAY + 1, 1)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (400, "missing_output"),
        (403, "missing_output"),
        (404, "missing_output"),
        (408, "comfyui_unavailable"),
        (429, "comfyui_unavailable"),
        (502, "comfyui_unavailable"),
    ],
)
async def test_only_a_file_comfyui_may_still_hand_over_is_asked_for_again(
    answer: int, code: str
) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(answer))
    async with httpx.AsyncClient(transport=transport) as http:
        comfy = ComfyHttp("http://comfyui", http)
        with pytest.raises(RunFailed) as caught:
            async with comfy.view(filename="a.png", subfolder="", kind="output"):
                pass
    assert caught.value.failure.code == code


async def test_a_full_disk_is_waited_for_and_no_gpu_time_is_lost(
    bench: MakeBench,
    slots: Slots,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    tries: list[Path] = []

    def made(_came: Path, target: Path, **_: Any) -> Facts:
        tries.append(target)
        if len(tries) <= LONG_AWAY:
            raise OSError(errno.ENOSPC, "No space left", str(target))
        target.write_bytes(PNG)
        return Facts()

    monkeypatch.setattr(pictures, "converted", made)
    (slot,) = slots.slots("a")
    monkeypatch.setattr(slots, "slots", lambda *_: [slot | {"format": "webp"}])
    assert (await bench(smooth).start(slots).wait()).state == "completed"
    assert (len(tries), slots.puts) == (LONG_AWAY + 1, 1)
    assert str(tmp_path) not in caplog.text


async def test_the_runs_own_time_ends_the_trying(bench: MakeBench) -> None:
    slots = Slots(url=f"http://127.0.0.1:{free_port()}")
    failure = failure_of(await bench(smooth).start(slots, timeout_s=0.2).wait())
    assert (failure.kind, failure.code) == ("transient", "delivery_failed")


@pytest.mark.parametrize("answer", [307, 400, 403, 404, 409])
async def test_a_definite_refusal_ends_it_at_once(
    bench: MakeBench, slots: Slots, answer: int
) -> None:
    slots.answers = [answer]
    failure = failure_of(await bench(smooth).start(slots).wait())
    assert (failure.kind, failure.code) == ("transient", "delivery_failed")
    assert slots.puts == 1


async def test_an_address_no_file_can_be_sent_to_ends_it_at_once(bench: MakeBench) -> None:
    failure = failure_of(await bench(smooth).start(Slots(url="ftp://127.0.0.1")).wait())
    assert failure.code == "delivery_failed"
    assert "127.0.0.1" not in failure.message


async def test_a_cancel_that_comes_as_comfyui_ends_does_not_wait_for_the_slot(
    bench: MakeBench,
) -> None:
    async def script(comfy: Comfy) -> AsyncGenerator[RunEvent]:
        yield produced()
        await comfy.stop.wait()
        yield Finished()

    slots = Slots(url=f"http://127.0.0.1:{free_port()}")
    bench_ = bench(script)
    run = bench_.start(slots)
    await bench_.comfy.until_viewed(3)
    assert run.in_comfyui
    status = await bench_.runs.remove(run.run_id)
    assert status is not None
    assert status.state == "cancelled"


async def test_cancel_ends_the_trying_at_once(bench: MakeBench) -> None:
    slots = Slots(url=f"http://127.0.0.1:{free_port()}")
    bench_ = bench(smooth)
    run = bench_.start(slots)
    await bench_.comfy.until_viewed(3)
    assert not run.in_comfyui
    status = await bench_.runs.remove(run.run_id)
    assert status is not None
    assert status.state == "cancelled"
    # Nothing of it goes on behind the answer.
    assert await bench_.journalled(run) == "cancelled"


async def test_a_new_address_is_tried_at_once(
    bench: MakeBench, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    # who sleeps out this pause does not end
    monkeypatch.setattr(delivery, "FIRST_DELAY_S", 3600)
    bench_ = bench(smooth)
    run = bench_.start(Slots(url=f"http://127.0.0.1:{free_port()}"))
    await bench_.comfy.until_viewed(1)

    await bench_.runs.renew(run, [Slot(**slot) for slot in slots.slots("b")])

    async with asyncio.timeout(60):
        assert (await run.wait()).state == "completed"
    assert list(slots.taken) == ["/b/images/0"]
    assert await bench_.journalled(run) == "delivered"
