"""Every tool of the catalogue where its models are missing: what is missing is said, at once."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.tool import AnyTool
from gateway.tools import TOOLS
from gpu_server.workflow import Workflow, load_workflows
from tests.support.stack import ROOT, Stack, running

PATIENCE_S = 120
WORKFLOWS = load_workflows(Path(ROOT) / "workflows")


def default_workflow(tool: AnyTool) -> Workflow | None:
    """The workflow of the tool's default variant; None where no GPU service is needed."""
    found = (w for w in WORKFLOWS.values() if w.tool == tool.name)
    return next((w for w in found if tool.default_variant in (w.variant, w.name)), None)


GENERATED = [tool for tool in TOOLS if (w := default_workflow(tool)) is not None and w.models]
each_tool = pytest.mark.parametrize("tool", GENERATED, ids=lambda tool: tool.name)


def readiness(client: httpx.Client) -> dict[str, str]:
    """State of each tool's default variant."""
    return {
        tool["name"]: variant["readiness"]
        for tool in client.get("/api/tools").json()["items"]
        for variant in tool["variants"]
        if variant["name"] == tool["default_variant"]
    }


def until(client: httpx.Client, wanted: str) -> None:
    """Wait until the default variant of each tool is in that state."""
    deadline = time.monotonic() + PATIENCE_S
    while {state for name, state in readiness(client).items() if name in NAMES} != {wanted}:
        assert time.monotonic() < deadline, readiness(client)
        time.sleep(0.1)


NAMES = {tool.name for tool in GENERATED}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models = sorted({model.name for w in WORKFLOWS.values() for model in w.models})
    hidden = {"SIM_HIDE": json.dumps(models), "SIM_STEP_MS": "1"}
    with running(tmp_path_factory.mktemp("stack"), **hidden) as stack:
        with stack.client() as client:
            until(client, "missing")
        yield stack


@each_tool
def test_a_tool_whose_models_are_missing_says_which_and_where_to_get_them(
    client: httpx.Client, tool: AnyTool
) -> None:
    workflow = default_workflow(tool)
    assert workflow is not None
    body = next(iter(tool.examples.values()))
    for path in (tool.path, f"{tool.path}/async"):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "missing_model"), answer.text
        missing = {item["name"]: item for item in answer.json()["missing"]}
        assert {model.name for model in workflow.models} <= missing.keys()
        for model in workflow.models:
            assert missing[model.name]["url"] == model.url
    assert client.get("/api/jobs", params={"tool": tool.name}).json()["items"] == []


def test_once_the_models_are_there_the_tools_are_ready(client: httpx.Client, stack: Stack) -> None:
    stack.simulator(hide=[])
    until(client, "ready")
