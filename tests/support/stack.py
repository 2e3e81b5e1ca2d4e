"""The services as real processes on loopback, to be stopped, killed and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
Service = str
"""`simulator`, `gpu_server`, `gateway`; where there are several, then `simulator-2` and so on."""
KEY = "test-key-of-the-stack"
START_SECONDS = 120


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def named(kind: str, count: int) -> list[Service]:
    """Names of so many services of a kind."""
    return [kind, *(f"{kind}-{n}" for n in range(2, count + 1))]


class Stack:
    """Simulators (or the ComfyUI named), each with its GPU service, and gateways over one folder.

    Several gateways need a `database_url` of PostgreSQL: SQLite belongs to one of them.
    """

    def __init__(
        self,
        workspace: Path,
        *,
        comfyui: str | None = None,
        gpus: int = 1,
        gateways: int = 1,
        database_url: str | None = None,
        root: Path = ROOT,
        **env: str,
    ) -> None:
        self.workspace = workspace
        self.root = root
        self.simulators = named("simulator", gpus)
        self.gpu_servers = named("gpu_server", gpus)
        self.gateways = named("gateway", gateways)
        every = [*self.simulators, *self.gpu_servers, *self.gateways]
        self.ports: dict[Service, int] = {service: free_port() for service in every}
        self.comfyui = comfyui or self.address("simulator")
        self.simulated = comfyui is None
        self.extra_env = env
        if database_url is not None:
            self.extra_env = {"DATABASE_URL": database_url, **env}
        self.processes: dict[Service, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The (first) gateway."""
        return self.address("gateway")

    def address(self, service: Service) -> str:
        """Where a service listens."""
        return f"http://127.0.0.1:{self.ports[service]}"

    def env(self, service: Service = "gateway") -> dict[str, str]:
        """What a process of this stack sees."""
        _, _, number = service.partition("-")
        suffix = f"-{number}" if number else ""
        gpu = f"gpu_server{suffix}" if f"gpu_server{suffix}" in self.ports else "gpu_server"
        own = f"gateway{suffix}" if f"gateway{suffix}" in self.ports else "gateway"
        # a GPU service has a journal of its own, gateways share their files
        apart = number and service.startswith("gpu_server")
        comfyui = self.address(f"simulator{suffix}") if apart else self.comfyui
        inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        return {
            **inherited,
            "PYTHONPATH": str(self.root),
            "PYTHONWARNINGS": "default",
            "WORKSPACE": str(self.workspace / service if apart else self.workspace),
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": str(self.ports[own]),
            "GATEWAY_API_KEY": KEY,
            "GPU_SERVER_HOST": "127.0.0.1",
            "GPU_SERVER_PORT": str(self.ports[gpu]),
            "GPU_SERVICE_URL": ",".join(map(self.address, self.gpu_servers)),
            "GPU_SERVICE_TOKEN": "test-token-of-the-stack",
            "COMFYUI_API_URL": comfyui,
            **self.extra_env,
        }

    def command(self, service: Service) -> list[str]:
        """The command line of one service."""
        match service.partition("-")[0]:
            case "simulator":
                port = str(self.ports[service])
                folder = str(self.workspace / service)
                args = ["gpu_server.simulator", "--port", port, "--dir", folder]
            case "gpu_server":
                args = ["gpu_server"]
            case _:
                args = ["gateway", "serve"]
        return [sys.executable, "-m", *args]

    def health(self, service: Service) -> str:
        """An address that answers 200 once the service is up."""
        paths = {"simulator": "/_sim", "gpu_server": "/health", "gateway": "/livez"}
        return self.address(service) + paths[service.partition("-")[0]]

    def start(self, *services: Service) -> None:
        """Start the services named, or all; returns when each answers."""
        simulators = self.simulators if self.simulated else []
        chosen = services or (*simulators, *self.gpu_servers, *self.gateways)
        self.workspace.mkdir(parents=True, exist_ok=True)
        if not set(chosen).isdisjoint(self.gateways):
            subprocess.run(
                [sys.executable, "-m", "gateway", "migrate"],
                env=self.env(),
                cwd=self.root,
                check=True,
            )
        for service in chosen:
            with (self.workspace / f"{service}.log").open("ab") as log:
                self.processes[service] = subprocess.Popen(
                    self.command(service),
                    env=self.env(service),
                    cwd=self.root,
                    stdout=log,
                    stderr=log,
                )
        for service in chosen:
            self.wait_up(service)

    def wait_up(self, service: Service) -> None:
        """Wait until a service answers. Raises AssertionError with its log when it ended."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.health(service), timeout=5, trust_env=False).is_success:
                    return
            assert self.processes[service].poll() is None, self.log(service)
            time.sleep(0.05)
        raise AssertionError(f"{service} did not come up:\n{self.log(service)}")

    def log(self, service: Service) -> str:
        """The end of what a service has printed."""
        return (self.workspace / f"{service}.log").read_text(errors="replace")[-6000:]

    def kill(self, *services: Service) -> None:
        """kill -9, as the kernel or a preempted pod does it."""
        for service in services:
            process = self.processes.pop(service)
            process.send_signal(signal.SIGKILL)
            process.wait()

    def freeze(self, service: Service) -> None:
        """Stop a process where it is; connections to it are still accepted."""
        self.processes[service].send_signal(signal.SIGSTOP)

    def thaw(self, service: Service) -> None:
        """Let a frozen process go on."""
        self.processes[service].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop everything politely, then for good."""
        for service in (*self.gateways, *self.gpu_servers, *self.simulators):
            process = self.processes.pop(service, None)
            if process is None:
                continue
            # one that is frozen could not follow
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def client(self, gateway: Service = "gateway", **kwargs: Any) -> httpx.Client:
        """A client of a gateway that carries the key."""
        return httpx.Client(
            base_url=self.address(gateway),
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=120,
            trust_env=False,
            **kwargs,
        )

    def simulator(self, service: Service = "simulator", **settings: Any) -> dict[str, Any]:
        """Change settings of a simulator; its settings and counts."""
        url = self.health(service)
        answer = httpx.post(url, json=settings, timeout=30, trust_env=False)
        assert answer.is_success, answer.text
        state: dict[str, Any] = httpx.get(url, timeout=30, trust_env=False).json()
        return state


@contextlib.contextmanager
def running(workspace: Path, **kwargs: Any) -> Iterator[Stack]:
    """A started stack, stopped at the end."""
    stack = Stack(workspace, **kwargs)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def wait_ready(client: httpx.Client, variant: str) -> None:
    """Wait until the catalogue says that a variant of image generation can run."""
    wait_readiness(client, variant, "ready")


def wait_readiness(client: httpx.Client, variant: str, wanted: str) -> None:
    """Wait until the catalogue says so of a variant; a GPU service looks every 10 s when idle."""
    deadline = time.monotonic() + 2 * START_SECONDS
    seen: Any = None
    while time.monotonic() < deadline:
        tools = client.get("/api/tools").json()["items"]
        variants = next(t for t in tools if t["name"] == "generate")["variants"]
        family = variant.split(":", maxsplit=1)[0]
        seen = [v for v in variants if v["name"].split(":")[0] == family]
        if seen and seen[0]["readiness"] == wanted:
            return
        time.sleep(0.1)
    raise AssertionError(f"{variant} did not become {wanted}: {seen}")
