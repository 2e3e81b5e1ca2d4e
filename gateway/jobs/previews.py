"""Previews: what runs look like so far, fetched only while somebody here watches them."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from gateway.backends.base import Backend, BackendError, ShowsPreviews
from gateway.job import Run
from gpu_server.protocol import Preview

_log = logging.getLogger(__name__)

AGAIN_S = 1.0
"""How long after a stream of previews broke off the next one is opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    backend: ShowsPreviews
    run: Run


class Previews:
    """Brings those who watch together with the runs driven here: elsewhere driven ones show none.

    Nothing is kept, nothing is written, and nothing about a run depends on it.
    """

    def __init__(self, shown: Callable[[str, Preview], None]) -> None:
        """Args: `shown(job_id, preview)` is called with each preview."""
        self._shown = shown
        self._sources: dict[str, _Source] = {}
        self._viewers = Counter[str]()
        self._streams: dict[str, asyncio.Task[None]] = {}

    @contextmanager
    def source(self, run: Run, backend: Backend) -> Generator[None]:
        """While a run is followed here."""
        if not isinstance(backend, ShowsPreviews):
            yield
            return
        source = _Source(backend=backend, run=run)
        self._sources[run.job_id] = source
        self._adjust(run.job_id)
        try:
            yield
        finally:
            del self._sources[run.job_id]
            self._adjust(run.job_id)

    @contextmanager
    def wanted(self, job_id: str, *, previews: bool) -> Generator[None]:
        """While somebody watches a job who asked for previews, or did not."""
        if not previews:
            yield
            return
        self._viewers[job_id] += 1
        self._adjust(job_id)
        try:
            yield
        finally:
            self._viewers[job_id] -= 1
            if not self._viewers[job_id]:
                del self._viewers[job_id]
            self._adjust(job_id)

    async def close(self) -> None:
        """Close every stream."""
        streams = list(self._streams.values())
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    def _adjust(self, job_id: str) -> None:
        source = self._sources.get(job_id) if job_id in self._viewers else None
        stream = self._streams.get(job_id)
        if source is not None and stream is None:
            self._streams[job_id] = asyncio.create_task(self._stream(source))
        elif source is None and stream is not None:
            del self._streams[job_id]
            stream.cancel()

    async def _stream(self, source: _Source) -> None:
        run = source.run
        while True:
            try:
                previews = source.backend.previews(run.id, run.reference or "")
                async with aclosing(previews):
                    async for preview in previews:
                        self._shown(run.job_id, preview)
            except BackendError as error:
                _log.debug("run %s: no previews: %s", run.id, error)
            except Exception:  # noqa: BLE001  # whoever watches misses pictures, nothing else
                _log.exception("run %s: its previews", run.id)
            await asyncio.sleep(AGAIN_S)
