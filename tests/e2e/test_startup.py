"""startup.sh as a newcomer runs it, in a workspace and on ports of its own."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.support.stack import ROOT, free_port


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    workspace = tmp_path_factory.mktemp("workspace")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("COMFYUI", "GATEWAY"))}
    env = inherited | {
        "WORKSPACE": str(workspace),
        "BACKEND_PORT": str(free_port()),
        "GPU_SERVER_PORT": str(free_port()),
        "SIMULATOR": "1",
        "COMFYUI_API_URL": f"http://127.0.0.1:{free_port()}",
        "EXTRA_SERVICE_CMD": "sleep 86400",
    }
    yield env
    script("stop", env)


def script(command: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "startup.sh", command], env=env, capture_output=True, text=True, check=False
    )


def pids(env: dict[str, str]) -> list[int]:
    return [int(f.read_text()) for f in Path(env["WORKSPACE"]).glob("*.pid")]


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.timeout(600)
def test_demo_ends_with_a_picture_and_stop_leaves_nothing_behind(env: dict[str, str]) -> None:
    workspace = Path(env["WORKSPACE"])
    demo = script("demo", env)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    path = re.search(r"(\S+\.png)", demo.stdout)
    assert path, demo.stdout
    with Image.open(path[1]) as picture:
        assert picture.size == (768, 512)
    assert "curl" in demo.stdout
    key = re.search(r"GATEWAY_API_KEY=(\S+)", (workspace / ".env").read_text())
    assert key
    assert demo.stdout.count(key[1]) == 1  # shown once, when it was made
    assert (workspace / ".env").stat().st_mode & 0o077 == 0
    assert key[1] not in "".join(log.read_text() for log in workspace.glob("logs/*"))

    curl = next(line for line in demo.stdout.splitlines() if line.startswith("curl"))
    by_hand = subprocess.run(
        ["bash", "-c", f". {workspace}/.env; {curl}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"success":true' in by_hand.stdout.replace(" ", "")

    before = sorted(pids(env))
    again = script("start", env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("already runs") == 4
    assert key[1] not in again.stdout
    assert sorted(pids(env)) == before
    assert len(before) == 4

    status = script("status", env)
    assert status.stdout.count("running") >= 3

    stopped = script("stop", env)
    assert stopped.returncode == 0, stopped.stderr
    assert not pids(env)
    assert not [p for p in before if alive(p)]
    mine = str(workspace)
    left = [p.pid for p in psutil.process_iter(["environ"]) if mine in str(p.info["environ"] or "")]
    assert not [p for p in left if p != os.getpid()]
    assert "Nothing was running" in script("stop", env).stdout


@pytest.mark.timeout(600)
def test_an_env_file_as_people_write_it_is_honoured_and_kept(
    env: dict[str, str], tmp_path: Path
) -> None:
    """No final newline, an empty key, a host: nothing is lost, glued together or made twice."""
    workspace = tmp_path / "with a space"
    workspace.mkdir()
    port = free_port()
    (workspace / ".env").write_text(f"GATEWAY_API_KEY=\nBACKEND_PORT={port}\nREQUEST_TIMEOUT=77")
    # the environment made for the other test saves a second installation
    (workspace / "venv").symlink_to(Path(env["WORKSPACE"]) / "venv")
    mine = {k: v for k, v in env.items() if k not in {"BACKEND_PORT", "EXTRA_SERVICE_CMD"}} | {
        "WORKSPACE": str(workspace),
        "GPU_SERVER_PORT": str(free_port()),
        "COMFYUI_API_URL": f"http://127.0.0.1:{free_port()}",
    }
    try:
        for _ in range(2):
            started = script("start", mine)
            assert started.returncode == 0, started.stdout + started.stderr
        lines = (workspace / ".env").read_text().splitlines()
        assert "REQUEST_TIMEOUT=77" in lines
        assert len([line for line in lines if line.startswith("GATEWAY_API_KEY=")]) == 2
        assert f"127.0.0.1:{port}" in script("status", mine).stdout
    finally:
        assert script("stop", mine).returncode == 0


def test_what_startup_cannot_use_is_said_in_a_sentence(tmp_path: Path) -> None:
    base = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    (tmp_path / "folder" / ".env").mkdir(parents=True)
    refused = script("start", base | {"WORKSPACE": str(tmp_path / "folder")})
    assert refused.returncode == 1
    assert "cannot be read" in refused.stdout + refused.stderr
    refused = script("start", base | {"WORKSPACE": str(tmp_path / "py"), "PYTHON": "/bin/false"})
    assert refused.returncode == 1
    assert "No Python 3.11 or newer with venv was found at /bin/false" in refused.stderr
