"""startup.sh on a pod: a volume with a ComfyUI on it, and a restart that leaves only the volume.

The simulator stands where the pod's ComfyUI would be, started by somebody else, as on a pod.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.stack import ROOT, free_port, wait_ready

VARIANT = "checkpoint:tiny-sd15.ckpt"
BODY: dict[str, Any] = {"prompt": "a red barn", "variant": VARIANT, "width": 256, "height": 256}
PATIENCE_S = 90


class Pod:
    """What a pod's system sees; the volume is all that outlives it."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.comfyui = f"http://127.0.0.1:{free_port()}"
        self.ports = {"backend": str(free_port()), "gpu_server": str(free_port())}
        inherited = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        self.env = inherited | {
            "RUNPOD_POD_ID": "pod0123456789",
            # RunPod sets it on every pod
            "RUNPOD_API_KEY": "key-of-the-pod",
            "WORKSPACE": str(volume),
            "COMFYUI_API_URL": self.comfyui,
            # a pod listens everywhere
            "BACKEND_HOST": "127.0.0.1",
            "BACKEND_PORT": self.ports["backend"],
            "GPU_SERVER_PORT": self.ports["gpu_server"],
        }
        self._started: subprocess.Popen[bytes] | None = None

    def start_comfyui(self) -> int:
        """As the pod's image does it; its process id."""
        command = ["-m", "gpu_server.simulator", "--port", self.comfyui.rpartition(":")[2]]
        self._started = subprocess.Popen(
            [self.python, *command, "--dir", self.volume / "ComfyUI"],
            env={**self.env, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self._started.pid

    @property
    def python(self) -> Path:
        """Of the environment on the volume."""
        return self.volume / "venv-gateway" / "bin" / "python"

    def script(self, command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "startup.sh", command],
            env=self.env | env,
            capture_output=True,
            text=True,
            check=False,
        )

    def processes(self) -> dict[str, psutil.Process]:
        files = self.volume.glob("*.pid")
        return {f.stem: psutil.Process(int(f.read_text())) for f in files}

    def pull_the_plug(self) -> None:
        """End everything at once; the PID files stay, as on a volume."""
        for process in self.processes().values():
            process.send_signal(signal.SIGKILL)
        self.stop_comfyui()

    def stop_comfyui(self) -> None:
        if self._started is not None:
            self._started.kill()
            self._started.wait()
            self._started = None

    def client(self) -> httpx.Client:
        key = re.search(r"GATEWAY_API_KEY=(\S+)", (self.volume / ".env").read_text())
        assert key
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports['backend']}",
            headers={"Authorization": f"Bearer {key[1]}"},
            timeout=PATIENCE_S,
            trust_env=False,
        )


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    volume = tmp_path_factory.mktemp("volume")
    for folder in ("models/checkpoints", "custom_nodes", "input", "output", "user"):
        (volume / "ComfyUI" / folder).mkdir(parents=True)
    (volume / "ComfyUI" / "main.py").write_text("raise SystemExit('not by startup.sh')\n")
    (volume / "ComfyUI" / "output" / "mine.png").write_bytes(b"a picture of the owner's")
    # the environment of the owner's ComfyUI, where startup.sh would put its own
    (volume / "venv" / "bin").mkdir(parents=True)
    pod = Pod(volume)
    yield pod
    pod.script("stop")
    pod.stop_comfyui()


@pytest.fixture(scope="module")
def running(pod: Pod) -> Pod:
    """After the first start, with its ComfyUI."""
    started = pod.script("start")
    assert started.returncode == 0, started.stdout + started.stderr
    assert "ComfyUI does not answer" in started.stdout
    pod.start_comfyui()
    return pod


def end_of(client: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/api/generate/{job_id}", params={"wait": 20}).json()
        if job["status"] in {"completed", "failed", "cancelled"}:
            return job
    raise AssertionError(f"job {job_id} hangs")


@pytest.mark.timeout(600)
def test_the_lock_file_alone_makes_an_environment_that_runs_everything_but_the_worker(
    running: Pod,
) -> None:
    """`requirements/run.txt`, installed by startup.sh and by nothing else."""
    check = [str(running.python), "-m", "pip", "check", "--disable-pip-version-check"]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    listed = [str(running.python), "-m", "pip", "freeze", "--disable-pip-version-check"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.lower()
    assert not re.search(r"^(runpod|pytest|moto)==", names, re.MULTILINE)
    assert re.search(r"^aioboto3==", names, re.MULTILINE)


@pytest.mark.timeout(600)
def test_a_pods_own_comfyui_is_used_and_its_folder_left_as_it_is(running: Pod) -> None:
    processes = running.processes()
    assert processes.keys() == {"backend", "gpu_server"}
    assert processes["gpu_server"].environ()["COMFYUI_PATH"] == str(running.volume / "ComfyUI")
    assert processes["gpu_server"].environ()["MODELS_PATH"] == str(running.volume / "models")
    with running.client() as client:
        wait_ready(client, VARIANT)
        made = client.post("/api/generate", json=BODY).json()
        assert made["success"], made
        assert client.get(made["image_url"]).content.startswith(b"\x89PNG")
    output = running.volume / "ComfyUI" / "output"
    assert (output / "mine.png").read_bytes() == b"a picture of the owner's"
    # the run's own file goes once it is delivered
    deadline = time.monotonic() + PATIENCE_S
    while [path for path in output.rglob("*") if path.is_file()] != [output / "mine.png"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not list((running.volume / "venv").rglob("*.py"))


@pytest.mark.timeout(600)
def test_everything_that_is_written_lies_on_the_volume(running: Pod) -> None:
    for process in running.processes().values():
        written = [f.path for f in process.open_files() if "w" in f.mode or "+" in f.mode]
        assert written
        outside = [path for path in written if not path.startswith(str(running.volume))]
        assert not outside


@pytest.mark.timeout(600)
def test_a_pods_restart_loses_no_job_no_result_and_no_key(running: Pod) -> None:
    with running.client() as client:
        wait_ready(client, VARIANT)
        kept = client.post("/api/generate", json=BODY).json()["image_url"]
        picture = client.get(kept).content
        httpx.post(f"{running.comfyui}/_sim", json={"step_ms": 300}, trust_env=False)
        job = client.post("/api/generate/async", json=BODY | {"num_inference_steps": 50}).json()
        with client.stream("GET", f"/api/jobs/{job['job_id']}/events") as stream:
            next(line for line in stream.iter_lines() if line == "event: progress")
    env_file = (running.volume / ".env").read_bytes()
    running.pull_the_plug()

    # numbers begin anew: what was the GPU service's is now ComfyUI's, the gateway's somebody else's
    comfyui = running.start_comfyui()
    (running.volume / "gpu_server.pid").write_text(f"{comfyui}\n")
    (running.volume / "backend.pid").write_text(f"{os.getpid()}\n")
    again = running.script("start")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "already runs" not in again.stdout
    assert (running.volume / ".env").read_bytes() == env_file
    assert comfyui not in [p.pid for p in running.processes().values()]
    with running.client() as client:
        assert end_of(client, job["job_id"])["status"] == "completed"
        assert client.get(kept).content == picture


@pytest.mark.timeout(600)
def test_an_environment_whose_python_went_with_the_old_system_is_made_anew(running: Pod) -> None:
    """Only as far as that it is noticed: a second installation takes a minute."""
    assert "PID" in running.script("status").stdout
    assert running.script("start", PYTHON="/bin/false").returncode == 0
    python = running.python
    kept = python.with_name("kept")
    shutil.move(python, kept)
    try:
        python.symlink_to("/nowhere/python3")
        refused = running.script("start", PYTHON="/bin/false")
    finally:
        python.unlink()
        shutil.move(kept, python)
    assert refused.returncode == 1
    assert "No Python 3.11 or newer with venv was found at /bin/false" in refused.stderr


@pytest.mark.timeout(600)
def test_where_all_work_goes_to_serverless_no_gpu_service_is_started(
    running: Pod, tmp_path: Path
) -> None:
    (tmp_path / "venv").symlink_to(running.python.parents[1])
    alone = Pod(tmp_path)
    # none, so that the pod's own is left
    (tmp_path / ".env").write_text('RUNPOD_API_KEY=""\n')
    serverless = {
        "BACKENDS": "runpod",
        "TOOL_BACKENDS": "video = runpod, mask = runpod:endpoint1 | runpod",
        "RUNPOD_ENDPOINT_ID": "endpoint1",
        "RUNPOD_API_URL": f"http://127.0.0.1:{free_port()}",
    }
    try:
        started = alone.script("start", **serverless)
        assert started.returncode == 0, started.stdout + started.stderr
        assert "Work goes to RunPod alone" in started.stdout
        assert alone.processes().keys() == {"backend"}
        # what TOOL_BACKENDS sends to a GPU service needs one
        both = alone.script("start", **serverless | {"TOOL_BACKENDS": "video=gpu|runpod"})
        assert both.returncode == 0, both.stdout + both.stderr
        assert alone.processes().keys() == {"backend", "gpu_server"}
    finally:
        alone.script("stop")
