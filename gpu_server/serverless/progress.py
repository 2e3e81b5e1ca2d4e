"""How far a job is, told to RunPod while it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import cast

from pydantic import JsonValue

from gpu_server.run import Run

Update = dict[str, JsonValue]
Tell = Callable[[Update], None]
"""Sends an update without waiting for it."""
Settled = Callable[[], Awaitable[None]]
"""Returns once every update that was sent has arrived, or can't any more."""
_HEARTBEAT_S = 60.0


async def report(run: Run, tell: Tell, settled: Settled, every_s: float) -> None:
    """Tell a run's progress until it is over; `seq` grows with each update of the job.

    One update is under way at a time: RunPod's SDK sends each in a thread of its own, and a newer
    one could arrive first.
    """
    seq = 0
    async with aclosing(run.events(heartbeat_s=_HEARTBEAT_S)) as events:
        async for event in events:
            if event is None or event.progress is None:
                continue
            seq += 1
            progress = cast("Update", event.progress.model_dump(mode="json", exclude_none=True))
            tell({"seq": seq, "run_id": run.run_id, "progress": progress})
            await asyncio.sleep(every_s)
            await settled()
