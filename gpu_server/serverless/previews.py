"""What a run looks like so far, put into the stream of its job for whoever watches."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import cast

from pydantic import JsonValue

from gpu_server.protocol import PreviewChunk
from gpu_server.run import Run

_log = logging.getLogger(__name__)

Chunk = dict[str, JsonValue]
Post = Callable[[Chunk], Awaitable[bool]]
"""Puts a chunk into a job's stream; whether it arrived."""
_HEARTBEAT_S = 60.0
_POST_S = 30.0
_LAST_S = 2.0
"""How long a result waits for the preview before it; the worker is paid for meanwhile."""
_SHARE = 0.05
_SLOWER, _SLOWEST_S = 4, 60.0


@asynccontextmanager
async def shown(run: Run, post: Post, every_s: float) -> AsyncGenerator[None]:
    """Show a run's previews until this is left; nothing about the run depends on them."""
    under_way = set[asyncio.Task[bool]]()
    showing = asyncio.create_task(_show(run, post, every_s, under_way))
    try:
        yield
        showing.cancel()
        if under_way:
            # cut off, it might be received after the result
            await asyncio.wait(under_way, timeout=_LAST_S)
    finally:
        ending = (showing, *under_way)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _show(run: Run, post: Post, every_s: float, under_way: set[asyncio.Task[bool]]) -> None:
    """Send the latest preview now and then, the next when the one before has arrived.

    Nobody may be fetching them, and the first who does is given all of them at once: so the
    longer a run takes, the longer the pauses, and there are about a hundred of one of an hour.
    """
    clock = asyncio.get_running_loop().time
    began, take, seq, pause_s = clock(), uuid.uuid4().hex[:8], 0, every_s
    async with aclosing(run.events(heartbeat_s=_HEARTBEAT_S, previews=True)) as events:
        async for event in events:
            if event is None or event.preview is None:
                continue
            seq += 1
            chunk = PreviewChunk(run_id=run.run_id, take=take, seq=seq, preview=event.preview)
            sending = asyncio.create_task(_posted(post, chunk))
            under_way.add(sending)
            await asyncio.wait({sending})
            under_way.discard(sending)
            if sending.result():
                pause_s = max(every_s, _SHARE * (clock() - began))
            else:
                pause_s = min(_SLOWER * pause_s, _SLOWEST_S)
            await asyncio.sleep(pause_s)


async def _posted(post: Post, chunk: PreviewChunk) -> bool:
    try:
        async with asyncio.timeout(_POST_S):
            return await post(cast("Chunk", chunk.model_dump(mode="json")))
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever watches misses a picture
        # the type alone: an exception's text may hold addresses
        _log.warning("run %s: a preview was not sent: %s", chunk.run_id, type(error).__name__)
        return False
