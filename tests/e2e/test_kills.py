"""kill -9 of everything that can be killed while a job runs."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.support.stack import Service, Stack, wait_ready

BODY: dict[str, Any] = {
    "prompt": "a lighthouse at dawn",
    "variant": "checkpoint:tiny-sd15.ckpt",
    "width": 256,
    "height": 256,
    "num_inference_steps": 20,
}
SECONDS = 180


def submit(client: httpx.Client, **changes: Any) -> str:
    answer = client.post("/api/generate/async", json=BODY | changes)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def until_progress(client: httpx.Client, job_id: str) -> None:
    with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        next(line for line in stream.iter_lines() if line == "event: progress")


def end_of(client: httpx.Client, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        job: dict[str, Any] = client.get(f"/api/generate/{job_id}", params={"wait": 20}).json()
        if job["status"] in {"completed", "failed", "cancelled"}:
            return job
    raise AssertionError(f"job {job_id} hangs: {job}")


def retries(client: httpx.Client, job_id: str) -> list[str]:
    """Why each further attempt of an ended job was made, from its log."""
    with client.stream("GET", f"/api/jobs/{job_id}/events") as stream:
        lines = list(stream.iter_lines())
    told = [lines[n + 1 : n + 3] for n, line in enumerate(lines) if line == "event: retrying"]
    data = [line for each in told for line in each if line.startswith("data: ")]
    return [json.loads(line[6:])["code"] for line in data]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "killed", [("gateway",), ("gpu_server",), ("gateway", "gpu_server")], ids="+".join
)
def test_a_job_survives_the_death_of_our_processes_and_executes_once(
    own_stack: Stack, killed: tuple[Service, ...]
) -> None:
    own_stack.simulator(step_ms=150)
    with own_stack.client() as client:
        job_id = submit(client)
        until_progress(client, job_id)
    own_stack.kill(*killed)
    own_stack.start(*killed)
    with own_stack.client() as client:
        job = end_of(client, job_id)
        assert job["status"] == "completed", job
        assert client.get(job["result"]["image_url"]).status_code == 200
    assert own_stack.simulator()["counts"]["executions"] == 1


@pytest.mark.timeout(600)
def test_a_finished_run_whose_gateway_was_dead_meanwhile_is_collected(own_stack: Stack) -> None:
    own_stack.simulator(step_ms=60)
    with own_stack.client() as client:
        job_id = submit(client)
        until_progress(client, job_id)
    own_stack.kill("gateway")
    deadline = time.monotonic() + SECONDS
    while own_stack.simulator()["queue_remaining"] and time.monotonic() < deadline:
        time.sleep(0.05)
    own_stack.start("gateway")
    with own_stack.client() as client:
        assert end_of(client, job_id)["status"] == "completed"
    assert own_stack.simulator()["counts"]["executions"] == 1


@pytest.mark.timeout(600)
def test_a_job_survives_the_death_of_comfyui_by_a_second_execution(own_stack: Stack) -> None:
    own_stack.simulator(step_ms=150)
    with own_stack.client() as client:
        job_id = submit(client)
        until_progress(client, job_id)
        own_stack.kill("simulator")
        own_stack.start("simulator")
        job = end_of(client, job_id)
        assert job["status"] == "completed", job
        assert retries(client, job_id) == ["run_lost"]
    assert own_stack.simulator()["counts"]["executions"] == 1  # counted anew since its restart


@pytest.mark.timeout(600)
def test_a_job_that_ran_out_of_memory_completes_at_its_next_attempt(own_stack: Stack) -> None:
    own_stack.simulator(out_of_memory=1)
    with own_stack.client() as client:
        job_id = submit(client)
        assert end_of(client, job_id)["status"] == "completed"
        assert retries(client, job_id) == ["out_of_memory"]
    assert own_stack.simulator()["counts"]["executions"] == 2


@pytest.mark.timeout(600)
def test_a_gpu_service_without_its_journal_stops_what_it_does_not_know_and_begins_anew(
    own_stack: Stack,
) -> None:
    own_stack.simulator(step_ms=5000)
    with own_stack.client() as client:
        job_id = submit(client)
        until_progress(client, job_id)
        own_stack.kill("gpu_server")
        for file in (own_stack.workspace / "data").glob("gpu_server.*"):
            file.unlink()
        own_stack.start("gpu_server")
        deadline = time.monotonic() + SECONDS
        while own_stack.simulator()["counts"]["executions"] < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        # One executes at a time: the second began, so the first was stopped.
        assert own_stack.simulator(step_ms=5)["executed_ids"][0] == job_id
        assert end_of(client, job_id)["status"] == "completed"
        assert retries(client, job_id) == ["run_lost"]
    assert own_stack.simulator()["counts"]["executions"] == 2


@pytest.mark.timeout(1200)
def test_ten_restarts_under_a_waiting_job_harm_nothing(own_stack: Stack) -> None:
    own_stack.simulator(step_ms=5000)
    with own_stack.client() as client:
        running = [submit(client, num_inference_steps=100) for _ in range(2)]
        waiting = submit(client, num_inference_steps=2)
        until_progress(client, running[0])
    for _ in range(10):
        own_stack.kill("gateway")
        own_stack.start("gateway")
    with own_stack.client() as client:
        assert client.get(f"/api/jobs/{waiting}").json()["status"] == "pending"
        for job_id in running:
            client.post(f"/api/jobs/{job_id}/cancel")
        own_stack.simulator(step_ms=5)
        assert end_of(client, waiting)["status"] == "completed"


@pytest.mark.timeout(600)
def test_work_is_accepted_while_comfyui_is_away_and_done_when_it_comes(own_stack: Stack) -> None:
    own_stack.kill("simulator")
    with own_stack.client() as client:
        job_id = submit(client)
        health = client.get("/health").json()
        deadline = time.monotonic() + SECONDS
        while health["status"] != "degraded" and time.monotonic() < deadline:
            time.sleep(0.1)
            health = client.get("/health").json()
        assert health["status"] == "degraded"
        own_stack.start("simulator")
        wait_ready(client, BODY["variant"])
        assert end_of(client, job_id)["status"] == "completed"
