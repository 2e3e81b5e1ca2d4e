"""The worker's lock file, installed as its image installs it (tests/e2e/test_pod.py: the other)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.containers import read_dockerfile
from tests.support.stack import ROOT


@pytest.mark.timeout(900)
def test_the_workers_lock_file_alone_makes_an_environment_that_runs_the_worker(
    tmp_path: Path,
) -> None:
    install = next(
        rest for name, rest in read_dockerfile()["worker-packages"].steps if name == "RUN"
    )
    copied = "/tmp/serverless.txt"
    assert copied in install
    install = install.replace(copied, str(ROOT / "requirements" / "serverless.txt"))
    install = install.replace("/opt/venv", str(tmp_path / "venv"))
    # `python` of the image
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env.pop("VIRTUAL_ENV", None)
    made = subprocess.run(
        ["sh", "-c", install], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr

    def run(*words: str) -> str:
        command = [str(tmp_path / "venv" / "bin" / "python"), *words]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    run("-m", "pip", "check", "--disable-pip-version-check")
    names = run("-m", "pip", "freeze", "--disable-pip-version-check").lower()
    assert re.search(r"^runpod==", names, re.MULTILINE)
    assert not re.search(r"^(aioboto3|asyncpg|pytest)==", names, re.MULTILINE)
    run("-c", "import runpod, gpu_server.runpod_handler, gpu_server.simulator.server")
