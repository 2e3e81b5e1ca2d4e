"""The gateway's side of a simulated GPU service: the Backend protocol over a hostile network."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from gateway.backends.base import (
    BackendFull,
    BackendUnreachable,
    Kind,
    Order,
    Progressed,
    RunCancelled,
    RunFailed,
    RunLost,
    WorkflowReadiness,
)
from gateway.job import Produced
from tests.simulation.gpu import Full, GpuService

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
ANSWER_WITHIN_S = 1.5


class SimulatedBackend:
    """One gateway incarnation's client of one service."""

    def __init__(self, world: "World", service: GpuService, rng: random.Random) -> None:
        self._world = world
        self._service = service
        self._rng = rng
        # like the real one it knows nothing of the service before it has seen it
        self._seen_at = world.loop.time() + rng.choice((0, 0, 0.5))

    @property
    def name(self) -> str:
        return self._service.name

    @property
    def kind(self) -> Kind:
        return "runpod" if self._service.billed else "gpu"

    @property
    def billed(self) -> bool:
        return self._service.billed

    @property
    def capacity(self) -> int:
        seen = self._service.reachable and self._world.loop.time() >= self._seen_at
        return self._service.capacity if seen else 0

    @property
    def engine(self) -> str | None:
        return "simulator" if self._world.loop.time() >= self._seen_at else None

    @property
    def installed(self) -> Mapping[str, frozenset[str]] | None:
        return {}

    def readiness(self, workflow: str, digest: str) -> WorkflowReadiness:
        del workflow, digest
        return WorkflowReadiness(readiness="ready" if self.capacity else "unknown")

    async def start(self, order: Order) -> str:
        self._world.trace(f"-> {self.name} start {order.run_id[:8]}")
        self._world.judge.asked_to_start(order.run_id, again=order.again)
        try:
            return await self._call(order.run_id, lambda: self._service.put(order))
        except BackendUnreachable:
            self._world.judge.start_unanswered(order.run_id)
            raise
        except Full:
            raise BackendFull from None

    async def renew(self, order: Order) -> None:
        self._world.trace(f"-> {self.name} renew {order.run_id[:8]}")
        if not await self._call(order.run_id, lambda: self._service.renew(order)):
            raise RunLost

    async def follow(self, run_id: str, reference: str) -> AsyncIterator[Progressed | Produced]:
        del reference
        last = -1.0
        while True:
            run = await self._call(run_id, lambda: self._service.get(run_id))
            if run is None:
                raise RunLost
            if run.state == "lost":
                raise RunLost(executed=run.executed)
            if run.state == "failed" and run.failure is not None:
                raise RunFailed(run.failure, executed=run.executed)
            if run.state == "cancelled":
                raise RunCancelled
            if run.fraction > last:
                # the stream begins with the present state; later events get lost and come twice,
                # only the last word never does
                times = 1 if last < 0 else self._rng.choice((0, 1, 1, 1, 2))
                last = run.fraction
                for _ in range(times):
                    yield Progressed(fraction=last)
            if run.state == "completed" and run.produced is not None:
                yield run.produced
                return
            await asyncio.sleep(self._rng.choice((0.05, 1, 2)))

    async def cancel(self, run_id: str, reference: str | None) -> None:
        del reference
        self._world.trace(f"-> {self.name} cancel {run_id[:8]}")
        await self._call(run_id, lambda: self._service.delete(run_id))

    async def forget(self, run_id: str, reference: str) -> None:
        del reference
        await self._call(run_id, lambda: self._service.forget(run_id))

    async def _call(self, run_id: str, request: Callable[[], T]) -> T:
        """One request: late, twice, refused or answered into the void, as the seed has it."""
        try:
            answer = await self._exchange(request)
        except BackendUnreachable:
            self._world.judge.no_contact(run_id)
            raise
        except Full:
            self._world.judge.contact(run_id)
            raise
        self._world.judge.contact(run_id)
        return answer

    async def _exchange(self, request: Callable[[], T]) -> T:
        world, service = self._world, self._service
        answer: asyncio.Future[T | Full] = world.loop.create_future()
        generation = service.generation
        drawn = self._rng.random()
        slow = 0.0
        if self._strikes("late_answers", 0.15):
            # half of them arrive after the caller has given up
            slow = self._rng.uniform(*self._rng.choice(((0.3, 2), (ANSWER_WITHIN_S, 4))))
        there = 0.0005 + drawn * 0.01 + slow
        back = 0.0005 + (1 - drawn) * 0.01
        lost = self._strikes("lost_answers", 0.1)

        refused = False

        def arrive(*, again: bool = False) -> None:
            nonlocal refused
            # a refusal is an answer: nothing sends a request again that got one
            if refused or not service.reachable or service.generation != generation:
                return
            try:
                result = request()
            except Full as full:
                refused = True
                result = full
            if not again and not lost:
                world.later(back, self._answer, answer, result)

        world.later(there, arrive)
        if self._strikes("duplicates", 0.1):
            world.later(there + self._rng.choice((0.001, 2)), lambda: arrive(again=True))
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S if service.reachable else 0.5):
                result = await answer
        except TimeoutError:
            raise BackendUnreachable from None
        if isinstance(result, Full):
            raise result
        return result

    def _answer(self, answer: "asyncio.Future[T | Full]", result: T | Full) -> None:
        if self._service.reachable and not answer.done():
            answer.set_result(result)

    def _strikes(self, fault: str, chance: float) -> bool:
        return self._world.strikes(fault, chance, self._rng)
