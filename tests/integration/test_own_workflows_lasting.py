"""Callers' own workflows over restarts, versions, deletions, and on every gateway."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.own_workflows import SIZE, lighthouse, send
from tests.support.stack import Stack

PATIENCE_S = 90


def until(check: Callable[[], bool], stack: Stack) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not check():
        assert time.monotonic() < deadline, stack.log("gateway")
        time.sleep(0.1)


def healthy(stack: Stack, gateway: str = "gateway") -> None:
    with stack.client(gateway) as http:
        until(lambda: http.get("/health").json()["status"] == "healthy", stack)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    stack = Stack(tmp_path, SIM_STEP_MS="5")
    try:
        stack.start()
        healthy(stack)
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def two(tmp_path: Path, postgres_url: str) -> Iterator[Stack]:
    """Two gateways on one database."""
    stack = Stack(tmp_path, gateways=2, database_url=postgres_url, SIM_STEP_MS="5")
    try:
        stack.start()
        healthy(stack)
        healthy(stack, "gateway-2")
        yield stack
    finally:
        stack.stop()


@pytest.mark.timeout(300)
def test_a_job_is_made_with_its_own_version_over_restarts_and_deletion(stack: Stack) -> None:
    with stack.client() as http:
        send(http, lighthouse("lasting"))
        assert http.post("/api/workflows/lasting/run", json=SIZE).status_code == 200
        stack.kill("gpu_server")
        first = http.post("/api/workflows/lasting/run/async", json=SIZE).json()["job_id"]
        changed = lighthouse("lasting")
        changed["graph"]["6"]["inputs"]["cfg"] = 5.0
        # no GPU service answers: types are read off the graph, the choice of a sampler cannot be
        errors = send(http, changed, 422)["errors"]
        assert [error["field"] for error in errors] == ["graph.6"]
        changed["graph"]["6"]["_meta"]["title"] = "input: seed, steps, cfg"
        made = send(http, changed)
        assert (made["version"], made["readiness"]) == (2, "unknown")
        second = http.post("/api/workflows/lasting/run/async", json=SIZE | {"cfg": 2}).json()
        assert http.delete("/api/workflows/lasting").status_code == 204
    stack.kill("gateway")
    stack.start("gateway")
    # it comes back with an empty memory, and is sent what it lacks
    stack.start("gpu_server")
    with stack.client() as http:
        assert http.get("/api/workflows/lasting").status_code == 404
        assert http.post("/api/workflows/lasting/run", json=SIZE).status_code == 404
        for job_id, version in ((first, "v1"), (second["job_id"], "v2")):
            path = f"/api/workflows/lasting/run/{job_id}"
            until(lambda path=path: http.get(path).json()["status"] == "completed", stack)
            job = http.get(path, params={"wait": 60}).json()
            assert (job["tool"], job["variant"]) == ("workflows/lasting", version)
            (picture,) = job["result"]["outputs"]["picture"]
            assert http.get(picture).status_code == 200
        assert len(http.get("/api/jobs").json()["items"]) == 3
        # the name is free again, and goes on counting
        assert send(http, lighthouse("lasting"))["version"] == 3


@pytest.mark.timeout(300)
def test_every_gateway_has_every_workflow_at_once(two: Stack) -> None:
    with two.client() as one, two.client("gateway-2") as other:
        send(one, lighthouse("shared"))
        made = other.post("/api/workflows/shared/run", json=SIZE)
        assert made.status_code == 200, made.text
        paths = other.get("/openapi.json").json()["paths"]
        assert "/api/workflows/shared/run" in paths
        (seen,) = other.get("/api/workflows").json()["items"]
        assert (seen["name"], seen["readiness"]) == ("shared", "ready")
        assert send(other, lighthouse("shared"), 200)["version"] == 1
        changed = lighthouse("shared", **{"3": "input: words"})
        assert send(one, changed)["version"] == 2
        new = other.post("/api/workflows/shared/run", json=SIZE | {"words": "a tower"})
        assert (new.status_code, new.json()["variant"]) == (200, "v2")
        old = other.post(
            "/api/workflows/shared/run", params={"version": 1}, json=SIZE | {"prompt": "a tower"}
        )
        assert (old.status_code, old.json()["variant"]) == (200, "v1")
        versions = other.get("/api/workflows/shared").json()["versions"]
        assert [version["version"] for version in versions] == [2, 1]
        assert one.delete("/api/workflows/shared").status_code == 204
        assert other.post("/api/workflows/shared/run", json=SIZE).status_code == 404
        job = other.get(f"/api/workflows/shared/run/{made.json()['job_id']}").json()
        assert job["result"]["outputs"] == made.json()["outputs"]
        assert "/api/workflows/shared/run" not in other.get("/openapi.json").json()["paths"]
