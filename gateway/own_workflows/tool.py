"""A caller's workflow as a tool."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import Field, JsonValue

from gateway.examples import MUG, WHERE_THE_MUG_IS
from gateway.own_workflows.making import TOOL
from gateway.own_workflows.params import OwnParams, params_model
from gateway.tool import AnyTool, Tool, ToolResult
from gpu_server.workflow import Workflow
from gpu_server.workflow.param_schema import ParamSchema

WORKFLOWS_PATH = "/api/workflows"
NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,63}$"
_FOLDER = f"{TOOL}/"
_FILES = {"image": MUG, "mask": WHERE_THE_MUG_IS}


class OwnResult(ToolResult):
    """What a workflow of a caller's own made."""

    outputs: dict[str, list[str]] = Field(description="Stable paths of its files, by output.")
    texts: dict[str, list[str]] = Field(description="What it says, by output.")
    params: dict[str, JsonValue] = Field(description="Every value really used, the seed included.")


OWN: AnyTool = Tool(
    name=TOOL,
    summary="Run a workflow of your own",
    description="Runs a workflow that was sent to `POST /api/workflows`.",
    path=WORKFLOWS_PATH,
    # not below WORKFLOWS_PATH: what a workflow is named must never be taken for a file
    files_path="/api/outputs",
    prefix="outputs",
    params=OwnParams,
    result=OwnResult,
    by_output=True,
    params_key="params",
    reported={},
    default_variant="v1",
    timeout_s=3600,
    deadline_s=24 * 3600,
)
"""What all of them have in common: enough to show a job, whatever became of its workflow."""


def is_own(tool_name: str) -> bool:
    """Tell whether a job's tool is a caller's own workflow."""
    return tool_name.startswith(_FOLDER)


def tool_name(name: str) -> str:
    """Name the tool that a workflow is."""
    return f"{_FOLDER}{name}"


def workflow_name(tool: str) -> str:
    """Name the workflow that a tool is."""
    return tool.removeprefix(_FOLDER)


def run_path(name: str) -> str:
    """Where a workflow is run."""
    return f"{WORKFLOWS_PATH}/{name}/run"


def version_name(version: int) -> str:
    """Name a version as jobs name a variant."""
    return f"v{version}"


def own_tool(name: str, version: int, workflow: Workflow) -> AnyTool:
    """Make the tool of one version."""
    title = "Workflow_" + name.replace("-", "_")
    return replace(
        OWN,
        name=tool_name(name),
        summary=workflow.title,
        description=f"Runs the workflow `{name}`, version {version}. What it takes is read off its "
        "nodes; values not sent are those of its graph.",
        path=run_path(name),
        params=params_model(title, workflow),
        workflow=workflow,
        default_variant=version_name(version),
        examples={"as in the graph": _example(workflow)},
    )


def _example(workflow: Workflow) -> dict[str, JsonValue]:
    """Write a body that runs as it stands, as far as that can be known."""
    defaults = workflow.defaults
    found: dict[str, JsonValue] = {}
    for name, param in workflow.manifest.params.items():
        if param.upload is not None and param.required:
            file = _FILES.get(param.upload, "https://example.com/video.mp4")
            found[name] = [file] if param.chain is not None or param.items else file
        elif param.seed:
            found[name] = 7
        elif name in defaults:
            found[name] = defaults[name]
        elif param.required:
            literal = _literal(workflow, param.bind[0].to) if param.bind else None
            found[name] = literal if literal is not None else _some(param.json_schema)
    return found


def _literal(workflow: Workflow, address: str) -> JsonValue:
    node, _, key = address.partition(".")
    inputs: Mapping[str, JsonValue] = workflow.graph.get(node, {}).get("inputs", {})
    value = inputs.get(key)
    return None if isinstance(value, list | dict) else value


def _some(schema: ParamSchema | None) -> JsonValue:
    """Think up a value that fits."""
    if schema is None:
        return ""
    for given in (schema.examples, schema.enum):
        if given:
            return given[0]
    match schema.type:
        case "integer" | "number":
            return int(schema.minimum or 0)
        case "boolean":
            return False
        case "array":
            return []
        case _:
            return "x" * max(1, schema.min_length or 0)
