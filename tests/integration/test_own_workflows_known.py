"""What gateways remember of own workflows, and what they keep their GPU services asking about."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.base import WorkflowReadiness
from gateway.own_workflows import registry
from gateway.own_workflows.registry import OwnWorkflows, StoredWorkflows
from gateway.security.policy import Bounds
from gpu_server.workflow import Workflow
from gpu_server.workflow.node_specs import ObjectInfo
from tests.support.gateway import Gateway, gateway

Json = dict[str, Any]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with gateway(tmp_path / "workspace") as running:
        yield running


def graph(width: int) -> Json:
    made = {"class_type": "EmptyImage", "inputs": {"width": width, "height": 64, "batch_size": 1}}
    kept = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    return {"1": made, "2": kept}


async def send(served: Gateway, name: str, width: int = 64) -> None:
    answer = await served.http.post("/api/workflows", json={"name": name, "graph": graph(width)})
    assert answer.status_code == 201, answer.text


class Checker:
    """A GPU service that is asked."""

    def __init__(self) -> None:
        self.asked: dict[str, str] = {}
        self.all_asked = asyncio.Event()
        self.expected = 0

    def readiness(self, workflow: str, digest: str, /) -> WorkflowReadiness:
        self.asked[workflow] = digest
        if len(self.asked) == self.expected:
            self.all_asked.set()
        return WorkflowReadiness(readiness="unknown")

    async def nodes(self, classes: Sequence[str], /) -> ObjectInfo | None:
        raise AssertionError(classes)

    async def check(self, workflow: Workflow, /, *, refresh: bool = False) -> None:
        raise AssertionError(workflow, refresh)


def own(served: Gateway, checker: Checker, *, enabled: bool) -> OwnWorkflows:
    return OwnWorkflows(
        brought=StoredWorkflows(served.context.own.rows),
        checkers=[checker],
        policy=Bounds(),
        enabled=enabled,
        most=1,
    )


async def test_a_removed_version_is_gone_wherever_it_is_remembered(served: Gateway) -> None:
    await send(served, "mine")
    old = "/api/workflows/mine/run?version=1"
    assert (await served.http.post(old, json={})).status_code == 200
    assert (await served.http.delete("/api/workflows/mine")).status_code == 204
    await send(served, "mine", 128)
    for asked in (old, "/api/workflows/mine/run/async?version=1"):
        assert (await served.http.post(asked, json={})).status_code == 404
    assert (await served.http.get("/api/workflows/mine?version=1")).status_code == 404
    assert (await served.http.get("/api/workflows/mine?version=2")).status_code == 200
    # one that was only followed by another stays
    await send(served, "mine", 256)
    assert (await served.http.get("/api/workflows/mine?version=2")).status_code == 200


async def test_workflows_are_kept_known_without_any_being_made(
    served: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        await send(served, name)

    def made(*args: object) -> Workflow:
        raise AssertionError(args)

    monkeypatch.setattr(registry, "stored", made)
    checker = Checker()
    checker.expected = 3
    keeping = asyncio.create_task(own(served, checker, enabled=True).keep_known())
    await asyncio.wait_for(checker.all_asked.wait(), 60)
    keeping.cancel()
    heads = await served.context.own.rows.heads()
    assert checker.asked == {f"own.{head.name}": head.digest for head in heads}


async def test_nothing_is_kept_known_where_own_workflows_are_off(served: Gateway) -> None:
    await send(served, "mine")
    checker = Checker()
    await asyncio.wait_for(own(served, checker, enabled=False).keep_known(), 60)
    assert checker.asked == {}
