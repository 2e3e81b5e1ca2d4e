"""The pool: real processes that work, hang, eat memory, die and are cancelled."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import Clean, MeshLimits, MeshOrder, Normalise, part_of
from gpu_server.mesh.pool import MeshPool
from gpu_server.mesh.worker import Answer, Task
from tests.unit.gpu_server.mesh import glb

WORKER = "gpu_server.mesh.worker"
HANGING = "tests.unit.gpu_server.mesh.hanging"
FAILING = "tests.unit.gpu_server.mesh.failing"


def order(folder: Path, model: glb.Model | None = None) -> MeshOrder:
    source = (model or glb.rich()).save(folder / "in.glb")
    return MeshOrder(source=source, target=folder / "out.glb", steps=(Clean(), Normalise()))


async def started(folder: Path) -> psutil.Process:
    """Wait until the hanging process has said its number."""
    said = folder / "pid"
    async with asyncio.timeout(60):
        while not said.exists() or not said.read_text():  # noqa: ASYNC110  # another process says it
            await asyncio.sleep(0.02)
    return psutil.Process(int(said.read_text()))


def workers() -> list[psutil.Process]:
    """Processes of pools; other tests leave children of their own behind."""
    children = psutil.Process().children()
    return [child for child in children if {WORKER, HANGING} & set(child.cmdline())]


def gone(process: psutil.Process) -> bool:
    return not process.is_running()


@pytest.fixture(autouse=True)
def folder_of_the_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANGING_FOLDER", str(tmp_path))


async def test_orders_are_carried_out_side_by_side_and_leave_no_process(tmp_path: Path) -> None:
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()
    async with MeshPool(workers=2) as pool:
        assert workers() == []
        reports = await asyncio.gather(*(pool.run(order(folder)) for folder in folders))
    assert [report.after.x for report in reports] == pytest.approx([1, 1, 1])
    assert all((folder / "out.glb").exists() for folder in folders)
    assert workers() == []


async def test_a_fault_of_the_model_comes_back_with_its_code(tmp_path: Path) -> None:
    async with MeshPool() as pool:
        with pytest.raises(MeshError) as caught:
            await pool.run(order(tmp_path, glb.Model()))
    assert caught.value.code == "mesh_empty"


async def test_a_process_ends_well_while_its_parent_lives(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", WORKER),
        cwd=Path(__file__).parents[4],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    task = Task(order=order(tmp_path), limits=MeshLimits())
    process.stdin.write(task.model_dump_json().encode() + b"\n")
    # the pipe to it stays open: it is still waiting for its parent's end when its work is done
    said, complained = await asyncio.gather(process.stdout.read(), process.stderr.read())
    code = await process.wait()
    process.stdin.close()
    assert Answer.model_validate_json(said).report is not None
    assert (code, complained) == (0, b"")


async def test_an_error_nobody_foresaw_is_the_models_fault_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAILING_WITH", "IndexError")
    async with MeshPool(module=FAILING) as pool:
        with pytest.raises(MeshError) as caught:
            await pool.run(order(tmp_path))
    assert caught.value.code == "mesh_invalid"
    assert "secret detail" not in caught.value.message
    assert "Traceback" in caplog.text
    assert "IndexError: secret detail" in caplog.text


@pytest.mark.parametrize("error", ["OSError", "ImportError"])
async def test_an_error_of_the_machine_is_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setenv("FAILING_WITH", error)
    async with MeshPool(module=FAILING) as pool:
        with pytest.raises(MeshError, match="mesh_crashed"):
            await pool.run(order(tmp_path))


async def test_a_process_that_hangs_is_killed_in_time(tmp_path: Path) -> None:
    async with MeshPool(MeshLimits(seconds=3), module=HANGING) as pool:
        with pytest.raises(MeshError, match="mesh_timeout"):
            await pool.run(order(tmp_path))
        assert workers() == []


async def test_a_model_that_needs_more_memory_than_allowed_is_too_large(tmp_path: Path) -> None:
    model = glb.Model()
    triangles = np.random.default_rng(1).random((2_400_000, 3), dtype=np.float32)
    model.node(mesh=model.mesh({"attributes": {"POSITION": model.accessor(triangles)}}))
    async with MeshPool(MeshLimits(memory_bytes=512 * 2**20)) as pool:
        with pytest.raises(MeshError, match="mesh_too_large"):
            await pool.run(order(tmp_path, model))
    assert not order(tmp_path).target.exists()
    assert not part_of(order(tmp_path).target).exists()


async def test_a_killed_process_is_a_crash_and_the_next_order_goes_well(tmp_path: Path) -> None:
    async with MeshPool(module=HANGING, workers=1) as pool:
        work = asyncio.create_task(pool.run(order(tmp_path)))
        process = await started(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(MeshError, match="mesh_crashed"):
            await work
        (tmp_path / "pid").unlink()
        again = asyncio.create_task(pool.run(order(tmp_path)))
        await started(tmp_path)
        again.cancel()
    async with MeshPool() as pool:
        assert (await pool.run(order(tmp_path))).faces == 552


async def test_cancelling_kills_the_process(tmp_path: Path) -> None:
    async with MeshPool(module=HANGING) as pool:
        work = asyncio.create_task(pool.run(order(tmp_path)))
        process = await started(tmp_path)
        (tmp_path / "out.glb.part").write_text("half")
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert gone(process)
        assert not (tmp_path / "out.glb.part").exists()


async def test_closing_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    pool = MeshPool(module=HANGING, workers=1)
    work = [asyncio.create_task(pool.run(order(tmp_path))) for _ in range(2)]
    process = await started(tmp_path)
    await pool.close()
    assert gone(process)
    for one in work:
        with pytest.raises(RuntimeError, match="closed"):
            await one
    with pytest.raises(RuntimeError, match="closed"):
        await pool.run(order(tmp_path))


async def test_a_process_ends_by_itself_when_its_parent_is_gone(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ORPHANING, str(order(tmp_path).source), str(tmp_path / "out.glb")),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
    )
    child = await started(tmp_path)
    process.kill()
    await process.wait()
    async with asyncio.timeout(60):
        while not gone(child) and child.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  # not our child
            await asyncio.sleep(0.02)


ORPHANING = f"""
import asyncio, pathlib, sys
from gpu_server.mesh.order import MeshOrder
from gpu_server.mesh.pool import MeshPool
order = MeshOrder(source=pathlib.Path(sys.argv[1]), target=pathlib.Path(sys.argv[2]))
asyncio.run(MeshPool(module="{HANGING}").run(order))
"""
