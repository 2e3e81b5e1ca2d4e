"""A gateway that dies for good: another one on the same PostgreSQL goes on with its jobs."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_kills import BODY, end_of, submit, until_progress
from tests.support.stack import Stack, wait_ready


@pytest.fixture
def stack(tmp_path: Path, postgres_url: str) -> Iterator[Stack]:
    """One gateway of two is up: the other one can have begun nothing."""
    stack = Stack(
        tmp_path,
        gateways=2,
        database_url=postgres_url,
        SIM_STEP_MS="150",
        REPLICA_LEASE_S="2",
    )
    try:
        stack.start("simulator", "gpu_server", "gateway-2")
        yield stack
    finally:
        stack.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_job_completes_though_its_gateway_never_comes_back(
    stack: Stack, end: signal.Signals
) -> None:
    with stack.client("gateway-2") as client:
        wait_ready(client, BODY["variant"])
        job_id = submit(client)
        until_progress(client, job_id)
    stack.start("gateway")
    gone = stack.processes.pop("gateway-2")
    gone.send_signal(end)
    gone.wait(60)
    with stack.client() as client:
        job = end_of(client, job_id)
        assert job["status"] == "completed", job
        assert client.get(job["result"]["image_url"]).status_code == 200
    assert stack.simulator()["counts"]["executions"] == 1
