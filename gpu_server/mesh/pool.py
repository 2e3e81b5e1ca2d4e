"""Carries out orders in processes of their own, so that a bad model can harm nothing else."""

from types import TracebackType
from typing import Self

from gpu_server.mesh.errors import MeshError
from gpu_server.mesh.order import MeshLimits, MeshOrder, MeshReport, part_of
from gpu_server.mesh.worker import Answer, Task
from gpu_server.workers import Died, Overran, Workers


class MeshPool:
    """Runs each order in a fresh process, a few at a time."""

    def __init__(
        self,
        limits: MeshLimits | None = None,
        *,
        workers: int = 2,
        module: str = "gpu_server.mesh.worker",
    ) -> None:
        self._limits = limits or MeshLimits()
        self._workers = Workers(
            module, Answer, name="mesh", workers=workers, seconds=self._limits.seconds
        )

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
        task = Task(order=order, limits=self._limits)
        try:
            answer = await self._workers.run(task, leftover=part_of(order.target))
        except Overran:
            raise MeshError(
                "mesh_timeout", f"The work took longer than {self._limits.seconds:g} seconds."
            ) from None
        except Died:
            message = "The process working on the model died."
            raise MeshError("mesh_crashed", message) from None
        if answer.report is None:
            raise MeshError(answer.code or "mesh_crashed", answer.message)
        return answer.report

    async def close(self) -> None:
        """Kill what is running and wait until every process is gone."""
        await self._workers.close()
