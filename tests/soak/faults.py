"""Carrying out the plan's faults, each when enough jobs have ended."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable

import psutil

from tests.soak.fleet import Fleet
from tests.soak.plan import Fault, Name
from tests.support.postgres import PostgresServer

POSTGRES_UP_S = 60


class Faults:
    """`ended()` = how many jobs have come to an end so far."""

    def __init__(self, fleet: Fleet, ended: Callable[[], int], say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._ended = ended
        self._say = say
        self._busy: set[Name] = set()
        self._healing: set[asyncio.Task[None]] = set()
        self.done = 0

    async def run(self) -> None:
        """Cause every fault; return when all are healed."""
        guard = asyncio.create_task(self._fleet.guard(self._busy))
        try:
            for fault in self._fleet.plan.faults:
                # one process has one fault at a time; several may have one at once
                while self._ended() < fault.after or fault.name in self._busy:  # noqa: ASYNC110  # it is counted elsewhere
                    await asyncio.sleep(0.02)
                self._begin(fault)
                self.done += 1
            await asyncio.gather(*self._healing)
        finally:
            guard.cancel()
            for task in self._healing:
                task.cancel()
            await asyncio.gather(guard, *self._healing, return_exceptions=True)

    def _begin(self, fault: Fault) -> None:
        name = fault.name
        self._busy.add(name)
        self._say(f"{self._ended():4} ended: {fault.action} {fault.kind} {fault.n}")
        work = self._postgres(fault) if fault.kind == "postgres" else self._process(fault)
        task = asyncio.create_task(work)
        self._healing.add(task)

        def healed(task: asyncio.Task[None]) -> None:
            # one that failed stays, for whoever gathers them
            if task.cancelled() or task.exception() is None:
                self._healing.discard(task)

        task.add_done_callback(healed)

    async def _process(self, fault: Fault) -> None:
        fleet, name = self._fleet, fault.name
        if fault.action == "pause":
            begin = time.time()
            fleet.signal(name, signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            fleet.signal(name, signal.SIGCONT)
            fleet.paused[name].append((begin, time.time()))
            self._busy.discard(name)
            return
        fleet.signal(name, signal.SIGKILL if fault.action == "kill" else signal.SIGTERM)
        await asyncio.wait_for(fleet.gone(name), 30)
        await asyncio.sleep(fault.seconds)
        fleet.spawn(name)
        # from here on the next fault may come
        self._busy.discard(name)
        await fleet.up(name)

    async def _postgres(self, fault: Fault) -> None:
        server = self._fleet.postgres
        assert server is not None
        if fault.action == "kill":
            await asyncio.to_thread(kill, server)
        else:
            await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(fault.seconds)
        await asyncio.to_thread(start_again, server)
        self._busy.discard(fault.name)


def kill(server: PostgresServer) -> None:
    """kill -9 of the server's first process, which takes the others with it; return then."""
    first = psutil.Process(server.pid)
    others = first.children(recursive=True)
    first.kill()
    psutil.wait_procs([first, *others], timeout=30)


def start_again(server: PostgresServer) -> None:
    """Start it; one that was killed may need a moment before it can."""
    deadline = time.monotonic() + POSTGRES_UP_S
    while True:
        try:
            return server.start()
        except (RuntimeError, subprocess.CalledProcessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
