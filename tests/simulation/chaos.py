"""What goes wrong from outside: processes die and freeze, links break, clocks jump."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tests.simulation.direct import DirectServer
from tests.simulation.gpu import GpuService
from tests.simulation.replica import Replica

if TYPE_CHECKING:
    from tests.simulation.world import World

ACTIONS = (
    "stop",
    "freeze",
    "zombie",
    "partition",
    "service_restart",
    "engine_death",
    "storage_errors",
    "clock_jump",
    "disk_stall",
    "database_away",
    "lost_commits",
)


class Chaos:
    """Restarts what dies, and breaks things until it is told to heal them."""

    def __init__(self, world: "World", rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._zombies: list[Replica] = []
        self._healing = False

    async def supervise(self, seat: int) -> None:
        """Start a gateway again whenever it has died, as a service manager does."""
        while True:
            replica = self._world.seats[seat]
            await replica.died.wait()
            if replica.stopping or replica is not self._world.seats[seat]:
                await asyncio.sleep(0.1)
                continue
            self._world.struck("crash")
            delay = 0.1 if self._healing else self._rng.choice((0.05, 1, 5))
            await asyncio.sleep(delay)
            if replica is self._world.seats[seat]:
                self._world.launch(seat)

    async def strike(self) -> None:
        """Break things at random moments."""
        world, rng = self._world, self._rng
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "stop": self._stop,
            "freeze": self._freeze,
            "zombie": self._zombie,
            "partition": self._partition,
            "service_restart": self._service_restart,
            "engine_death": self._engine_death,
            "storage_errors": self._storage_errors,
            "clock_jump": self._clock_jump,
            "disk_stall": self._disk_stall,
            "database_away": self._database_away,
            "lost_commits": self._lost_commits,
        }
        enabled = [action for action in ACTIONS if world.plan.has(action)]
        end = world.plan.span_s
        if enabled:
            while True:
                await asyncio.sleep(rng.expovariate(4 / world.plan.span_s))
                if world.loop.time() > end:
                    break
                action = rng.choice(enabled)
                world.struck(action)
                world.trace(f"*** {action}")
                await actions[action]()

    async def heal(self) -> None:
        """No more faults from here on."""
        world = self._world
        await asyncio.sleep(max(0.0, world.plan.span_s - world.loop.time()))
        world.trace("*** peace")
        self._healing = True
        world.faulty = False
        for replica in world.replicas:
            replica.process.crash_at = replica.process.pause_at = None
            replica.process.thaw(world.loop)
        for zombie in self._zombies:
            zombie.process.kill()
        for service in world.services:
            service.reachable = not service.silent
        world.store.failing = False
        server = world.server
        server.disk_stalls = 0
        if isinstance(server, DirectServer):
            server.away, server.lost_commits = False, 0
        world.disturb()

    def _some(self) -> Replica | None:
        """A gateway that serves."""
        ready = self._world.ready()
        return self._rng.choice(ready) if ready else None

    async def _stop(self) -> None:
        replica = self._some()
        if replica is None:
            return
        await replica.stop()
        await asyncio.sleep(self._rng.choice((0.05, 2)))
        self._world.launch(replica.seat)

    async def _freeze(self) -> None:
        replica = self._some()
        if replica is None:
            return
        replica.process.freeze()
        await asyncio.sleep(self._rng.choice((0.5, 5, 20)))
        replica.process.thaw(self._world.loop)

    async def _zombie(self) -> None:
        """A frozen gateway is replaced, comes back, and goes on as if nothing had happened."""
        world = self._world
        zombie = self._some()
        if zombie is None:
            return
        zombie.stopping = True
        zombie.process.freeze()
        zombie.process.crash_at = zombie.process.pause_at = None
        zombie.drop_connections()
        self._zombies.append(zombie)
        await asyncio.sleep(self._rng.choice((0.01, 1, 16)))
        world.launch(zombie.seat)
        await asyncio.sleep(self._rng.choice((0.01, 0.1, 1)))
        zombie.process.thaw(world.loop)
        await asyncio.sleep(self._rng.choice((0.1, 1, 10)))
        zombie.process.kill()

    async def _partition(self) -> None:
        service = self._service()
        service.reachable = False
        self._world.later(self._rng.choice((0.5, 5, 40)), self._reconnect, service)

    def _reconnect(self, service: GpuService) -> None:
        service.reachable = True
        self._world.disturb()

    async def _service_restart(self) -> None:
        service = self._service()
        service.restart(remembers=self._rng.random() < 0.5)
        service.reachable = False
        self._world.later(self._rng.choice((0.1, 10)), self._reconnect, service)

    async def _engine_death(self) -> None:
        self._service().kill_engine()

    async def _storage_errors(self) -> None:
        store = self._world.store
        store.failing = True
        await asyncio.sleep(self._rng.choice((0.5, 10)))
        store.failing = False

    async def _clock_jump(self) -> None:
        self._rng.choice(self._world.clocks).offset += self._rng.choice((-30, -1, 1, 30, 200))

    async def _disk_stall(self) -> None:
        server = self._world.server
        server.disk_stalls = 0.1
        await asyncio.sleep(self._rng.choice((2, 10)))
        server.disk_stalls = 0

    async def _database_away(self) -> None:
        server = self._world.server
        if isinstance(server, DirectServer):
            server.away = True
            server.restart()
            await asyncio.sleep(self._rng.choice((0.1, 2, 12)))
            server.away = False
            self._world.disturb()

    async def _lost_commits(self) -> None:
        server = self._world.server
        if isinstance(server, DirectServer):
            server.lost_commits = 0.3
            await asyncio.sleep(self._rng.choice((0.5, 3)))
            server.lost_commits = 0

    def _service(self) -> GpuService:
        return self._rng.choice(self._world.services)
