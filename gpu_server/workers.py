"""Work in processes of their own: one a piece of work, a few at a time, killed when they overrun.

What a stranger's file makes a decoder do stays in there. Both sides are here: `Workers` starts the
processes, `confine` and `end_with_parent` are what such a process does first.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, ValidationError

_ROOT = Path(__file__).parents[1]
_TAIL = 4000

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=BaseModel)


class WorkerError(Exception):
    """The process gave no answer."""


class Overran(WorkerError):
    """It took longer than it may and was killed."""


class Died(WorkerError):
    """It ended without a word."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with {code}")
        self.overran = code == -signal.SIGXCPU
        """Whether it ended because it had used up its time on a CPU."""


class Workers(Generic[Answer]):
    """Has each task carried out by a fresh process, which takes it as a line of JSON.

    A process is spawned for one task and never used again: memory goes back, and one that hangs,
    overruns or dies takes nothing with it. It also ends by itself when this process is gone.
    """

    def __init__(
        self, module: str, answer: type[Answer], *, name: str, workers: int, seconds: float
    ) -> None:
        self._module = module
        self._answer = answer
        self._name = name
        self._places = asyncio.Semaphore(workers)
        self._seconds = seconds
        self._running: set[asyncio.Task[Answer]] = set()
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

    async def run(self, task: BaseModel, *, leftover: Path | None = None) -> Answer:
        """Have a task carried out; cancelling kills its process.

        `leftover` is what a process that ends early leaves behind: it is removed.

        Raises:
            Overran, Died: there is no answer.
            RuntimeError: this is closed.
        """
        if self._closed:
            raise RuntimeError(f"the {self._name} pool is closed")
        running = asyncio.create_task(self._run(task, leftover))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        try:
            return await running
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if self._closed and caller is not None and not caller.cancelling():
                raise RuntimeError(f"the {self._name} pool was closed") from None
            raise

    async def close(self) -> None:
        """Kill what is running and wait until every process is gone."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, task: BaseModel, leftover: Path | None) -> Answer:
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
                async with asyncio.timeout(self._seconds):
                    return await self._talk(process, task)
            except TimeoutError:
                raise Overran(f"longer than {self._seconds:g} seconds") from None
            finally:
                await _end(process)
                _remove(leftover)

    async def _talk(self, process: asyncio.subprocess.Process, task: BaseModel) -> Answer:
        assert process.stdin is not None  # noqa: S101  # pipes were asked for
        assert process.stdout is not None  # noqa: S101
        assert process.stderr is not None  # noqa: S101
        try:
            process.stdin.write(task.model_dump_json().encode() + b"\n")
            await process.stdin.drain()
        except ConnectionError:
            _log.debug("the %s process was gone before it was told what to do", self._name)
        said, complained = await asyncio.gather(process.stdout.read(), process.stderr.read())
        code = await process.wait()
        if complained or code:
            tail = complained[-_TAIL:].decode(errors="replace")
            _log.error("the %s process ended with %s: %s", self._name, code, tail)
        try:
            return self._answer.model_validate_json(said)
        except ValidationError:
            raise Died(code) from None


def _remove(leftover: Path | None) -> None:
    if leftover is not None:
        leftover.unlink(missing_ok=True)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that a process is gone and its pipes are closed, also while being cancelled."""
    if process.returncode is None:
        try:
            process.kill()
        except ProcessLookupError:
            _log.debug("the process ended by itself")
    if process.stdin is not None:
        process.stdin.close()
    # reads what is left, or its pipes would outlive it
    await asyncio.shield(asyncio.create_task(process.communicate()))


def confine(
    *, memory_bytes: int, cpu_seconds: int | None = None, file_bytes: int | None = None
) -> None:
    """Bound this process: its address space, its time on a CPU, the files it writes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    # a core file of a large process would fill the disk
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_seconds is not None:
        # at the first a signal that tells why, at the second the end
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def open_no_more() -> None:
    """Keep this process from opening anything from here on: no file, no connection."""
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))


def end_with_parent() -> None:
    """Let this process end when the one that started it is gone, however that ended."""
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    # the pipe stays open as long as the parent lives, however it ends; a thread that waits within
    # sys.stdin would hold its lock, and the interpreter aborts when it cannot close it at the end
    while os.read(0, 4096):
        pass
    os._exit(1)
