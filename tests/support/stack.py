"""The three services as real processes on loopback, to be killed and started again."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx

ROOT = Path(__file__).parents[2]
Service = Literal["simulator", "gpu_server", "gateway"]
KEY = "test-key-of-the-stack"
START_SECONDS = 60


def free_port() -> int:
    """A loopback port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """Simulator (or the ComfyUI named), GPU service and gateway over one workspace."""

    def __init__(self, workspace: Path, *, comfyui: str | None = None, **env: str) -> None:
        self.workspace = workspace
        self.ports: dict[Service, int] = {
            "simulator": free_port(),
            "gpu_server": free_port(),
            "gateway": free_port(),
        }
        self.comfyui = comfyui or f"http://127.0.0.1:{self.ports['simulator']}"
        self.simulated = comfyui is None
        self.extra_env = env
        self.processes: dict[Service, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        """The gateway."""
        return f"http://127.0.0.1:{self.ports['gateway']}"

    def env(self) -> dict[str, str]:
        """What every process of this stack sees."""
        inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "default",
            "WORKSPACE": str(self.workspace),
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": str(self.ports["gateway"]),
            "GATEWAY_API_KEY": KEY,
            "GPU_SERVER_HOST": "127.0.0.1",
            "GPU_SERVER_PORT": str(self.ports["gpu_server"]),
            "GPU_SERVICE_URL": f"http://127.0.0.1:{self.ports['gpu_server']}",
            "GPU_SERVICE_TOKEN": "test-token-of-the-stack",
            "COMFYUI_API_URL": self.comfyui,
            **self.extra_env,
        }

    def command(self, service: Service) -> list[str]:
        """The command line of one service."""
        match service:
            case "simulator":
                port = str(self.ports["simulator"])
                folder = str(self.workspace / "simulator")
                args = ["gpu_server.simulator", "--port", port, "--dir", folder]
            case "gpu_server":
                args = ["gpu_server"]
            case "gateway":
                args = ["gateway", "serve"]
        return [sys.executable, "-m", *args]

    def health(self, service: Service) -> str:
        """An address that answers 200 once the service is up."""
        path = {"simulator": "/_sim", "gpu_server": "/health", "gateway": "/livez"}[service]
        return f"http://127.0.0.1:{self.ports[service]}{path}"

    def start(self, *services: Service) -> None:
        """Start the services named, or all; returns when each answers."""
        chosen = services or (("simulator",) if self.simulated else ()) + ("gpu_server", "gateway")
        self.workspace.mkdir(parents=True, exist_ok=True)
        if "gateway" in chosen:
            subprocess.run(
                [sys.executable, "-m", "gateway", "migrate"], env=self.env(), cwd=ROOT, check=True
            )
        for service in chosen:
            with (self.workspace / f"{service}.log").open("ab") as log:
                self.processes[service] = subprocess.Popen(
                    self.command(service), env=self.env(), cwd=ROOT, stdout=log, stderr=log
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

    def stop(self) -> None:
        """Stop everything politely, then for good."""
        for service in ("gateway", "gpu_server", "simulator"):
            process = self.processes.pop(service, None)
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def client(self, **kwargs: Any) -> httpx.Client:
        """A client of the gateway that carries the key."""
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=120,
            trust_env=False,
            **kwargs,
        )

    def simulator(self, **settings: Any) -> dict[str, Any]:
        """Change settings of the simulator; its settings and counts."""
        url = self.health("simulator")
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
