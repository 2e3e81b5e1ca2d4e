"""Every serverless endpoint of this gateway, and who hears that a run there may be over."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.backends.runpod import Runpod
from gateway.db import DatabaseUnavailable

_log = logging.getLogger(__name__)


class Others(Protocol):
    """The other gateways."""

    async def tell_followers(self, run_id: str, /) -> None:
        """Let whichever follows a run look. Raises DatabaseUnavailable."""
        ...

    def on_look(self, look: Callable[[str], object], /) -> None:
        """Call `look` with each run that another one tells of."""
        ...


class Serverless:
    """The endpoints; one that has none may be asked for anything, too."""

    def __init__(self, backends: Sequence[Runpod], others: Others) -> None:
        self.backends = tuple(backends)
        self._others = others
        others.on_look(self._look_here)

    async def look(self, run_id: str) -> None:
        """Somebody says that a run may be over: whoever follows it looks at once."""
        if not self.backends or self._look_here(run_id):
            return
        try:
            await self._others.tell_followers(run_id)
        except DatabaseUnavailable:
            # whoever follows it looks by himself, a few seconds later
            _log.info("run %s: the other gateways were not told of its webhook", run_id)

    def _look_here(self, run_id: str) -> bool:
        # a run is at one of them
        return any(backend.look_now(run_id) for backend in self.backends)
