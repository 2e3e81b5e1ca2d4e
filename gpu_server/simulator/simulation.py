"""Everything one simulator holds, put together in one place."""

from pathlib import Path
from typing import Any

from gpu_server.simulator.execution import Stage
from gpu_server.simulator.folders import Folders
from gpu_server.simulator.prompt_queue import PromptQueue
from gpu_server.simulator.settings import Knobs, Settings
from gpu_server.simulator.sockets import Sockets, status
from gpu_server.simulator.worker import Counts, Interrupt, Worker


class Simulation:
    """One ComfyUI that is not there: queue, files, websockets, worker and knobs."""

    def __init__(self, directory: Path, settings: Settings, ledger: Path | None = None) -> None:
        self.knobs = Knobs(settings)
        self.initial = settings
        self.folders = Folders(directory, lambda: self.knobs.current.hide)
        self.sockets = Sockets(self.knobs)
        self.queue = PromptQueue(lambda left: self.sockets.put("status", status(left)))
        self.interrupt = Interrupt()
        self.counts = Counts(ledger=ledger)
        self.next_number = 0
        self.worker = self._new_worker()

    def _new_worker(self) -> Worker:
        def at_node(current: tuple[Any, str] | None) -> None:
            self.sockets.current = current

        stage = Stage(
            folders=self.folders,
            knobs=self.knobs,
            send=self.sockets.put,
            supports=self.sockets.supports,
            at_node=at_node,
            interrupted=self.interrupt.take,
        )
        return Worker(self.queue, stage, self.interrupt, self.counts)

    def start(self) -> None:
        """Begin to work."""
        self.folders.wipe_temp()
        self.worker.start()

    def stop(self) -> None:
        """Stop working; a node in progress is left to die with the process."""
        self.worker.abandon()
        self.queue.wake()
        self.folders.wipe_temp()

    def lose_queue(self) -> None:
        """Forget what runs, what waits and what is done, as a restart does."""
        self.worker.abandon()
        self.queue.lose_everything()
        self.sockets.current = None
        self.next_number = 0
        self.interrupt.clear()
        self.folders.wipe_temp()
        self.worker = self._new_worker()
        self.worker.start()
