"""Telling backends that runs are over which ended here."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta

from gateway.backends.base import Backend, BackendUnreachable
from gateway.choices import BILLED
from gateway.clock import Clock
from gateway.db import DatabaseUnavailable, Row
from gateway.db.records import moment
from gateway.db.runs import RunRows
from gateway.jobs.patience import Patience

_log = logging.getLogger(__name__)

AT_ONCE = 1000
BILLED_FOR = timedelta(days=1)
"""How long a run that is paid for is left to other gateways, should none here reach its backend."""


class Cancels:
    """Goes by a flag on the run's row, set by the commit that ended it: restarts forget nothing."""

    def __init__(
        self,
        *,
        rows: RunRows,
        backends: Mapping[str, Backend],
        starting: Collection[str],
        patience: Callable[[], Patience],
        sweep_s: float,
        lost_after: timedelta,
        clock: Clock,
        room_made: Callable[[], None],
    ) -> None:
        self._rows = rows
        self._backends = backends
        self._starting = starting
        self._patience = patience
        self._sweep_s = sweep_s
        self._lost_after = lost_after
        self._clock = clock
        self._room_made = room_made
        self._woken = asyncio.Event()
        self._telling: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        """Runs have ended."""
        self._woken.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        try:
            while True:
                self._woken.clear()
                try:
                    await self._look()
                except DatabaseUnavailable as error:
                    _log.warning("cancels: the database does not answer (%s)", error)
                try:
                    async with asyncio.timeout(self._sweep_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            tasks = list(self._telling.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        for row in await self._rows.to_cancel(AT_ONCE):
            run_id: str = row["id"]
            if row["backend"] not in self._backends and not self._given_up(row):
                # another gateway may reach it
                continue
            # a start that is still on its way would overtake the cancel and run for nobody; it
            # wakes us when it has answered
            if run_id in self._telling or run_id in self._starting:
                continue
            task = asyncio.create_task(self._tell(run_id, row["backend"], row["reference"]))
            self._telling[run_id] = task
            task.add_done_callback(lambda _, run_id=run_id: self._telling.pop(run_id, None))

    def _given_up(self, row: Row) -> bool:
        patience = BILLED_FOR if row["backend"].startswith(BILLED) else self._lost_after
        return self._clock.now() - moment(row["ended_at"]) > patience

    async def _tell(self, run_id: str, name: str, reference: str | None) -> None:
        backend = self._backends.get(name)
        patience = self._patience()
        while True:
            try:
                if backend is None:
                    _log.warning("run %s: %s is not configured any more", run_id, name)
                else:
                    await backend.cancel(run_id, reference)
                await self._rows.told(run_id)
            except BackendUnreachable:
                _log.info("run %s: %s does not answer, it is told later", run_id, name)
            except Exception:  # noqa: BLE001  # a bug there must not stop the telling
                _log.exception("run %s: cancelling it at %s", run_id, name)
            else:
                self._room_made()
                return
            await patience.pause()
