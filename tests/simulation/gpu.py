"""Simulated GPU services: they queue, execute, fail, restart and lose runs on virtual time."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast

from gateway.backends.base import Order
from gateway.job import Produced
from gpu_server.protocol import Failure, OutputFile
from tests.simulation.store import Content, content

if TYPE_CHECKING:
    from tests.simulation.world import World

Fate = Literal["running", "completed", "spoiled", "transient", "fatal", "lost", "cancelled"]
HANG_S = 400.0
"""An execution that hangs ends by itself after this: far too late to pass for a stop."""


class Full(Exception):
    """The service has no room."""


@dataclass(slots=True)
class Execution:
    """One entry of the journal: a run that really began to execute."""

    run_id: str
    job_id: str
    stage: int
    service: str
    billed: bool
    began: float
    fate: Fate = "running"
    ended: float | None = None
    files: dict[str, Content] = field(default_factory=dict[str, Content])


@dataclass(slots=True)
class ServiceRun:
    """A run as its service knows it."""

    order: Order
    reference: str
    state: Literal["queued", "running", "completed", "failed", "cancelled", "lost"] = "queued"
    fraction: float = 0.0
    executed: bool = False
    produced: Produced | None = None
    failure: Failure | None = None
    task: "asyncio.Task[None] | None" = None
    execution: Execution | None = None


class GpuService:
    """One service with its ComfyUI; it keeps its own books and outlives every gateway."""

    billed = False
    """Its runs are paid for one by one."""
    silent = False
    """It answers nobody, peace or not."""

    def __init__(self, world: "World", name: str, capacity: int, rng: random.Random) -> None:
        self.world = world
        self.name = name
        self.capacity = capacity
        self.reachable = True
        self.generation = 0
        self.runs: dict[str, ServiceRun] = {}
        self._rng = rng
        self._cancelled: set[str] = set()
        self._gpu = asyncio.Lock()

    def put(self, order: Order) -> str:
        """Take or adopt a run. Raises Full."""
        known = self.runs.get(order.run_id)
        if known is not None:
            return known.reference
        run = ServiceRun(order, f"{self.name}/{self.generation}/{len(self.runs)}")
        if order.run_id in self._cancelled:
            # the DELETE has overtaken this PUT
            run.state = "cancelled"
            self.runs[order.run_id] = run
            return run.reference
        open_runs = sum(run.state in ("queued", "running") for run in self.runs.values())
        if open_runs >= self.capacity or self._strikes("full", 0.35):
            raise Full
        self.runs[order.run_id] = run
        run.task = self.world.harness_task(self._carry_out(run), f"{self.name} {order.run_id[:8]}")
        return run.reference

    def renew(self, order: Order) -> bool:
        """Send what a known run has yet to deliver to this order's slots; False = not known."""
        run = self.runs.get(order.run_id)
        if run is not None:
            run.order = order
        return run is not None

    def get(self, run_id: str) -> ServiceRun | None:
        """The run; None when it is not known here."""
        return self.runs.get(run_id)

    def delete(self, run_id: str) -> None:
        """Stop it, wherever it is."""
        self._cancelled.add(run_id)
        run = self.runs.get(run_id)
        if run is not None and run.state in ("queued", "running"):
            run.state = "cancelled"
            self._stop(run, "cancelled")

    def forget(self, run_id: str) -> None:
        """Remove what is left of it."""
        self.world.judge.forgotten(run_id)
        self._cancelled.add(run_id)
        run = self.runs.pop(run_id, None)
        if run is not None:
            self._stop(run, "cancelled")

    def restart(self, *, remembers: bool) -> None:
        """Die and come back; without its journal it knows no run any more."""
        self.generation += 1
        if remembers:
            return
        for run in self.runs.values():
            self._stop(run, "lost")
            if run.execution is not None and run.execution.fate != "cancelled":
                # however it ended: nobody can say so any more
                run.execution.fate = "lost"
        self.runs.clear()
        self._cancelled.clear()

    def kill_engine(self) -> None:
        """ComfyUI dies: what it was executing is lost, and the service says so."""
        for run in self.runs.values():
            if run.state in ("queued", "running"):
                run.state = "lost"
                self._stop(run, "lost")

    def _stop(self, run: ServiceRun, fate: Fate) -> None:
        if run.task is not None:
            run.task.cancel()
        if run.execution is not None and run.execution.fate == "running":
            self._end(run, fate)

    def _end(self, run: ServiceRun, fate: Fate) -> None:
        execution = run.execution
        if execution is not None:
            execution.fate = fate
            execution.ended = self.world.loop.time()
            self.world.trace(f"{self.name} run {execution.run_id[:8]} {fate}")
            self.world.judge.execution_ended(execution)

    def _strikes(self, fault: str, chance: float) -> bool:
        return self.world.strikes(fault, chance, self._rng)

    async def _carry_out(self, run: ServiceRun) -> None:
        order = run.order
        async with self._gpu:
            run.state = "running"
            run.executed = True
            run.execution = Execution(
                run_id=order.run_id,
                job_id=str(order.call.params["job"]),
                stage=cast("int", order.call.params["stage"]),
                service=self.name,
                billed=self.billed,
                began=self.world.loop.time(),
            )
            self.world.trace(f"{self.name} run {order.run_id[:8]} executes")
            self.world.judge.execution_began(run.execution)
            self.world.judge.reads(run.execution, order)
            seconds = HANG_S if self._strikes("hang", 0.3) else self._rng.choice((0.05, 1, 5))
            steps = self._rng.randint(1, 4)
            for step in range(steps):
                await asyncio.sleep(seconds / steps)
                run.fraction = (step + 1) / (steps + 1)
        # sending the files needs no GPU
        if self._fail(run):
            return
        await self._deliver(run, seconds)

    def _fail(self, run: ServiceRun) -> bool:
        kind = None
        if self._strikes("transient", 0.4):
            kind = "transient"
        elif self._strikes("fatal", 0.2):
            kind = "fatal"
        if kind is None:
            return False
        run.failure = Failure(kind=kind, code=f"simulated_{kind}", message="a simulated failure")
        run.state = "failed"
        self._end(run, kind)
        return True

    async def _deliver(self, run: ServiceRun, seconds: float) -> None:
        fate: Fate = "completed"
        files: list[OutputFile] = []
        for slot in run.order.slots:
            await asyncio.sleep(self._rng.choice((0.001, 0.3)))
            data = content(f"{run.order.run_id} {slot.name}")
            sent: Content | None = data
            if self._strikes("bad_files", 0.3):
                fate = "spoiled"
                torn = Content(bytes=data.bytes - 1, sha256="0" * 64)
                sent = self._rng.choice((None, torn))
                if self._rng.random() < 0.3:
                    self.world.later(3, self.world.store.put, slot.url, data)
            if sent is not None and not self.world.store.put(slot.url, sent):
                run.failure = Failure(kind="transient", code="slot_expired", message="too late")
                run.state = "failed"
                self._end(run, "transient")
                return
            file = OutputFile(
                slot=slot.name, media_type="image/png", bytes=data.bytes, sha256=data.sha256
            )
            files.append(file)
            if run.execution is not None:
                run.execution.files[slot.name] = data
        run.produced = Produced(
            outputs=tuple(files),
            params=dict(run.order.call.params),
            engine="simulator",
            duration_seconds=seconds,
        )
        run.fraction = 1.0
        run.state = "completed"
        self._end(run, fate)


class Serverless(GpuService):
    """One that is paid for by the run; with its receipts, no id executes twice there either."""

    billed = True

    def put(self, order: Order) -> str:
        """Take or adopt a run, and then answer nobody for long. Raises Full."""
        reference = super().put(order)
        if not self.silent and self._strikes("silence", 0.5):
            self.silent = True
            # longer than any other backend is waited for
            began, seconds = self._rng.choice((0.0, 0.5, 2)), self._rng.choice((12, 25))
            self.world.later(began, self._fall_silent)
            self.world.later(began + seconds, self._speak)
        return reference

    def _fall_silent(self) -> None:
        self.world.trace(f"{self.name} falls silent")
        self.reachable = False

    def _speak(self) -> None:
        self.world.trace(f"{self.name} answers again")
        self.silent, self.reachable = False, True
        self.world.disturb()
