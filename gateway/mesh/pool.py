"""Carries out orders in processes of their own, so that a bad model can harm nothing else."""

import asyncio
import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from gateway.mesh.errors import MeshError
from gateway.mesh.order import MeshLimits, MeshOrder, MeshReport, part_of
from gateway.mesh.worker import Answer, Task

_ROOT = Path(__file__).parents[2]
_TAIL = 4000

_log = logging.getLogger(__name__)


class MeshPool:
    """Runs each order in a fresh process, a few at a time.

    A process is spawned for one order and never used again: memory goes back, and one that hangs,
    overruns or dies takes nothing with it. It also ends by itself when this process is gone.
    """

    def __init__(
        self,
        limits: MeshLimits | None = None,
        *,
        workers: int = 2,
        module: str = "gateway.mesh.worker",
    ) -> None:
        self._limits = limits or MeshLimits()
        self._places = asyncio.Semaphore(workers)
        self._module = module
        self._running: set[asyncio.Task[MeshReport]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def run(self, order: MeshOrder) -> MeshReport:
        """Carry out an order; cancelling kills its process.

        Raises:
            MeshError: with the model's fault, or `mesh_timeout`, `mesh_too_large`, `mesh_crashed`.
            RuntimeError: the pool is closed.
        """
        if self._closed:
            raise RuntimeError("the mesh pool is closed")
        task = asyncio.create_task(self._run(order))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and caller is not None and not caller.cancelling():
                raise RuntimeError("the mesh pool was closed") from None
            raise

    async def close(self) -> None:
        """Kill what is running and wait until every process is gone."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, order: MeshOrder) -> MeshReport:
        async with self._places:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                cwd=_ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                async with asyncio.timeout(self._limits.seconds):
                    answer = await self._talk(process, order)
            except TimeoutError:
                raise MeshError(
                    "mesh_timeout", f"The work took longer than {self._limits.seconds:g} seconds."
                ) from None
            finally:
                await _end(process)
                part_of(order.target).unlink(missing_ok=True)
        if answer.report is None:
            raise MeshError(answer.code or "mesh_crashed", answer.message)
        return answer.report

    async def _talk(self, process: asyncio.subprocess.Process, order: MeshOrder) -> Answer:
        assert process.stdin is not None  # noqa: S101  # pipes were asked for
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        task = Task(order=order, limits=self._limits)
        try:
            process.stdin.write(task.model_dump_json().encode() + b"\n")
            await process.stdin.drain()
        except ConnectionError:
            _log.debug("the mesh process was gone before it was told what to do")
        said, complained = await asyncio.gather(process.stdout.read(), process.stderr.read())
        code = await process.wait()
        if complained or code:
            tail = complained[-_TAIL:].decode(errors="replace")
            _log.error("the mesh process ended with %s: %s", code, tail)
        try:
            return Answer.model_validate_json(said)
        except ValidationError:
            return Answer(code="mesh_crashed", message="The process working on the model died.")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that a process is gone and its pipes are closed, also while being cancelled."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            _log.debug("the mesh process ended by itself")
    if process.stdin is not None:
        process.stdin.close()
    # reads what is left, or its pipes would outlive it
    await asyncio.shield(asyncio.create_task(process.communicate()))
