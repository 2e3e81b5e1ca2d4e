"""What containers would run, run without them: each command with its image's environment.

The folders of the images and the names of the compose file's network are put onto this machine;
nothing else is changed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.containers import given, read_compose, read_dockerfile
from tests.support.postgres import PASSWORD, USER, NoPostgres, own_server
from tests.support.rclone import PROGRAM as RCLONE
from tests.support.serverless import PYTHON as WORKER_PYTHON
from tests.support.serverless import require_sdk
from tests.support.stack import ROOT, free_port, wait_ready

STAGES = read_dockerfile()
COMPOSE = read_compose()["services"]
KEY = "key-of-the-containers"
SECRETS = {
    "GATEWAY_API_KEY": KEY,
    "GPU_SERVICE_TOKEN": "token-of-the-containers",
    "POSTGRES_PASSWORD": PASSWORD,
    "STORE_SECRET_KEY": "secret-of-the-containers",
}
PATIENCE_S = 90
VARIANT = "checkpoint:tiny-sd15.ckpt"


class Container:
    """A command and an environment that a container would have, as a process here."""

    def __init__(
        self,
        folder: Path,
        stage: str,
        *,
        python: Path = Path(sys.executable),
        paths: Mapping[str, str] | None = None,
        places: Mapping[str, str] | None = None,
        **env: str,
    ) -> None:
        self._folder = folder / stage
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stage = STAGES[stage]
        own = dict.fromkeys(("/workspace", "/store"), str(self._folder))
        self._paths = own | dict(paths or {})
        self._places = dict(places or {})
        inherited = {k: os.environ[k] for k in ("HOME", "LANG") if k in os.environ}
        self.env = {
            **inherited,
            "PATH": f"{python.parent}:{RCLONE.parent}:{os.environ['PATH']}",
            **{k: self._put(v) for k, v in (self._stage.environment() | env).items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def _put(self, text: str) -> str:
        for there, here in self._paths.items():
            if text == there or text.startswith(f"{there}/"):
                return here + text.removeprefix(there)
        for there, here in self._places.items():
            text = text.replace(there, here)
        return text

    @property
    def comfyui(self) -> int:
        """Process id of the simulator in it."""
        assert self._process is not None
        inside = psutil.Process(self._process.pid).children(recursive=True)
        found = [p.pid for p in inside if "gpu_server.simulator" in _command(p)]
        return found[0] if found else 0

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def start(self, command: list[str] | None = None) -> None:
        words = [self._put(word) for word in command or self._stage.command()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, cwd=ROOT, env=self.env, stdout=log, stderr=log)

    def healthy(self, check: list[str] | None = None) -> bool:
        words = [self._put(word) for word in check or self._stage.health() or ()]
        return not subprocess.run(
            words, cwd=ROOT, env=self.env, capture_output=True, check=False
        ).returncode

    def until_healthy(self, check: list[str] | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.healthy(check):
            assert self._process is not None
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)

    def stop(self) -> int:
        """As Docker does it: TERM to the first process, and to no other."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"it does not stop: {self.log}") from None


def asked(service: str, **more: str) -> dict[str, str]:
    """What the compose file gives a service."""
    return given(COMPOSE[service], SECRETS | more)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def installation(tmp_path: Path) -> Generator[dict[str, Container]]:
    """The compose file's services with `--profile simulator`, PostgreSQL being the tests' own."""
    if not RCLONE.exists():
        pytest.skip(f"{RCLONE} is not there: `make setup` unpacks it")
    ports = {name: str(free_port()) for name in ("gateway", "gpu", "store", "comfyui")}
    places = {
        "http://gpu:8001": f"http://127.0.0.1:{ports['gpu']}",
        "http://store:9000": f"http://127.0.0.1:{ports['store']}",
        "http://127.0.0.1:8288": f"http://127.0.0.1:{ports['comfyui']}",
        "0.0.0.0": "127.0.0.1",
    }
    paths = {":9000": f"127.0.0.1:{ports['store']}"}
    with ExitStack() as running:
        try:
            postgres = running.enter_context(own_server())
        except NoPostgres as missing:
            pytest.skip(str(missing))
        at = postgres.url.partition("@")[2]
        places[f"genmedia:{PASSWORD}@postgres:5432/genmedia"] = f"{USER}:{PASSWORD}@{at}"
        made: dict[str, Container] = {}
        for name, stage, port in (
            ("store", "store", {}),
            ("gpu-simulator", "gateway", {"GPU_SERVER_PORT": ports["gpu"]}),
            ("gateway", "gateway", {"BACKEND_PORT": ports["gateway"]}),
        ):
            env = asked(name) | port
            made[name] = Container(tmp_path / name, stage, paths=paths, places=places, **env)
            running.callback(made[name].stop)
        # the image makes the bucket; what comes before its command is the base's
        (tmp_path / "store" / "store" / "genmedia").mkdir()
        made["store"].start([str(RCLONE), *STAGES["store"].command()])
        simulator = COMPOSE["gpu-simulator"]
        made["gpu-simulator"].start(simulator["entrypoint"] + simulator["command"])
        made["store"].until_healthy(["bash", "-c", f"</dev/tcp/127.0.0.1/{ports['store']}"])
        made["gateway"].start()
        made["gpu-simulator"].until_healthy(simulator["healthcheck"]["test"][1:])
        made["gateway"].until_healthy()
        yield made


@pytest.mark.timeout(400)
def test_the_compose_files_services_make_a_picture_together(
    installation: dict[str, Container], tmp_path: Path
) -> None:
    gateway = installation["gateway"]
    with httpx.Client(
        base_url=f"http://127.0.0.1:{gateway.env['BACKEND_PORT']}",
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=PATIENCE_S,
        trust_env=False,
    ) as client:
        wait_ready(client, VARIANT)
        body = {"prompt": "a lighthouse", "variant": VARIANT, "width": 256, "height": 256}
        made: dict[str, Any] = client.post("/api/generate", json=body).json()
        assert made["success"], made
        assert made["engine"] == "simulator"
        picture = client.get(made["image_url"])
        assert picture.content.startswith(b"\x89PNG")
    # in the bucket, which only the signed addresses and the key of RCLONE_AUTH_KEY open
    stored = list((tmp_path / "store" / "store" / "genmedia").rglob("*.png"))
    assert [p.read_bytes() for p in stored] == [picture.content]
    bucket = gateway.env["S3_ENDPOINT_URL"] + "/genmedia"
    assert httpx.get(bucket, trust_env=False).is_client_error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["gpu", "worker"])
def test_comfyuis_death_is_made_good_and_a_stop_leaves_nothing(tmp_path: Path, stage: str) -> None:
    if stage == "worker":
        require_sdk()
    comfyui, gpu = f"http://127.0.0.1:{free_port()}", str(free_port())
    container = Container(
        tmp_path,
        stage,
        python=WORKER_PYTHON if stage == "worker" else Path(sys.executable),
        SIMULATOR="1",
        COMFYUI_AGAIN_S="0.2",
        COMFYUI_API_URL=comfyui,
        **({"GPU_SERVER_HOST": "127.0.0.1", "GPU_SERVER_PORT": gpu} if stage == "gpu" else {}),
    )
    command = None
    if stage == "worker":
        options = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", gpu]
        command = [*STAGES["worker"].command(), *options]
    container.start(command)
    try:
        container.until_healthy()
        first = container.comfyui
        assert first
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while not answers(f"{comfyui}/queue") or container.comfyui == first:
            assert time.monotonic() < deadline, container.log
            time.sleep(0.1)
        assert "it is started again" in container.log
        assert container.healthy()
    finally:
        container.stop()
    assert not answers(f"{comfyui}/queue")
    assert not answers(f"http://127.0.0.1:{gpu}/health")


@pytest.mark.timeout(600)
def test_the_commands_status_is_the_containers(tmp_path: Path) -> None:
    container = Container(
        tmp_path,
        "gpu",
        SIMULATOR="1",
        COMFYUI_API_URL=f"http://127.0.0.1:{free_port()}",
    )
    entry = STAGES["gpu"].command()[0]
    for pause in ("0", "0.02", "0.2", "2"):
        ended = subprocess.run(
            [entry, "bash", "-c", f"sleep {pause}; exit 5"],
            cwd=ROOT,
            env=container.env,
            check=False,
            timeout=60,
        )
        assert ended.returncode == 5
        # its folder is this test's own
        left = [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_command(p))]
        assert not left
    refused = subprocess.run(
        [entry, "true"],
        cwd=ROOT,
        env=container.env | {"COMFYUI_API_URL": "http://10.0.0.5:8188"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "COMFYUI_API_URL must be" in refused.stderr


def test_comfyui_itself_is_started_on_loopback_with_the_models_folder(tmp_path: Path) -> None:
    """With a program in its place that writes down what it was told."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "main.py").write_text(
        "import sys, time\n"
        "paths = open(sys.argv[sys.argv.index('--extra-model-paths-config') + 1]).read()\n"
        f"open({str(tmp_path / 'told')!r}, 'w').write('\\n'.join(sys.argv[1:]) + '\\n' + paths)\n"
        "time.sleep(600)\n"
    )
    container = Container(
        tmp_path,
        "gpu",
        paths={"/opt/comfyui-venv/bin/python": sys.executable, "/opt/comfyui": str(code)},
        COMFYUI_ARGS="--lowvram --cache-classic",
    )
    wait = f"until [ -s {tmp_path / 'told'} ]; do sleep 0.1; done"
    ended = subprocess.run(
        [STAGES["gpu"].command()[0], "bash", "-c", wait],
        cwd=ROOT,
        env=container.env,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0
    told = (tmp_path / "told").read_text()
    assert "--listen\n127.0.0.1\n--port\n8188\n" in told
    assert "--lowvram\n--cache-classic\n" in told
    workspace = tmp_path / "gpu"
    assert f"base_path: {workspace}/models\n" in told
    assert f"--base-directory\n{workspace}/ComfyUI\n" in told
    assert (workspace / "ComfyUI" / "custom_nodes").is_dir()
