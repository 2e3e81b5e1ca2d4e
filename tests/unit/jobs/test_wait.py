"""Waking in one process."""

import asyncio

from gateway.backends.base import Progressed
from gateway.db import JobChange
from gateway.jobs.wait import Hub


async def test_a_waiter_for_the_end_sleeps_through_everything_else() -> None:
    hub = Hub()
    with hub.listen("j", every_change=False) as end, hub.listen("j", every_change=True) as all_:
        hub.changed(JobChange(job_id="j", status="processing"))
        hub.progressed("j", Progressed(fraction=0.5))
        hub.changed(JobChange(job_id="other", status="completed"))
        assert not end.woken.is_set()
        assert all_.woken.is_set()
        hub.changed(JobChange(job_id="j", status="completed"))
        assert end.woken.is_set()


async def test_what_happens_between_reading_and_waiting_is_not_lost() -> None:
    hub = Hub()
    with hub.listen("j", every_change=False) as listener:
        hub.changed(JobChange(job_id="j", status="failed"))
        await asyncio.wait_for(listener.wait(3600), 30)
        await listener.wait(0)


async def test_only_the_latest_progress_is_kept() -> None:
    hub = Hub()
    with hub.listen("j", every_change=True) as listener:
        for fraction in (0.1, 0.2, 0.3):
            hub.progressed("j", Progressed(fraction=fraction))
        assert listener.take_progress() == Progressed(fraction=0.3)
        assert listener.take_progress() is None
    assert hub.progress("j") == Progressed(fraction=0.3)
    hub.changed(JobChange(job_id="j", status="completed"))
    assert hub.progress("j") is None


async def test_progress_from_before_a_change_is_not_told_after_it() -> None:
    hub = Hub()
    with hub.listen("j", every_change=True) as listener:
        hub.progressed("j", Progressed(fraction=1.0))
        hub.changed(JobChange(job_id="j", status="processing"))
        assert listener.take_progress() is None
        assert listener.changed


async def test_nothing_is_kept_of_listeners_that_have_gone() -> None:
    hub = Hub()
    with hub.listen("j", every_change=True), hub.listen("j", every_change=False):
        assert len(hub._listeners["j"]) == 2
    assert hub._listeners == {}
