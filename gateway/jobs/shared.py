"""What the drives of all runs of this replica work with."""

import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.backends.base import Backend
from gateway.clock import Clock
from gateway.db.runs import RunRows
from gateway.jobs.files import RunFiles
from gateway.jobs.patience import Patience
from gateway.jobs.placement import Placement
from gateway.jobs.previews import Previews
from gateway.jobs.settings import JobSettings
from gateway.jobs.wait import Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What every drive of this replica shares."""

    owner: str
    rows: RunRows
    backends: Mapping[str, Backend]
    files: RunFiles
    hub: Hub
    previews: Previews
    placement: Placement
    settings: JobSettings
    clock: Clock
    rng: random.Random
    starting: set[str]
    """Runs whose backend is being asked to start them; cancelling waits for its answer."""
    doubtful: set[str]
    """Runs that were asked for here and a start of which may still be on its way."""
    in_background: Callable[[Coroutine[Any, Any, None]], None]
    tell_backends: Callable[[], None]
    """Runs have ended whose backends do not know it yet."""

    def patience(self, limit_s: float | None) -> Patience:
        """Fresh patience with something that does not answer."""
        return Patience(
            first_s=self.settings.reconnect_s,
            longest_s=self.settings.reconnect_max_s,
            limit_s=limit_s,
            rng=self.rng,
        )
