"""What runs at RunPod look like so far: asked for while somebody watches, and by nobody else."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable

from gateway.backends.base import RunLost
from gateway.backends.runpod_api import FINAL, RunpodApi, SlowDown
from gateway.backends.runpod_states import newest_preview
from gpu_server.protocol import Preview, PreviewChunk

EVERY_S = 1.5
_LOOKS_PER_S = 50
"""Of all streams of an endpoint together; with the followers' they stay below RunPod's 200."""


class Looks:
    """Everybody who looks at the previews of one endpoint's runs."""

    def __init__(
        self, api: RunpodApi, *, every_s: float = EVERY_S, rng: random.Random | None = None
    ) -> None:
        self._api = api
        self._every_s = every_s
        # spreads calls over time; nothing secret depends on it
        self._rng = rng or random.Random()  # noqa: S311
        self._open = 0

    async def previews(self, run_id: str, job: Callable[[], str]) -> AsyncGenerator[Preview, None]:
        """Each preview of a run once, until `job()` is over.

        Raises BackendUnreachable, RunLost. RunPod may hand out a chunk once, or with every answer.
        """
        self._open += 1
        try:
            shown: PreviewChunk | None = None
            while True:
                try:
                    told = await self._api.stream(job())
                except SlowDown as error:
                    await asyncio.sleep(error.after_s)
                    continue
                if told is None:
                    raise RunLost("RunPod does not know its job")
                newest = newest_preview(told.chunks, run_id)
                if newest is not None and _is_news(newest, shown):
                    shown = newest
                    yield newest.preview
                if told.status in FINAL:
                    return
                await self._pause()
        finally:
            self._open -= 1

    async def _pause(self) -> None:
        least = self._open / _LOOKS_PER_S
        await asyncio.sleep(max(self._every_s, least) * (0.8 + 0.4 * self._rng.random()))


def _is_news(newest: PreviewChunk, shown: PreviewChunk | None) -> bool:
    return shown is None or newest.take != shown.take or newest.seq > shown.seq
