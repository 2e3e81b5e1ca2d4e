"""Every process of an installation with several of each, and whoever starts them again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

from tests.soak.plan import Kind, Name, Plan
from tests.soak.receiver import SECRET
from tests.support.postgres import PostgresServer
from tests.support.stack import KEY, ROOT, free_port

TOKEN = "token-of-the-soak"
UP_S = 90
STEP_MS = 50


@dataclass(slots=True, kw_only=True)
class Life:
    """One process from its start to its end, in seconds since 1970."""

    pid: int
    started: float
    answered: float = float("inf")
    """When it was seen to answer for the first time."""
    ended: float = float("inf")


class Fleet:
    """Starts, kills and starts again; `lives` is kept for the verdict."""

    def __init__(self, folder: Path, plan: Plan, postgres: PostgresServer | None) -> None:
        self.folder = folder
        self.plan = plan
        self.postgres = postgres
        kinds: dict[Kind, int] = {
            "simulator": plan.gpus,
            "gpu_server": plan.gpus,
            "gateway": plan.gateways,
        }
        self.ports: dict[Name, int] = {
            (kind, n): free_port() for kind, count in kinds.items() for n in range(count)
        }
        self.processes: dict[Name, subprocess.Popen[bytes]] = {}
        # a server for other tests may run in this process as well
        self._others = _descendants()
        self.lives: dict[Name, list[Life]] = {name: [] for name in self.ports}
        self.paused: dict[Name, list[tuple[float, float]]] = {name: [] for name in self.ports}
        self.unexpected: list[str] = []
        self.turned_away = 0

    def url(self, kind: Kind, n: int) -> str:
        """Address of a process."""
        return f"http://127.0.0.1:{self.ports[kind, n]}"

    @property
    def gateways(self) -> list[str]:
        """Addresses of all gateways, alive or not."""
        return [self.url("gateway", n) for n in range(self.plan.gateways)]

    @property
    def database(self) -> str:
        """Address of the database, for everybody."""
        if self.postgres is not None:
            return self.postgres.url
        return f"sqlite+aiosqlite:///{self.folder / 'data' / 'gateway.sqlite'}"

    def ledger(self, n: int) -> Path:
        """What a simulator wrote down of its executions."""
        return self.folder / f"ledger-{n}"

    def log(self, name: Name) -> Path:
        """What a process printed, all of its lives."""
        return self.folder / f"{name[0]}-{name[1]}.log"

    def start(self) -> None:
        """Start all; return when each answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        migrate = [sys.executable, "-m", "gateway", "migrate"]
        subprocess.run(migrate, env=self._env(("gateway", 0)), cwd=ROOT, check=True)
        for name in self.ports:
            self.spawn(name)
        deadline = time.monotonic() + UP_S
        for name in self.ports:
            while not self._answers(name):
                ended = self.processes[name].poll() is not None
                assert not ended, f"{name} ended:\n{self.log(name).read_text()[-4000:]}"
                assert time.monotonic() < deadline, f"{name} does not answer"
                time.sleep(0.05)
            self.lives[name][-1].answered = time.time()

    def spawn(self, name: Name) -> None:
        """Start one process; it need not answer yet."""
        with self.log(name).open("ab") as log:
            process = self._popen(name, log)
        self.processes[name] = process
        self.lives[name].append(Life(pid=process.pid, started=time.time()))

    def signal(self, name: Name, number: signal.Signals) -> None:
        """Send a signal to a process that may just have ended."""
        with suppress(ProcessLookupError):
            self.processes[name].send_signal(number)

    def reap(self, name: Name) -> bool:
        """Whether it has ended; its life is closed then."""
        ended = self.processes[name].poll() is not None
        if ended and self.lives[name][-1].ended == float("inf"):
            self.lives[name][-1].ended = time.time()
        return ended

    async def gone(self, name: Name) -> None:
        """Return when it has ended."""
        while not self.reap(name):  # noqa: ASYNC110  # Popen tells of its end when asked
            await asyncio.sleep(0.02)

    async def up(self, name: Name) -> None:
        """Return when it answers, or has ended again."""
        life = self.lives[name][-1]
        while life.ended == float("inf") and life.answered == float("inf"):
            if await asyncio.to_thread(self._answers, name):
                life.answered = time.time()
            await asyncio.sleep(0.1)

    async def guard(self, busy: set[Name]) -> None:
        """Start again whatever ended without having been asked to: a supervisor's work."""
        async with asyncio.TaskGroup() as starting:
            while True:
                await asyncio.sleep(0.1)
                for name in self.ports:
                    if name not in busy and self.reap(name):
                        self._ended_by_itself(name)
                        await asyncio.sleep(0.5)
                        self.spawn(name)
                        starting.create_task(self.up(name))

    def _ended_by_itself(self, name: Name) -> None:
        said = self.log(name).read_text(errors="replace")[-1500:].rstrip()
        if self.postgres is not None and said.rpartition("\n")[2].startswith("DATABASE_URL: "):
            # it was started while there was no database, said so, and is started again
            self.turned_away += 1
            return
        code = self.processes[name].returncode
        self.unexpected.append(f"{name} ended by itself ({code}):\n{said}")

    def stop(self) -> list[int]:
        """Stop everything politely, then for good; ids of processes that are left over."""
        for kind in ("gateway", "gpu_server", "simulator"):
            names = [name for name in self.processes if name[0] == kind]
            for name in names:
                self.signal(name, signal.SIGCONT)
                self.signal(name, signal.SIGTERM)
            for name in names:
                try:
                    self.processes[name].wait(20)
                except subprocess.TimeoutExpired:
                    self.unexpected.append(f"{name} did not stop when told to")
                    self.processes[name].kill()
                    self.processes[name].wait()
        return sorted(_descendants() - self._others)

    def _popen(self, name: Name, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *self._arguments(name)],
            env=self._env(name),
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )

    def _arguments(self, name: Name) -> list[str]:
        kind, n = name
        match kind:
            case "simulator":
                port, folder = str(self.ports[name]), str(self.folder / f"comfyui-{n}")
                where = ["--port", port, "--dir", folder, "--ledger", str(self.ledger(n))]
                return ["gpu_server.simulator", *where]
            case "gpu_server":
                return ["gpu_server"]
            case _:
                return ["gateway", "serve"]

    def _env(self, name: Name) -> dict[str, str]:
        kind, n = name
        inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        common = {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "GPU_SERVICE_TOKEN": TOKEN,
            "SIM_STEP_MS": str(STEP_MS),
        }
        if kind == "gpu_server":
            return common | {
                "WORKSPACE": str(self.folder / f"gpu-{n}"),
                "GPU_SERVER_HOST": "127.0.0.1",
                "GPU_SERVER_PORT": str(self.ports[name]),
                "COMFYUI_API_URL": self.url("simulator", n),
                "COMFYUI_PATH": str(self.folder / f"comfyui-{n}"),
                "MODELS_PATH": str(self.folder / "models"),
            }
        urls = [self.url("gpu_server", each) for each in range(self.plan.gpus)]
        return common | {
            "WORKSPACE": str(self.folder),
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": str(self.ports.get(name, 0)),
            "GATEWAY_API_KEY": KEY,
            "GPU_SERVICE_URL": ",".join(urls),
            "DATABASE_URL": self.database,
            "REPLICA_LEASE_S": str(self.plan.lease_s),
            "BACKEND_LOST_AFTER": str(self.plan.lost_after_s),
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOW_PRIVATE": "1",
        }

    def _answers(self, name: Name) -> bool:
        path = {"simulator": "/_sim", "gpu_server": "/health", "gateway": "/livez"}[name[0]]
        with suppress(httpx.TransportError):
            return httpx.get(self.url(*name) + path, timeout=5, trust_env=False).is_success
        return False


def _descendants() -> set[int]:
    """Those of ours that are no database: a database starts workers of its own at any time."""
    found = set[int]()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if not child.name().startswith("postgres"):
                found.add(child.pid)
    return found
