"""An asyncio event loop on virtual time whose every choice comes from a seed.

Time advances only when nothing is ready. Among ready callbacks the next one is drawn from the seed,
so each seed is another interleaving and replays exactly. There is no selector, no thread, no sleep.
"""

import asyncio
import heapq
import random
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any, Literal, TypeVar, cast

from tests.simulation.process import PROCESS, Process

Scheduler = Literal["fifo", "random"]
T = TypeVar("T")


class Stuck(Exception):
    """The simulated world can never reach its end."""


class Callback:
    """What `call_soon` and `call_at` return: a cancellable handle."""

    __slots__ = ("args", "at", "context", "done", "function", "process")

    def __init__(
        self, function: Callable[..., object], args: tuple[Any, ...], context: Context, at: float
    ) -> None:
        self.function = function
        self.args = args
        self.context = context
        self.process = context.get(PROCESS)
        self.at = at
        self.done = False

    def cancel(self) -> None:
        self.done = True

    def cancelled(self) -> bool:
        return self.done

    def when(self) -> float:
        return self.at


def _own(context: Context | None) -> Context:
    # an empty context is false, and it is the one everything outside the processes runs in
    return copy_context() if context is None else context


class SeededTask(asyncio.Task[Any]):
    """A task whose hash is its serial number: sets of tasks iterate the same way in every run."""

    def __init__(self, coro: Coroutine[Any, Any, Any], serial: int, **options: Any) -> None:
        self.serial = serial
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.serial


class _Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


TURN = _Turn()
"""Awaiting it lets everything else that is ready go first, or not: the seed decides."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop; `run` is its only entrance."""

    def __init__(self, rng: random.Random, *, scheduler: Scheduler, max_steps: int) -> None:
        self._draw = rng.random
        self._fifo = scheduler == "fifo"
        self._max_steps = max_steps
        self._now = 0.0
        self._ready: list[Callback] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._serial = 0
        self.steps = 0
        self.errors: list[dict[str, Any]] = []
        self._running = False

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run to the end of `main`; raises Stuck when it cannot end."""
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._close_generator)
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        self._running = True
        try:
            task = self.create_task(main)
            while not task.done():
                self._step()
            return task.result()
        finally:
            self._running = False
            asyncio._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)

    def _step(self) -> None:
        ready = self._ready
        if not ready:
            self._advance()
        if self._fifo or len(ready) == 1:
            callback = ready.pop(0)
        else:
            last = ready.pop()
            index = int(self._draw() * (len(ready) + 1))
            if index < len(ready):
                callback, ready[index] = ready[index], last
            else:
                callback = last
        if callback.done:
            return
        process = callback.process
        if process is not None and not process.admit(callback):
            return
        self.steps += 1
        if self.steps > self._max_steps:
            raise Stuck(f"no end after {self._max_steps} steps, at {self._now:.3f} s")
        callback.done = True
        callback.context.run(callback.function, *callback.args)

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2].done:
            heapq.heappop(timers)
        if not timers:
            raise Stuck(f"nothing will ever happen again, at {self._now:.3f} s")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            callback = heapq.heappop(timers)[2]
            if not callback.done:
                self._ready.append(callback)

    def readmit(self, callbacks: list[Callback]) -> None:
        """Put callbacks of a thawed process back in line."""
        self._ready.extend(callbacks)

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = Callback(callback, args, _own(context), self._now)
        self._ready.append(handle)
        return cast("asyncio.Handle", handle)

    call_soon_threadsafe = call_soon

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = Callback(callback, args, _own(context), when)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, handle))
        return cast("asyncio.TimerHandle", handle)

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        self._serial += 1
        process = context.get(PROCESS) if context is not None else PROCESS.get()
        label = name or f"task-{self._serial}"
        task = SeededTask(coro, self._serial, loop=self, name=label, context=context)
        if process is not None:
            # a dead process's tasks are held here, else the collector would run their `finally`
            process.adopt(task)
        return task

    def run_in_executor(
        self, executor: object, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run it at a later turn on the one thread there is."""
        del executor
        future = self.create_future()

        def call() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits it, as executors do
                future.set_exception(error)

        self.call_soon(call)
        return future

    def _close_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if self._running:
            self.create_task(generator.aclose())

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        process = PROCESS.get()
        if process is None or process.state != "dead":
            self.errors.append(context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: a cancelled timer is skipped when its time comes."""


def spawn(
    loop: VirtualLoop, process: Process, coro: Coroutine[Any, Any, Any], name: str
) -> asyncio.Task[Any]:
    """Start a coroutine inside a process: it dies and freezes with it."""
    return loop.create_task(coro, name=name, context=process.context())
