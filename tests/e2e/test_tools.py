"""Every tool of the catalogue through all three services: a new tool is tested by being listed."""

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway.media import media_fields
from gateway.tool import AnyTool
from gateway.tools import TOOLS
from gpu_server.workflow import Workflow, load_workflows
from tests.support.stack import Stack, running, wait_readiness

WORKFLOWS = load_workflows(Path(__file__).parents[2] / "workflows")
PATIENCE_S = 60
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
with_files = pytest.mark.parametrize(
    "tool", [tool for tool in TOOLS if media_fields(tool.params)], ids=lambda tool: tool.name
)
with_required = pytest.mark.parametrize(
    "tool",
    [t for t in TOOLS if any(f.is_required() for f in t.params.model_fields.values())],
    ids=lambda tool: tool.name,
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), SIM_STEP_MS="5") as stack:
        with stack.client() as client:
            wait_readiness(client, "flux1-dev", "ready")
        yield stack


@pytest.fixture(autouse=True)
def quick(stack: Stack) -> None:
    stack.simulator(step_ms=5, hide=[], slow_nodes={})


def smallest(tool: AnyTool) -> dict[str, Any]:
    return dict(next(iter(tool.examples.values())))


def default_workflow(tool: AnyTool) -> Workflow | None:
    """The workflow of the tool's default variant; None where no GPU service is needed."""
    found = (w for w in WORKFLOWS.values() if w.tool == tool.name)
    return next((w for w in found if tool.default_variant in (w.variant, w.name)), None)


def slow(stack: Stack, workflow: Workflow) -> None:
    """Let every node take its time: not each tool has a sampler."""
    classes = {node["class_type"] for node in workflow.graph.values()}
    stack.simulator(step_ms=1000, slow_nodes=dict.fromkeys(classes, 1000))


def ended(client: httpx.Client, tool: AnyTool, job_id: str) -> dict[str, Any]:
    return client.get(f"{tool.path}/{job_id}", params={"wait": PATIENCE_S}).json()


def begun(client: httpx.Client, tool: AnyTool, **headers: str) -> str:
    answer = client.post(f"{tool.path}/async", json=smallest(tool), headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"{tool.path}/{answer.json()['job_id']}"
    return answer.json()["job_id"]


def until_it_executes(client: httpx.Client, tool: AnyTool, job_id: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while client.get(f"{tool.path}/{job_id}").json()["status"] == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.02)


@each_tool
def test_its_first_example_runs_as_it_stands(client: httpx.Client, tool: AnyTool) -> None:
    answer = client.post(tool.path, json=smallest(tool), headers={"Prefer": "wait=90"})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    engine = "cpu" if default_workflow(tool) is None else "simulator"
    assert (result["success"], result["engine"]) == (True, engine)
    assert None not in [
        result[tool.params_key].get(name)
        # a picture is drawn anew only where there is a prompt
        for name in (("seed",) if tool.redraw else ("seed", "prompt"))
        if name in result[tool.params_key]
    ]
    if tool.text_key is not None:
        assert result[tool.text_key].startswith("[simulated]")
        assert result["files"] == []
        return
    assert result["files"]
    urls = [file["url"] for file in result["files"]]
    if tool.urls_key is not None:
        assert result[tool.urls_key] == urls
    else:
        assert tool.url_key is not None
        assert result[tool.url_key] == urls[0]
    for file in result["files"]:
        kept = client.get(file["url"])
        assert (kept.headers["content-type"], len(kept.content)) == (
            file["media_type"],
            file["bytes"],
        )
        if file["media_type"].startswith("image/"):
            assert Image.open(io.BytesIO(kept.content)).size == (file["width"], file["height"])


@each_tool
def test_without_waiting_it_answers_with_a_job_that_completes(
    client: httpx.Client, tool: AnyTool
) -> None:
    job = ended(client, tool, begun(client, tool))
    assert (job["status"], job["error"], job["progress"]) == ("completed", None, 1.0)
    assert job["tool"] == tool.name
    assert job["variant"] == job["result"]["variant"]


@each_tool
def test_cancelled_it_ends_and_stays_cancelled(
    client: httpx.Client, stack: Stack, tool: AnyTool
) -> None:
    workflow = default_workflow(tool)
    if workflow is not None:
        slow(stack, workflow)
    job_id = begun(client, tool)
    # work without a GPU cannot be slowed down: it is stopped while its process starts
    if workflow is not None:
        until_it_executes(client, tool, job_id)
    answer = client.post(f"/api/jobs/{job_id}/cancel")
    assert answer.status_code == 200, answer.text
    assert ended(client, tool, job_id)["status"] == "cancelled"


@each_tool
def test_an_unknown_field_is_named(client: httpx.Client, tool: AnyTool) -> None:
    answer = client.post(tool.path, json=smallest(tool) | {"hight": 5})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "hight")


@with_required
def test_a_required_field_left_out_is_named(client: httpx.Client, tool: AnyTool) -> None:
    needed = [name for name, info in tool.params.model_fields.items() if info.is_required()]
    for name in needed:
        body = smallest(tool)
        del body[name]
        answer = client.post(tool.path, json=body)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name)


@with_files
def test_an_address_nobody_may_fetch_is_refused_or_fails_with_its_name(
    client: httpx.Client, tool: AnyTool
) -> None:
    for name, taken in media_fields(tool.params).items():
        for address in ("http://10.0.0.1/x.png", "/api/images/nothing.png", "file:/etc/hosts"):
            body = smallest(tool) | {name: [address] if taken.most > 1 else address}
            answer = client.post(tool.path, json=body)
            assert answer.status_code == 422, answer.text
            assert name in answer.text


@each_tool
def test_an_unknown_variant_names_the_known_ones(client: httpx.Client, tool: AnyTool) -> None:
    answer = client.post(tool.path, json=smallest(tool) | {"variant": "nothing"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_variant")
    assert tool.default_variant in answer.json()["errors"][0]["message"]


@each_tool
def test_a_job_under_way_survives_the_death_of_gateway_and_gpu_service(
    client: httpx.Client, stack: Stack, tool: AnyTool
) -> None:
    before = stack.simulator(step_ms=150)["counts"]["executions"]
    job_id = begun(client, tool)
    until_it_executes(client, tool, job_id)
    stack.kill("gateway", "gpu_server")
    stack.start("gpu_server", "gateway")
    stack.simulator(step_ms=5)
    assert ended(client, tool, job_id)["status"] == "completed"
    on_gpu = default_workflow(tool) is not None
    assert stack.simulator()["counts"]["executions"] == before + on_gpu
