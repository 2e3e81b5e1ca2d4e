"""Looking at callers' own workflows at a GPU service that misbehaves."""

from typing import Any

from gateway.backends.brought import Brought
from gpu_server.protocol import CheckedWorkflow, CheckRequest
from gpu_server.workflow import Workflow, content_digest, make_workflow

GRAPH: dict[str, Any] = {"1": {"class_type": "Shows", "inputs": {"text": "a"}}}
MANIFEST: dict[str, Any] = {
    "manifest": 1,
    "tool": "workflows",
    "title": "mine",
    "params": {},
    "outputs": {"shown": {"node": "1", "kind": "text"}},
}
DIGEST = content_digest(GRAPH, MANIFEST)


class Silent:
    """Knows no workflow, and says nothing of one that it is sent."""

    async def check(self, request: CheckRequest) -> list[CheckedWorkflow]:
        asked = [one for one in request.workflows if one.graph is None]
        return [CheckedWorkflow(digest=one.digest, known=False) for one in asked]


async def lookup(digest: str) -> Workflow:
    return make_workflow("own.mine", GRAPH, MANIFEST, digest=digest)


async def test_a_service_that_answers_nothing_leaves_a_workflow_unknown() -> None:
    service: Any = Silent()
    brought = Brought(service, lookup, lambda: None)
    brought.readiness(DIGEST)
    assert await brought.look() is False
    assert brought.readiness(DIGEST).readiness == "unknown"
