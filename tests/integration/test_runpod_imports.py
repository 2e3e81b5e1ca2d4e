"""Who imports RunPod's SDK: one module of the worker, and nothing the gateway ever loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

from tests.support.serverless import PYTHON, require_sdk
from tests.support.stack import ROOT, Stack

THE_ONE = ROOT / "gpu_server" / "runpod_handler.py"
SOURCES = [*ROOT.glob("gateway/**/*.py"), *ROOT.glob("gpu_server/**/*.py")]


def imported(path: Path) -> set[str]:
    """First parts of what a module imports, by statement or by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
    return {name.partition(".")[0] for name in names}


def test_one_module_imports_the_sdk() -> None:
    assert [path for path in SOURCES if "runpod" in imported(path)] == [THE_ONE]


def test_a_gateway_starts_without_it(tmp_path: Path) -> None:
    """With a `runpod` in reach that tells when it is imported."""
    trap = tmp_path / "trap" / "runpod"
    trap.mkdir(parents=True)
    marker = tmp_path / "imported"
    (trap / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    path = f"{trap.parent}:{ROOT}"
    stack = Stack(tmp_path / "stack", PYTHONPATH=path)
    try:
        stack.start("simulator", "gpu_server", "gateway")
        with stack.client() as client:
            assert client.get("/health").status_code == 200
            assert client.get("/openapi.json").status_code == 200
    finally:
        stack.stop()
    assert not marker.exists()
    command = [sys.executable, "-c", "import runpod"]
    subprocess.run(command, env={"PYTHONPATH": path}, check=True)
    assert marker.exists(), "the trap does not work"


def pins(name: str) -> set[str]:
    """What a lock file pins, without versions."""
    text = (ROOT / "requirements" / name).read_text()
    return set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))


def test_the_workers_environment_is_its_lock_and_holds_together() -> None:
    require_sdk()

    def pip(*arguments: str) -> str:
        command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "No broken requirements" in pip("check")
    installed = {line.partition("==")[0].lower().replace("_", "-").replace(".", "-")
                 for line in pip("freeze").splitlines()}  # fmt: skip
    assert installed <= pins("serverless.txt")
    assert "runpod" in installed


def test_gateway_and_worker_have_a_lock_of_their_own() -> None:
    assert "runpod" in pins("serverless.txt")
    assert "boto3" in pins("serverless.txt")
    assert "aioboto3" not in pins("serverless.txt")
    assert not {"runpod"} & (pins("run.txt") | pins("dev.txt"))
