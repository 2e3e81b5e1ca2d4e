"""A ComfyUI to break: a simulator process that can be killed, a relay that cuts calls."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import httpx

from tests.support.stack import free_port

START_S = 60


class Simulator:
    """The simulator on one loopback port, through several lives."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def start(self) -> None:
        command = [sys.executable, "-m", "gpu_server.simulator", "--port", str(self.port)]
        with (self._folder / "simulator.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._folder / "simulator")],
                stdout=log,
                stderr=log,
                env={**os.environ, "SIM_STEP_MS": "20"},
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._http.get("/queue")
            except httpx.TransportError:
                assert self._process.poll() is None, "the simulator ended while starting"
                assert time.monotonic() < deadline, "the simulator did not start"
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """SIGKILL: no goodbye on any connection."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self._http.close()

    def turn(self, **knobs: Any) -> None:
        answer = self._http.post("/_sim", json=knobs)
        assert answer.status_code == 200, answer.text

    def state(self) -> dict[str, Any]:
        return self._http.get("/_sim").json()

    def executions(self, run_id: str) -> int:
        return self.state()["executed_ids"].count(run_id)

    def queue(self) -> tuple[set[str], set[str]]:
        """Ids running and pending."""
        queue = self._http.get("/queue").json()
        return (
            {item[1] for item in queue["queue_running"]},
            {item[1] for item in queue["queue_pending"]},
        )

    def post(self, path: str, body: Any) -> httpx.Response:
        return self._http.post(path, json=body)


Cut = Literal["request", "answer"]


class Relay:
    """Passes connections on to a port; loses POST /prompt, or its answer, while told to."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._calls: list[asyncio.Task[None]] = []
        self.cut: Cut | None = None
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for each in self._calls:
                each.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls.append(asyncio.create_task(self._pass(reader, writer)))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        lost = asyncio.Event()

        async def up() -> None:
            while data := await reader.read(65536):
                if data.startswith(b"POST /prompt ") and self.cut is not None:
                    lost.set()
                    if self.cut == "request":
                        return
                there_writer.write(data)

        async def down() -> None:
            while data := await there_reader.read(65536):
                if lost.is_set():
                    return
                writer.write(data)

        ways = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for each in (writer, there_writer):
                each.close()
                with contextlib.suppress(ConnectionError):
                    await each.wait_closed()
