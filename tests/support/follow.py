"""Follows one run in a process of its own, to be killed: `follow.py URL JOURNAL RUN_ID GRAPH`."""

import asyncio
import json
import sys
from pathlib import Path

from gpu_server.comfy import ComfyClient
from gpu_server.journal import Journal


async def main(url: str, journal: str, run_id: str, graph: str) -> None:
    async with Journal(Path(journal)) as opened:
        client = ComfyClient(url, opened)
        await client.start()
        async for _ in client.run(run_id, json.loads(graph), timeout_s=600):
            pass


asyncio.run(main(*sys.argv[1:]))
