"""How large processes got: VmHWM of /proc, over what they had before."""

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MB: Final = 1_000_000
EVERY_S: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """What became of the processes meanwhile, in MB."""

    before: Mapping[str, float]
    """Resident at the beginning, by name."""
    peak: Mapping[str, float]
    """The most they had."""
    worker: float
    """The most any child of theirs had that lived meanwhile; 0 where there was none."""

    def growth(self, name: str) -> float:
        """By how much one of them grew."""
        return self.peak[name] - self.before[name]


class Watching:
    """Looks at processes and their children until it is stopped."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._before = {name: _field(pid, "VmRSS") for name, pid in pids.items()}
        for pid in pids.values():
            # sets the peak back to what is resident now
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._worker = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> Grown:
        """End it."""
        self._stopped.set()
        self._thread.join()
        peak = {name: _field(pid, "VmHWM") for name, pid in self._pids.items()}
        return Grown(before=self._before, peak=peak, worker=self._worker)

    def _look(self) -> None:
        while not self._stopped.wait(EVERY_S):
            for pid in self._pids.values():
                for child in _children(pid):
                    # one that is gone by now is no news
                    with contextlib.suppress(OSError, StopIteration):
                        self._worker = max(self._worker, _field(child, "VmHWM"))


def _children(pid: int) -> Iterator[int]:
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = [int(child) for child in tasks.read_text().split()]
        except OSError:
            continue
        for child in found:
            yield child
            yield from _children(child)


def _field(pid: int, name: str) -> float:
    """A field of /proc/<pid>/status in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / MB
