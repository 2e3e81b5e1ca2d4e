"""The cpu backend: real mesh processes, files over HTTP, and what is left when it is stopped."""

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.backends.base import (
    BackendUnreachable,
    Order,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
)
from gateway.backends.cpu import CpuBackend
from gateway.backends.cpu_files import Transfers
from gateway.job import Call, Produced, Source
from gateway.operations import NORMALISE, OPERATIONS, RESCALE
from gateway.storage.disk import DiskSpace
from gpu_server.mesh.order import MeshLimits
from gpu_server.mesh.pool import MeshPool
from gpu_server.protocol import InputFile, Slot
from tests.support.slots import Slots, receiving
from tests.unit.gpu_server.mesh import glb, outside

HANGING = "tests.unit.gpu_server.mesh.hanging"
HUNDRED_MM = {"target_dimensions": {"x": 100.0, "unit": "mm"}, "format": "glb"}
PATIENCE_S = 120


@dataclass
class Bench:
    """A backend, and the server its files come from and go to."""

    backend: CpuBackend
    slots: Slots
    folder: Path

    def order(self, run_id: str = "run", **changes: Any) -> Order:
        operation, at = changes.pop("operation", RESCALE), changes.pop("at", self.slots.url)
        url = changes.pop("url", f"{at}/in.glb")
        sha256, ours = changes.pop("sha256", None), changes.pop("ours", True)
        source = Source(url=url, media_type="model/gltf-binary", slot=changes.pop("slot", None))
        call = Call(
            workflow=operation,
            digest=OPERATIONS[operation].digest,
            params=changes.pop("params", HUNDRED_MM),
            outputs=("models/0",),
            prefix="meshes",
            inputs={"model_url": (source,)},
            **changes,
        )
        file = InputFile(url=url, media_type=source.media_type, sha256=sha256, ours=ours)
        return Order(
            run_id=run_id,
            call=call,
            slots=(Slot(name="models/0", url=f"{at}/{run_id}", **self.slots.options),),
            inputs={"model_url": (file,)},
        )

    async def carried_out(self, order: Order) -> Produced:
        reference = await self.backend.start(order)
        events = [event async for event in self.backend.follow(order.run_id, reference)]
        *before, last = events
        # more would count a clean stop as a death
        assert before == [Progressed(fraction=0), Progressed(fraction=0, waits_for="storage")]
        assert isinstance(last, Produced)
        return last

    async def failed(self, order: Order) -> RunFailed:
        with pytest.raises(RunFailed) as caught:
            await self.carried_out(order)
        return caught.value


@asynccontextmanager
async def bench(folder: Path, **options: Any) -> AsyncGenerator[Bench]:
    limits = options.pop("limits", MeshLimits())
    module = options.pop("module", "gpu_server.mesh.worker")
    disk = DiskSpace((folder,), least_mb=1, free=options.pop("free", lambda _: 10**12))
    async with receiving() as slots, httpx.AsyncClient(trust_env=False) as http:
        backend = CpuBackend(
            pool=MeshPool(limits, workers=2, module=module),
            workers=2,
            transfers=Transfers(
                http=http,
                disk=disk,
                most=limits.file_bytes,
                public=options.pop("public", slots.url),
                local=slots.url,
            ),
            folder=folder / "work",
        )
        await backend.open()
        slots.files["/in.glb"] = glb.rich().bytes()
        yield Bench(backend=backend, slots=slots, folder=folder / "work")
        await backend.close()


async def hanging(folder: Path) -> psutil.Process:
    said = folder / "pid"
    async with asyncio.timeout(PATIENCE_S):
        while not said.exists() or not said.read_text():  # noqa: ASYNC110 - another process says it
            await asyncio.sleep(0.02)
    return psutil.Process(int(said.read_text()))


@pytest.fixture(autouse=True)
def _folder_of_the_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGING_FOLDER", str(tmp_path))


async def test_a_mesh_is_fetched_scaled_and_delivered(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        sha256 = hashlib.sha256(at.slots.files["/in.glb"]).hexdigest()
        produced = await at.carried_out(at.order(sha256=sha256))
        taken = at.slots.taken["/run"]
        (file,) = produced.outputs
        assert (file.slot, file.media_type) == ("models/0", "model/gltf-binary")
        assert (file.bytes, file.sha256) == (taken.count, taken.sha256)
        assert taken.length == str(taken.count)
        assert (file.faces, produced.engine) == (552, "cpu")
        assert produced.params["extents_after"]["x"] == pytest.approx(0.1, rel=1e-6)
        assert produced.params["extents_before_in_unit"]["x"] == pytest.approx(7250, rel=1e-6)
        assert produced.params["unit"] == "mm"
        out = tmp_path / "out.glb"
        out.write_bytes(taken.content)
        low, high = outside.bounds(out)
        assert high[0] - low[0] == pytest.approx(0.1, rel=1e-6)
        # nothing is left of the work
        assert list(at.folder.iterdir()) == []


async def test_its_own_public_address_is_not_gone_through(tmp_path: Path) -> None:
    outside_of = "https://pod-8000.proxy.example.com"
    async with bench(tmp_path, public=outside_of) as at:
        await at.carried_out(at.order(at=outside_of))
        assert at.slots.puts == 1


async def test_a_mesh_is_cleaned_and_brought_into_the_unit_cube(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        produced = await at.carried_out(at.order(operation=NORMALISE, params={}))
        # it adds nothing to what the stage before used
        assert produced.params == {}
        out = tmp_path / "out.glb"
        out.write_bytes(at.slots.taken["/run"].content)
        low, high = outside.bounds(out)
        assert max(high - low) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    ("wanted", "media_type"),
    [("stl", "model/stl"), ("3mf", "model/3mf"), ("obj", "model/obj"), ("obj_zip", None)],
)
async def test_other_formats_go_out_as_what_they_are(
    tmp_path: Path, wanted: str, media_type: str | None
) -> None:
    async with bench(tmp_path) as at:
        produced = await at.carried_out(at.order(params={"scale_factor": 2.0, "format": wanted}))
        assert produced.outputs[0].media_type == (media_type or "application/zip")
        assert produced.params["unit"] == "m"


async def test_a_run_started_twice_is_carried_out_once_and_its_end_is_kept(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        await at.backend.start(at.order())
        first = await at.carried_out(at.order())
        await at.backend.renew(at.order())
        events = [event async for event in at.backend.follow("run", "run")]
        assert events[-1] == first
        assert at.slots.puts == 1
        await at.backend.forget("run", "run")
        with pytest.raises(RunLost):
            await at.backend.renew(at.order())


async def test_a_slot_that_is_away_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.slots.answers = [503, 429]
        await at.carried_out(at.order())
        assert at.slots.puts == 3


async def test_a_bucket_is_told_length_and_md5_and_may_refuse_for_a_while(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.slots.options = {"sized": True, "content_md5": True}
        at.slots.answers = [403, 404, 400, 507]
        produced = await at.carried_out(at.order())
        (file,), taken = produced.outputs, at.slots.taken["/run"]
        digest = hashlib.md5(taken.content, usedforsecurity=False)
        assert (file.md5, taken.length) == (digest.hexdigest(), str(file.bytes))
        assert taken.md5 == base64.b64encode(digest.digest()).decode()
        assert at.slots.puts == 5


async def test_a_mesh_that_is_too_large_for_storage_is_not_made_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.slots.answers = [413]
        failure = (await at.failed(at.order())).failure
        assert (failure.kind, failure.code) == ("fatal", "output_too_large")


async def test_a_slot_that_refuses_fails_the_attempt(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        at.slots.answers = [403]
        failure = (await at.failed(at.order())).failure
        assert (failure.kind, failure.code) == ("transient", "delivery_failed")


@pytest.mark.parametrize(
    ("slot", "kind"), [(None, "usage"), ("models/0", "fatal")], ids=["callers", "ours"]
)
async def test_a_bad_mesh_is_told_by_its_code_and_whose_fault_it_is(
    tmp_path: Path, slot: str | None, kind: str
) -> None:
    async with bench(tmp_path) as at:
        at.slots.files["/in.glb"] = b"glTF no more"
        failure = (await at.failed(at.order(slot=slot))).failure
        assert (failure.kind, failure.code) == (kind, "mesh_invalid")
        # as an input failure is, where the caller has sent the input
        assert failure.message.startswith("model_url: ") == (slot is None)
        assert list(at.folder.iterdir()) == []


async def test_a_flat_mesh_that_is_to_be_scaled_along_its_flat_side_is_refused(
    tmp_path: Path,
) -> None:
    model = glb.Model()
    corners, faces = glb.box(1, 0, 1)
    attributes = {"POSITION": model.accessor(corners)}
    part = {"attributes": attributes, "indices": model.accessor(faces.ravel(), "uint16")}
    model.node(mesh=model.mesh(part))
    async with bench(tmp_path) as at:
        at.slots.files["/in.glb"] = model.bytes()
        sizes = {"target_dimensions": {"y": 10.0, "unit": "mm"}}
        failure = (await at.failed(at.order(params=sizes))).failure
        assert (failure.kind, failure.code) == ("usage", "mesh_flat")


async def test_a_file_larger_than_is_fetched_is_too_large(tmp_path: Path) -> None:
    async with bench(tmp_path, limits=MeshLimits(file_bytes=1000)) as at:
        failure = (await at.failed(at.order())).failure
        assert (failure.kind, failure.code) == ("usage", "mesh_too_large")


async def test_a_foreign_address_is_guarded_and_named_by_its_parameter(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        # the last would be one of ours, had the gateway made it
        for url in ("http://10.0.0.1/x.glb", f"{at.slots.url}/in.glb"):
            failure = (await at.failed(at.order(url=url, ours=False))).failure
            assert (failure.kind, failure.code) == ("usage", "url_refused")
            assert failure.message.startswith("model_url: ")


async def test_a_file_that_is_not_what_was_announced_is_tried_again(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        failure = (await at.failed(at.order(sha256="0" * 64))).failure
        assert (failure.kind, failure.code) == ("transient", "input_changed")


async def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    async with bench(tmp_path, free=lambda _: 0) as at:
        failure = (await at.failed(at.order())).failure
        assert (failure.kind, failure.code) == ("transient", "disk_full")


async def test_work_that_takes_longer_than_its_call_may_is_stopped(tmp_path: Path) -> None:
    async with bench(tmp_path, module=HANGING) as at:
        failure = (await at.failed(at.order(timeout_s=3))).failure
        assert (failure.kind, failure.code) == ("fatal", "timeout")


async def test_a_process_that_dies_is_a_reason_to_try_again(tmp_path: Path) -> None:
    async with bench(tmp_path, module=HANGING) as at:
        await at.backend.start(at.order())
        following = asyncio.create_task(drained(at, "run"))
        (await hanging(tmp_path)).kill()
        with pytest.raises(RunFailed) as caught:
            await following
        assert caught.value.failure.kind == "transient"
        assert caught.value.failure.code == "mesh_crashed"


async def test_a_cancel_kills_the_process_and_leaves_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, module=HANGING) as at:
        await at.backend.start(at.order())
        following = asyncio.create_task(drained(at, "run"))
        process = await hanging(tmp_path)
        await at.backend.cancel("run", "run")
        with pytest.raises(RunCancelled):
            await following
        assert not process.is_running()
        assert list(at.folder.iterdir()) == []


async def test_work_nobody_follows_any_more_is_stopped(tmp_path: Path) -> None:
    async with bench(tmp_path, module=HANGING) as at:
        await at.backend.start(at.order())
        following = asyncio.create_task(drained(at, "run"))
        process = await hanging(tmp_path)
        # as the driver is when its job has ended by another's hand
        following.cancel()
        await asyncio.wait({following})
        assert not process.is_running()
        with pytest.raises(RunLost):
            await at.backend.renew(at.order())


async def test_a_run_begun_by_another_process_is_lost_with_it_and_that_counts(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as at:
        for asked in (at.backend.renew(at.order()), drained(at, "run")):
            with pytest.raises(RunLost) as caught:
                await asked
            assert caught.value.executed
        # it may have ended long ago
        await at.backend.cancel("run", None)
        await at.backend.forget("run", "run")


async def test_a_clean_stop_kills_what_is_under_way_and_counts_no_death(tmp_path: Path) -> None:
    async with bench(tmp_path, module=HANGING) as at:
        await at.backend.start(at.order())
        following = asyncio.create_task(drained(at, "run"))
        process = await hanging(tmp_path)
        closing = asyncio.create_task(at.backend.close())
        with pytest.raises(RunLost) as caught:
            await following
        assert not caught.value.executed
        assert not process.is_running()
        # it waits until the run's row says so, which is when the jobs cancel the attempt
        assert not closing.done()
        await at.backend.cancel("run", "run")
        await asyncio.wait_for(closing, PATIENCE_S)
        assert at.backend.capacity == 0
        with pytest.raises(BackendUnreachable):
            await at.backend.start(at.order())


async def test_it_takes_its_own_operations_and_says_nothing_of_others(tmp_path: Path) -> None:
    async with bench(tmp_path) as at:
        for operation in OPERATIONS.values():
            known = at.backend.readiness(operation.name, operation.digest)
            assert known is not None
            assert known.readiness == "ready"
        assert at.backend.readiness("model3d-trellis2", "d" * 64) is None
        assert (at.backend.name, at.backend.capacity, at.backend.installed) == ("cpu", 2, None)


async def test_what_a_killed_process_left_is_removed_at_the_start(tmp_path: Path) -> None:
    left = tmp_path / "work" / "left"
    left.mkdir(parents=True)
    (left / "source.glb").write_bytes(b"x")
    young = tmp_path / "work" / "young"
    young.mkdir()
    os.utime(left, (0, 0))
    async with bench(tmp_path) as at:
        assert list(at.folder.iterdir()) == [young]


async def drained(at: Bench, run_id: str) -> None:
    async with aclosing(at.backend.follow(run_id, run_id)) as events:
        async for _ in events:
            pass
