"""One simulated world: a seed, a database, services, a gateway that keeps dying, and its judge."""

import asyncio
import gc
import logging
import os
import random
import sqlite3
import tempfile
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, create_engine, func
from sqlalchemy.pool import StaticPool

from gateway.db import owners
from gateway.db.engine import Dialect
from gateway.db.tables import metadata
from tests.simulation.chaos import Chaos
from tests.simulation.dbapi import Server
from tests.simulation.direct import DirectServer, File
from tests.simulation.gpu import GpuService, Serverless
from tests.simulation.judge import Judge
from tests.simulation.ledger import Ledger, template
from tests.simulation.loop import Stuck, VirtualLoop
from tests.simulation.plan import Plan
from tests.simulation.process import Process
from tests.simulation.replica import Replica
from tests.simulation.store import Store
from tests.simulation.workload import Workload

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MAX_STEPS = 100_000
REST_S = 150.0
"""Everything ends within this time after the last deadline, once faults have stopped."""
_SHM = Path("/dev/shm")


class WorldClock:
    """The machine's wall clock: virtual, and it may jump."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.offset = 0.0

    def seconds(self) -> float:
        return self._loop.time() + self.offset

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds())


@dataclass(slots=True)
class Report:
    """What became of one seed."""

    seed: int
    breaches: list[str] = field(default_factory=list[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    steps: int = 0
    operations: int = 0
    jobs: int = 0
    executions: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    incarnations: int = 0
    turns: int = 0
    """Turns of the first incarnation."""
    virtual_s: float = 0.0
    fingerprint: int = 0
    """Depends on every step's time and order: equal for equal runs."""


class World:
    """Everything of one seed; `run_seed` makes it and takes it down."""

    def __init__(self, plan: Plan, folder: Path, *, trace: bool) -> None:
        self.plan = plan
        self.folder = folder
        seed = plan.seed
        self.loop = VirtualLoop(
            random.Random(f"{seed} schedule"),
            scheduler="fifo" if plan.scheduler == "fifo" else "random",
            max_steps=MAX_STEPS,
        )
        self.report = Report(seed)
        self._tracing = trace
        self.fingerprint = 0
        self.clocks = [WorldClock(self.loop) for _ in range(plan.replicas)]
        self.clock = self.clocks[0]
        self.ledger = Ledger(self)
        self.judge = Judge(self)
        self.server = self._server()
        self.store = Store(self, random.Random(f"{seed} store"))
        self.services = [
            GpuService(self, f"gpu{n}", capacity, random.Random(f"{seed} gpu {n}"))
            for n, capacity in enumerate(plan.capacities)
        ]
        if plan.billed:
            rng = random.Random(f"{seed} serverless")
            self.services.append(Serverless(self, "runpod:r", plan.billed, rng))
        self.folder_held_by: Process | None = None
        self.faulty = True
        self.disturbed_at = 0.0
        self.executions = 0
        self.ever_deleted = False
        self.seats: list[Replica] = []
        """The present incarnation of each gateway."""
        self.replicas: list[Replica] = []
        self._crashes = [list(turns) for turns in plan.crashes]
        self._pauses = [list(pauses) for pauses in plan.pauses]
        self._messages = random.Random(f"{seed} messages")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._outside = Context()

    def _server(self) -> Server:
        plan = self.plan
        rng = random.Random(f"{plan.seed} database")
        drawn = random.Random(f"{plan.seed} batch")
        self.batch_members = frozenset(n for n in range(plan.jobs) if drawn.random() < 0.4)
        self.batch_id = str(uuid.UUID(int=drawn.getrandbits(128), version=4))
        if plan.driver == "aiosqlite":
            self.batch_members = frozenset[int]()
            path = str(self.folder / "sim.db")
            return Server(path, rng, observer=self.ledger, slow=plan.slow_database)
        if self.batch_members:
            batch = {
                "id": self.batch_id,
                "caller": "caller0",
                "tool": "image",
                "total": len(self.batch_members),
                "created_at": 0,
                "webhook_url": drawn.choice((None, "https://example.com/batch")),
            }
            _file().put("batches", batch)
            unset = {"ended": 0, "finished_at": None}
            self.ledger.batches[self.batch_id] = {**batch, **unset}
        _file().clock = lambda: int((self.began + self.loop.time()) * 1e6)
        return DirectServer(
            _file(), rng, observer=self.ledger, slow=plan.slow_database, notify=self.tell_all
        )

    # --- what everything else leans on ---

    def trace(self, text: str) -> None:
        """One line of the story, in virtual time."""
        line = f"{self.loop.steps} {self.loop.time()} {text}"
        self.fingerprint = zlib.crc32(line.encode(), self.fingerprint)
        if self._tracing:
            print(f"{self.loop.time():10.4f}  {text}")  # noqa: T201 - the replay's very purpose

    def breach(self, text: str) -> None:
        """A rule was broken."""
        self.trace(f"!!! {text}")
        self.report.breaches.append(f"at {self.loop.time():.4f} s: {text}")

    def disturb(self) -> None:
        """Something was just hindered: time limits count from here."""
        self.disturbed_at = self.loop.time()

    def strikes(self, fault: str, chance: float, rng: random.Random) -> bool:
        """Whether a fault strikes here and now."""
        if not self.faulty or not self.plan.has(fault) or rng.random() >= chance:
            return False
        self.struck(fault)
        return True

    def struck(self, fault: str) -> None:
        """Count an injected fault."""
        self.report.faults[fault] += 1
        self.disturb()

    def later(self, delay: float, function: Callable[..., object], *args: Any) -> None:
        """Call something outside every process, whoever dies meanwhile."""
        self.loop.call_later(delay, function, *args, context=self._outside)

    def later_in(self, process: Process, function: Callable[..., object]) -> None:
        """Call something inside a process at its next turn."""
        self.loop.call_soon(function, context=process.context())

    def harness_task(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task outside every process."""
        task = self.loop.create_task(coro, name=name, context=self._outside.copy())
        self._tasks.add(task)
        return task

    @property
    def began(self) -> float:
        """Seconds since 1970 at which virtual time begins."""
        return EPOCH.timestamp()

    @property
    def clocks_agree(self) -> bool:
        """Whether heartbeats go by one clock that never jumps: with several gateways they do."""
        return self.plan.replicas > 1 or not self.plan.has("clock_jump")

    def ready(self) -> list[Replica]:
        """The gateways that serve."""
        return [
            replica
            for replica in self.seats
            if replica.ready.is_set() and replica.process.state == "running"
        ]

    def tell_all(self, told: list[str]) -> None:
        """The messages of a commit to all gateways: late, or lost."""
        rng = self._messages
        for replica in self.seats:
            if replica.notices is None or replica.process.state == "dead":
                continue
            for text in told:
                if self.faulty and rng.random() < 0.15:
                    continue
                # one connection carries them: none overtakes another
                arrives = self.loop.time() + rng.choice((0.0005, 0.0005, 0.01, 0.5))
                arrives = replica.notices.last = max(arrives, replica.notices.last + 1e-6)
                hear = partial(replica.notices.hear, text)
                self.later(arrives - self.loop.time(), self.later_in, replica.process, hear)

    def launch(self, seat: int) -> Replica:
        """Start the next incarnation of a gateway."""
        replica = Replica(self, seat, f"g{seat}.{sum(r.seat == seat for r in self.replicas)}")
        crashes, pauses = self._crashes[seat], self._pauses[seat]
        if self.faulty:
            replica.process.crash_at = crashes.pop(0) if crashes else None
            if pauses:
                replica.process.pause_at, replica.pause_s = pauses.pop(0)
        self.replicas.append(replica)
        if seat == len(self.seats):
            self.seats.append(replica)
        self.seats[seat] = replica
        self.disturb()
        replica.start()
        return replica

    # --- the story ---

    async def story(self) -> None:
        """Work under faults, then peace, then the judgement."""
        workload = Workload(self, random.Random(f"{self.plan.seed} workload"))
        chaos = Chaos(self, random.Random(f"{self.plan.seed} chaos"))
        for seat in range(self.plan.replicas):
            self.launch(seat)
        supervisors = [
            self.harness_task(chaos.supervise(seat), f"supervisor {seat}")
            for seat in range(self.plan.replicas)
        ]
        storm = self.harness_task(chaos.strike(), "chaos")
        await workload.submitted()
        await storm
        await chaos.heal()
        await self._rest(workload)
        for supervisor in supervisors:
            supervisor.cancel()
        for call in workload.unanswered():
            self.breach(f"never answered: {call}")
        self.judge.last_words()
        for replica in self.seats:
            await replica.stop()
        for context in self.loop.errors:
            self.breach(f"an error nobody handled: {context}")

    async def _rest(self, workload: Workload) -> None:
        limit = self.loop.time() + workload.longest_deadline_s + REST_S
        while self.loop.time() < limit:
            if self.ledger_at_rest() and not workload.unanswered():
                return
            await asyncio.sleep(1)

    def ledger_at_rest(self) -> bool:
        """Every job has ended and nothing executes."""
        running = any(
            execution.fate == "running"
            for executions in self.judge.executions.values()
            for execution in executions
        )
        open_jobs = any(
            book.row["finished_at"] is None and not book.deleted
            for book in self.ledger.jobs.values()
        )
        return not running and not open_jobs

    def bury(self) -> None:
        """Take everything down once it has been judged."""
        # what libraries say of connections closed under them is of no interest
        logging.disable(logging.CRITICAL)
        for replica in self.replicas:
            replica.process.kill()
            replica.process.prune()
            replica.process.bury()
        harness = Process("harness")
        for task in self._tasks:
            harness.adopt(task)
        harness.bury()
        logging.disable(logging.NOTSET)


def run_plan(plan: Plan, *, trace: bool = False) -> Report:
    """Live through one seed's world and judge it."""
    with _folder(plan) as folder, _seeded(plan.seed), _clock_of_the_database(plan):
        world = World(plan, folder, trace=trace)
        collecting = gc.isenabled()
        gc.disable()
        try:
            Context().run(world.loop.run, world.story())
        except Stuck as stuck:
            world.breach(str(stuck))
            world.judge.last_words()
        finally:
            world.bury()
            if collecting:
                gc.enable()
        report = world.report
        report.steps = world.loop.steps
        report.operations = world.server.operations
        report.jobs = len(world.ledger.jobs)
        report.executions = world.executions
        report.outcomes = Counter(book.row["status"] for book in world.ledger.jobs.values())
        report.incarnations = len(world.replicas)
        report.turns = world.replicas[0].process.steps
        report.virtual_s = world.loop.time()
        report.fingerprint = world.fingerprint
        return report


@cache
def _tables() -> bytes:
    def create(connection: sqlite3.Connection) -> None:
        engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
        metadata.create_all(engine)

    return template(create)


@cache
def _file() -> File:
    return File(_tables())


@contextmanager
def _folder(plan: Plan) -> Generator[Path]:
    if plan.driver == "direct":
        _file().empty()
        # the program asks for a folder, and finds its database elsewhere
        yield Path(tempfile.gettempdir())
        return
    with tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder:
        (Path(folder) / "sim.db").write_bytes(_tables())
        yield Path(folder)


@cache
def _by_its_clock(dialect: Dialect) -> owners.Statements:
    del dialect
    return owners.Statements(func.database_clock(type_=BigInteger))


@contextmanager
def _clock_of_the_database(plan: Plan) -> Generator[None]:
    """With several gateways the database's clock says who is alive, as on PostgreSQL."""
    before = owners.statements
    if plan.replicas > 1:
        owners.statements = _by_its_clock
    try:
        yield
    finally:
        owners.statements = before


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Draw from the seed what programs draw from the system."""
    rng = random.Random(f"{seed} system")
    state = random.getstate()
    random.seed(f"{seed} global")
    real_urandom, real_uuid4 = os.urandom, uuid.uuid4
    os.urandom = rng.randbytes
    uuid.uuid4 = lambda: uuid.UUID(int=rng.getrandbits(128), version=4)
    try:
        yield
    finally:
        os.urandom, uuid.uuid4 = real_urandom, real_uuid4
        random.setstate(state)
