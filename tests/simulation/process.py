"""A simulated process: everything begun inside it dies, or freezes, as one.

Membership is a context variable: asyncio copies the context into each task, timer and callback, so
whatever a process starts belongs to it without knowing.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.simulation.loop import Callback, VirtualLoop

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)


def _unheard(_: object) -> None:
    """Say nothing of it."""


class Process:
    """One incarnation of a program, from its start to its death."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Literal["running", "frozen", "dead"] = "running"
        self.steps = 0
        """Turns its coroutines had: each is the stretch between two awaits."""
        self.crash_at: int | None = None
        """The process dies instead of taking this turn."""
        self.pause_at: int | None = None
        """The process is stopped before this turn, as by SIGSTOP."""
        self.at_death: list[Callable[[], None]] = []
        self.at_freeze: list[Callable[[], None]] = []
        self.at_thaw: list[Callable[[], None]] = []
        self.base = Context()
        """What every task of it starts from; nothing is inherited from outside."""
        self.base.run(PROCESS.set, self)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._parked: list[Callback] = []
        self._prune_at = 32

    def context(self) -> Context:
        """A fresh context inside this process."""
        return self.base.copy()

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Hold a task until it is done."""
        self._tasks.add(task)
        if len(self._tasks) >= self._prune_at:
            self.prune()

    def prune(self) -> None:
        """Let go of finished tasks; one whose exception nobody took reports itself then."""
        self._tasks = {task for task in self._tasks if not task.done()}
        self._prune_at = 2 * len(self._tasks) + 32

    def admit(self, callback: "Callback") -> bool:
        """Whether a callback may run now; called by the loop before each."""
        if self.state == "running":
            self.steps += 1
            if self.steps == self.crash_at:
                self.kill()
            elif self.steps == self.pause_at:
                self._parked.append(callback)
                self.freeze()
            else:
                return True
        elif self.state == "frozen":
            self._parked.append(callback)
        return False

    def kill(self) -> None:
        """Die as under kill -9: nothing of it runs again, not even a `finally`."""
        if self.state == "dead":
            return
        self.state = "dead"
        self._parked.clear()
        for function in self.at_death:
            function()

    def freeze(self) -> None:
        """SIGSTOP."""
        if self.state == "running":
            self.state = "frozen"
            for function in self.at_freeze:
                function()

    def thaw(self, loop: "VirtualLoop") -> None:
        """SIGCONT."""
        if self.state == "frozen":
            self.state = "running"
            parked, self._parked = self._parked, []
            loop.readmit(parked)
            for function in self.at_thaw:
                function()

    def bury(self) -> None:
        """Free what a dead process held, after the world has been judged.

        Closing a coroutine runs its `finally` blocks; by now they can reach nothing.
        """
        hook, sys.unraisablehook = sys.unraisablehook, _unheard
        try:
            for task in list(self._tasks):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                # whatever a `finally` of a dead program raises or awaits is of no interest
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
            self._tasks.clear()
            self.at_death.clear()
            self.at_freeze.clear()
            self.at_thaw.clear()
        finally:
            sys.unraisablehook = hook
