"""`python -m gateway` as a real process."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.stack import KEY, Stack


def run(stack: Stack, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *args],
        env=stack.env(),
        cwd=stack.workspace,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def test_a_database_without_tables_ends_the_start_with_the_command(stack: Stack) -> None:
    ended = run(stack, "serve")
    assert ended.returncode == 1
    assert "python -m gateway migrate" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_setting_is_named(stack: Stack) -> None:
    stack.extra_env["BACKEND_PORT"] = "99999"
    ended = run(stack, "serve")
    assert ended.returncode == 1
    assert "BACKEND_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_remote_gpu_service_without_a_public_address_is_refused(stack: Stack) -> None:
    stack.extra_env["GPU_SERVICE_URL"] = "http://gpu.example.com:8001"
    ended = run(stack, "serve")
    assert ended.returncode == 1
    assert "PUBLIC_URL" in ended.stderr


def test_the_document_is_printed_and_touches_nothing(stack: Stack) -> None:
    printed = run(stack, "openapi")
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout)["openapi"].startswith("3.")
    assert list(stack.workspace.iterdir()) == []


def test_a_gateway_starts_refuses_strangers_and_stops_at_once(stack: Stack) -> None:
    try:
        stack.start("gateway")
        assert httpx.get(f"{stack.url}/api/jobs", trust_env=False).status_code == 401
        with stack.client() as client:
            body = {"prompt": "a", "width": 256, "height": 256}
            job_id = client.post("/api/generate/async", json=body).json()["job_id"]
            with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: pending"
                process = stack.processes.pop("gateway")
                process.send_signal(signal.SIGTERM)
                # Open streams end by themselves: nothing is cut off.
                assert "event: completed" not in list(lines)
        assert process.wait(30) == 0
        log = stack.log("gateway")
        assert "not for commercial use" in log
        assert KEY not in log
        assert "signature" not in log
        assert "Traceback" not in log
    finally:
        stack.stop()


def test_two_gateways_on_one_folder_are_refused(stack: Stack) -> None:
    try:
        stack.start("gateway")
        ended = run(Stack(stack.workspace), "serve")
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr
        assert httpx.get(f"{stack.url}/livez", trust_env=False).status_code == 200
    finally:
        stack.stop()
