"""The tasks that drive this replica's runs, one a run."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from gateway.db import DatabaseUnavailable
from gateway.jobs.patience import Patience

_log = logging.getLogger(__name__)


class Drivers:
    """Keeps every task that works on a run, so that each ends with this gateway."""

    def __init__(
        self, drive: Callable[[str], Awaitable[None]], patience: Callable[[], Patience]
    ) -> None:
        self._drive = drive
        self._patience = patience
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._stopping = False

    def __len__(self) -> int:
        return len(self._driving)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._driving

    def __iter__(self) -> Iterator[str]:
        return iter(self._driving)

    def spawn(self, run_id: str) -> None:
        """Drive a run; one that is being driven is looked at once more afterwards."""
        if self._stopping:
            return
        if run_id in self._driving:
            # its present driver may have written its last word already (put back, granted anew)
            self._again.add(run_id)
            return
        task = asyncio.create_task(self._supervise(run_id), name=f"run {run_id}")
        self._driving[run_id] = task
        task.add_done_callback(lambda _: self._ended(run_id))

    def interrupt(self, run_id: str) -> None:
        """Stop looking at a run that has ended by another's hand."""
        task = self._driving.get(run_id)
        if task is not None:
            task.cancel()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something nobody waits for."""
        if self._stopping:
            work.close()
            return
        task = asyncio.create_task(work)
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def stop(self) -> None:
        """Cancel every task; runs stay where they are."""
        self._stopping = True
        tasks = [*self._driving.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self, run_id: str) -> None:
        patience = self._patience()
        while True:
            try:
                await self._drive(run_id)
            except DatabaseUnavailable as error:
                _log.warning("run %s: the database does not answer (%s)", run_id, error)
            except Exception:  # noqa: BLE001  # a bug of ours must not leave a run undriven
                _log.exception("run %s: its driver failed", run_id)
            else:
                return
            await patience.pause()

    def _ended(self, run_id: str) -> None:
        del self._driving[run_id]
        if run_id in self._again:
            self._again.discard(run_id)
            self.spawn(run_id)


async def for_ever(loop: Callable[[], Awaitable[None]]) -> None:
    """Begin a loop anew that a bug of ours ended: without it, jobs would stand still."""
    while True:
        try:
            await loop()
        except Exception:  # noqa: BLE001  # whatever it is, it is logged
            _log.exception("%s failed and is begun anew", getattr(loop, "__qualname__", loop))
            await asyncio.sleep(1)
        else:
            return
