"""What the GPU service remembers of workflows that are in no files there."""

import threading
from typing import Any

import pytest

from gpu_server import catalogue as module
from gpu_server.catalogue import Catalogue
from gpu_server.lru import Lru
from gpu_server.protocol import Missing, WorkflowToCheck
from gpu_server.workflow import Workflow, content_digest
from gpu_server.workflow.node_specs import ObjectInfo

Json = dict[str, Any]
MANIFEST: Json = {
    "manifest": 1,
    "tool": "workflows",
    "title": "mine",
    "params": {},
    "outputs": {"shown": {"node": "1", "kind": "text"}},
}


class Comfy:
    """Answers with what it is given."""

    def __init__(self) -> None:
        self.available = True
        self.engine = "comfyui"
        inputs: Json = {"required": {"text": ["STRING", {}]}}
        shows: Json = {"input": inputs, "output": [], "output_node": True}
        self.info: Json = {"Shows": shows}

    async def object_info(self, *, refresh: bool = False) -> ObjectInfo:
        del refresh
        return self.info


@pytest.fixture
def comfy() -> Comfy:
    return Comfy()


@pytest.fixture
def catalogue(comfy: Comfy) -> Catalogue:
    client: Any = comfy
    return Catalogue(client)


def whole(text: str) -> WorkflowToCheck:
    graph: Json = {"1": {"class_type": "Shows", "inputs": {"text": text}}}
    digest = content_digest(graph, MANIFEST)
    return WorkflowToCheck(digest=digest, graph=graph, manifest=MANIFEST)


def named(one: WorkflowToCheck) -> WorkflowToCheck:
    return WorkflowToCheck(digest=one.digest)


async def test_more_workflows_than_are_kept_are_known_as_long_as_comfyui_says_the_same(
    catalogue: Catalogue, comfy: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_kept", Lru[str, Workflow](2))
    many = [whole(str(n)) for n in range(5)]
    await catalogue.check(many)
    again = await catalogue.check([named(one) for one in many])
    assert [(one.known, one.readiness) for one in again] == [(True, "ready")] * 5
    comfy.info = {}
    changed = await catalogue.check([named(one) for one in many])
    # what is kept is looked at anew, the others are asked for
    assert [one.known for one in changed] == [False, False, False, True, True]
    assert [one.readiness for one in changed[3:]] == ["missing", "missing"]


async def test_no_graph_is_asked_for_while_comfyui_is_away(
    catalogue: Catalogue, comfy: Comfy
) -> None:
    comfy.available = False
    (seen,) = await catalogue.check([named(whole("a"))])
    assert (seen.known, seen.readiness) == (True, "unknown")


async def test_graphs_are_read_and_checked_beside_the_event_loop(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    make, check = module.make_workflow, module.check

    def making(*args: Any, **kwargs: Any) -> Workflow:
        threads.append(threading.current_thread())
        return make(*args, **kwargs)

    def checking(workflow: Workflow, info: ObjectInfo) -> list[Missing]:
        threads.append(threading.current_thread())
        return check(workflow, info)

    monkeypatch.setattr(module, "make_workflow", making)
    monkeypatch.setattr(module, "check", checking)
    (seen,) = await catalogue.check([whole("a")])
    assert seen.readiness == "ready"
    assert len(threads) == 2
    assert threading.main_thread() not in threads
