"""A simulated gateway process around the real job engine: it starts, dies, freezes and answers."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import OperationalError

from gateway.db import Database, DatabaseUnavailable, FolderInUse
from gateway.db.notices import CHANNEL, Notice, Notices
from gateway.jobs.engine import Jobs
from gateway.jobs.settings import JobSettings
from tests.simulation import dbapi
from tests.simulation.backend import SimulatedBackend
from tests.simulation.direct import IDLE_SESSION_S, DirectServer, create_direct_engine
from tests.simulation.engines import create_async_engine
from tests.simulation.loop import spawn
from tests.simulation.process import Process
from tests.simulation.store import SimulatedNames, SimulatedStorage

if TYPE_CHECKING:
    from tests.simulation.world import World

T = TypeVar("T")
DRIVERS = {"direct": create_direct_engine, "aiosqlite": create_async_engine}


class ConnectionLost(Exception):
    """The gateway went away, or hung up, before it answered: the caller knows nothing."""


class FolderLock:
    """The kernel's lock on the data folder: one holder, dropped at its death."""

    def __init__(self, world: "World", process: Process) -> None:
        self._world = world
        self._process = process

    def acquire(self) -> None:
        holder = self._world.folder_held_by
        if holder is not None and holder.state == "running" and holder is not self._process:
            raise FolderInUse(self._world.folder)
        # a frozen holder is passed over on purpose: that makes the zombie whose writes must miss
        self._world.folder_held_by = self._process

    def release(self) -> None:
        if self._world.folder_held_by is self._process:
            self._world.folder_held_by = None


class SharedDatabase(Database):
    """The database of several gateways: nobody proves to be alone on it."""

    def claim(self) -> bool:
        return False


class SimulatedNotices(Notices):
    """A gateway's ear: it hears of commits late, or not at all, and its connection may break."""

    def __init__(self, server: DirectServer) -> None:
        super().__init__("")
        self._server = server
        self.last = 0.0
        """When the latest message sent to it arrives."""

    async def run(self) -> None:
        while True:
            try:
                await self._server.turn()
            except OperationalError:
                await asyncio.sleep(0.5)
                continue
            lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._server.ears.append(lost)
            self._pass_on(Notice(kind="missed"))
            self.listening.set()
            await lost
            self.listening.clear()

    def hear(self, told: str) -> None:
        """A message arrives."""
        if self.listening.is_set():
            self._told(None, 0, CHANNEL, told)


class Replica:
    """One incarnation of a gateway."""

    def __init__(self, world: "World", seat: int, name: str) -> None:
        self.world = world
        self.seat = seat
        """Which of the gateways it is."""
        self.process = Process(name)
        self.process.base.run(dbapi.SERVER.set, world.server)
        self.process.at_death.append(self._died)
        self.process.at_freeze.append(self._frozen)
        self.process.at_thaw.append(self._thawed)
        self.pause_s = 0.0
        """How long it stays stopped at the turn drawn for that."""
        self.died = asyncio.Event()
        self.ready = asyncio.Event()
        self.stopping = False
        self.jobs: Jobs | None = None
        self.db: Database | None = None
        self.notices: SimulatedNotices | None = None
        self._open_calls: list[asyncio.Future[None]] = []
        self._handlers = 0

    def start(self) -> None:
        """Begin the process."""
        self.world.trace(f"{self.process.name} starts")
        spawn(self.world.loop, self.process, self._main(), f"{self.process.name} main")

    async def _main(self) -> None:
        try:
            await self._serve()
        except DatabaseUnavailable:
            # the program ends with an error, and its supervisor starts it anew
            self.world.later(0, self.process.kill)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is found
            # one that is buried is beyond that
            if self.process.state != "dead":
                self.world.breach(f"{self.process.name} did not start: {error!r}")

    async def _serve(self) -> None:
        world = self.world
        rng = random.Random(f"{world.plan.seed} backends {self.process.name}")
        db = self.db = self._database()
        self.jobs = Jobs(
            db=db,
            backends=[SimulatedBackend(world, service, rng) for service in world.services],
            storage=SimulatedStorage(world, world.store),
            names=SimulatedNames(),
            settings=JobSettings(**world.plan.settings),  # type: ignore[arg-type]
            clock=world.clocks[self.seat],
            rng=random.Random(f"{world.plan.seed} engine {self.process.name}"),
        )
        await self.jobs.start()
        self.ready.set()

    def _database(self) -> Database:
        world = self.world
        url = f"sqlite+aiosqlite:///{world.folder / 'gateway.db'}"
        make = SharedDatabase if world.plan.replicas > 1 else Database
        db = make(
            url,
            engine_factory=DRIVERS[world.plan.driver],
            sole_ownership=FolderLock(world, self.process),
        )
        if world.plan.notify and isinstance(world.server, DirectServer):
            db.notices = self.notices = SimulatedNotices(world.server)
        return db

    def _frozen(self) -> None:
        world, server = self.world, self.world.server
        world.trace(f"{self.process.name} freezes at turn {self.process.steps}")
        world.disturb()
        if self.process.steps == self.process.pause_at:
            world.struck("pause")
            world.later(self.pause_s, self.process.thaw, world.loop)
        if isinstance(server, DirectServer) and (left := server.frozen(self.process)) is not None:
            world.later(IDLE_SESSION_S, self._end_session, server, left)

    def _end_session(self, server: DirectServer, left: object) -> None:
        if self.process.state == "frozen" and server.frozen(self.process) is left:
            self.world.trace(f"{self.process.name}'s open transaction is ended by the server")
            self.world.disturb()
            server.end(server.frozen(self.process))

    def _thawed(self) -> None:
        self.world.trace(f"{self.process.name} goes on")
        self.world.disturb()
        if isinstance(self.world.server, DirectServer):
            self.world.server.thawed()

    def _died(self) -> None:
        self.world.trace(f"{self.process.name} dies at turn {self.process.steps}")
        self.world.disturb()
        FolderLock(self.world, self.process).release()
        if isinstance(self.world.server, DirectServer):
            self.world.server.gone(self.process)
        self.died.set()
        self.drop_connections()

    def drop_connections(self) -> None:
        """Every client loses its connection, and nobody gets a new one."""
        self.ready.clear()
        calls, self._open_calls = self._open_calls, []
        for call in calls:
            if not call.done():
                call.set_result(None)

    async def stop(self) -> None:
        """End it as SIGTERM does: the server lets nobody in, then stops the engine."""
        self.stopping = True
        self.ready.clear()
        self.world.trace(f"{self.process.name} stops")
        stopped = self.world.loop.create_future()

        async def stop() -> None:
            if self.jobs is not None and self.db is not None:
                with suppress(DatabaseUnavailable):
                    await self.jobs.stop()
                await self.db.close()
            stopped.set_result(None)

        spawn(self.world.loop, self.process, stop(), f"{self.process.name} stop")
        await asyncio.wait(
            [stopped, self.world.harness_task(self.died.wait(), "death")],
            return_when=asyncio.FIRST_COMPLETED,
            timeout=120,
        )
        if not stopped.done() and self.process.state == "running":
            self.world.breach(f"{self.process.name} did not stop within 120 s")
        self.process.kill()

    async def call(self, handle: Callable[[Jobs], Awaitable[T]], *, hang_up_after: float = 0) -> T:
        """A request: handled inside the process, answered to a client outside it.

        Raises ConnectionLost when the answer never comes, and what the engine raises.
        """
        if not self.ready.is_set() or self.jobs is None:
            raise ConnectionLost
        jobs = self.jobs
        box: list[T | Exception] = []
        answered: asyncio.Future[None] = self.world.loop.create_future()

        async def handler() -> None:
            try:
                box.append(await handle(jobs))
            except Exception as error:  # noqa: BLE001 - raised again where the client is
                box.append(error)
            if not answered.done():
                answered.set_result(None)

        self._handlers += 1
        name = f"{self.process.name} request {self._handlers}"
        task = spawn(self.world.loop, self.process, handler(), name)
        self._open_calls.append(answered)
        if hang_up_after:
            self.world.later(hang_up_after, self._hang_up, task, answered)
        await answered
        if answered in self._open_calls:
            self._open_calls.remove(answered)
        if not box:
            raise ConnectionLost
        result = box[0]
        if isinstance(result, Exception):
            raise result
        return result

    def _hang_up(self, task: asyncio.Task[None], answered: "asyncio.Future[None]") -> None:
        # the server cancels the handler of a client that has gone
        if not answered.done():
            self.world.later_in(self.process, task.cancel)
            answered.set_result(None)
