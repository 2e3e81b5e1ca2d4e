"""The ends of the cpu backend's work: deliveries that take long, and clean stops."""

import asyncio
from pathlib import Path

import pytest

from gateway.backends.base import Progressed, RunLost
from gateway.backends.cpu_files import Transfers
from gpu_server.mesh.order import Extents, MeshOrder, MeshReport
from gpu_server.mesh.pool import MeshPool
from gpu_server.protocol import InputFile
from tests.unit.gateway.test_cpu_backend import HANGING, PATIENCE_S, bench, drained, hanging

BOX = Extents(x=1, y=1, z=1)
REPORT = MeshReport(
    before=BOX,
    after=BOX,
    unit="m",
    before_in_unit=BOX,
    after_in_unit=BOX,
    cleaned=None,
    faces=12,
    bytes=6,
)


async def test_delivery_is_no_part_of_the_execution_and_outlasts_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetched(_: Transfers, file: InputFile, path: Path) -> None:
        del file, path

    async def worked(_: MeshPool, order: MeshOrder) -> MeshReport:
        order.target.write_bytes(b"a mesh")
        return REPORT

    # neither gives the loop a turn: however slow the machine is, the time is up in delivery alone
    monkeypatch.setattr(Transfers, "fetch", fetched)
    monkeypatch.setattr(MeshPool, "run", worked)
    async with bench(tmp_path) as at:
        at.slots.answers = [503] * 3
        await at.carried_out(at.order(timeout_s=0.5))
        assert at.slots.taken["/run"].content == b"a mesh"


async def test_a_clean_stop_waits_for_no_run_that_nobody_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANGING_FOLDER", str(tmp_path))
    monkeypatch.setattr("gateway.backends.cpu._TOLD_WITHIN_S", 3600)
    async with bench(tmp_path, module=HANGING) as at:
        # one whose driver lost it before it could be followed, and one that ends meanwhile
        await at.backend.start(at.order("never"))
        await at.backend.start(at.order())
        following = asyncio.create_task(drained(at, "run"))
        await hanging(tmp_path)
        closing = asyncio.create_task(at.backend.close())
        await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait_for(closing, PATIENCE_S)
        await asyncio.wait({following})
        # whoever comes for it after all is told that this was no death
        with pytest.raises(RunLost) as caught:
            await drained(at, "never")
        assert not caught.value.executed


async def test_a_run_that_had_not_begun_when_a_clean_stop_came_does_not_begin(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as at:
        await at.backend.start(at.order())
        events = at.backend.follow("run", "run")
        assert await anext(events) == Progressed(fraction=0)
        closing = asyncio.create_task(at.backend.close())
        await asyncio.sleep(0)
        with pytest.raises(RunLost) as caught:
            await anext(events)
        assert not caught.value.executed
        await at.backend.cancel("run", "run")
        await asyncio.wait_for(closing, PATIENCE_S)
        assert at.slots.puts == 0
