"""A gateway with the double behind it: `python -m benchmarks.doubled_gateway CAPACITY RUN_S`.

Everything else is the environment's, as in a real one. `GET /_bench` says how late its event loop
was since the last time, in ms.
"""

import asyncio
import sys
from typing import Any

import uvicorn

from benchmarks.double import Double
from gateway.main import create_app
from gateway.runtime import build
from gateway.settings import Settings

PROBE_S = 0.01


class Lag:
    """How late the loop wakes."""

    def __init__(self) -> None:
        self.late: list[float] = []

    async def run(self) -> None:
        """Measure until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self.late.append((clock() - due) * 1000)

    async def report(self) -> dict[str, Any]:
        """Sum up, and begin anew."""
        late, self.late = sorted(self.late), []
        if not late:
            return {}
        return {
            "p50": late[len(late) // 2],
            "p99": late[int(len(late) * 0.99)],
            "max": late[-1],
        }


async def serve(capacity: int, run_s: float) -> None:
    settings = Settings()
    double = Double(capacity=capacity, run_s=run_s)
    runtime = build(settings, [double])
    double.storage = runtime.context.storage
    app = create_app(settings, runtime)
    lag = Lag()
    app.add_api_route("/_bench", lag.report)
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=settings.backend_port,
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    async with runtime.running():
        probing = asyncio.create_task(lag.run())
        await uvicorn.Server(config).serve()
        probing.cancel()


if __name__ == "__main__":
    config = uvicorn.Config("none")
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve(int(sys.argv[1]), float(sys.argv[2])))
