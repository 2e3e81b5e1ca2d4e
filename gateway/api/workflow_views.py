"""Callers' own workflows as callers see them, and what they send."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema

from gateway.backends.base import Readiness
from gateway.catalogue import Catalogue, shown_missing
from gateway.db.own_workflows import Head
from gateway.own_workflows.reading import MAX_BYTES
from gateway.own_workflows.registry import OwnWorkflow
from gateway.own_workflows.tool import NAME_PATTERN, OWN, WORKFLOWS_PATH, tool_name
from gateway.tool import JobOptions

_NAME = Field(
    max_length=64,
    pattern=NAME_PATTERN,
    description="a to z, 0 to 9 and -, at most 64; it becomes part of the path.",
)


class SendWorkflow(BaseModel):
    """A ComfyUI graph that is to become a tool."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, _NAME]
    graph: Annotated[
        JsonValue,
        # stated, not checked: `read_graph` says what is wrong with it, and what to do
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "object", "additionalProperties": True},
                    {"type": "string", "maxLength": MAX_BYTES},
                ],
                "title": "Graph",
            }
        ),
        Field(
            description="The graph in API format (ComfyUI: File → Export (API)), as an object or "
            "as the text of the file. A node titled `input: <name>` is a parameter.",
        ),
    ]
    manifest: dict[str, JsonValue] | None = Field(
        default=None,
        description="Where each parameter goes, as `docs/workflows.md` describes, as JSON. Absent: "
        "read off the titles of the nodes.",
    )


class OwnCall(JobOptions):
    """The workflow's own parameters, beside what every call may say of its job."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class VersionView(BaseModel):
    """One version of a workflow."""

    version: int
    digest: str = Field(description="SHA-256 of graph and manifest.")
    created_at: datetime


class WorkflowView(BaseModel):
    """A workflow of your own."""

    name: str
    title: str
    version: int = Field(description="Raised with each change.")
    digest: str = Field(description="SHA-256 of graph and manifest.")
    created_at: datetime
    readiness: Readiness = Field(
        description="`ready`; `missing`: calls answer 503; `unknown`: no GPU service was seen yet, "
        "calls wait."
    )
    missing: list[dict[str, JsonValue]] = Field(description="What is missing and where to get it.")
    tool: str = Field(description="What a batch names it, and what `GET /api/jobs` filters by.")
    path: str
    async_path: str
    status_path: str
    files_path: str


class WorkflowDetail(WorkflowView):
    """A workflow with all of its content."""

    versions: list[VersionView] = Field(description="The newest first.")
    params_schema: dict[str, Any] = Field(description="JSON Schema of the parameters.")
    examples: dict[str, dict[str, JsonValue]] = Field(description="Bodies that run as they stand.")
    graph: dict[str, JsonValue]
    manifest: dict[str, JsonValue] = Field(
        description="As it was sent, with all that was read off the graph."
    )


class WorkflowList(BaseModel):
    """One page of workflows, by name."""

    items: list[WorkflowView]
    next_cursor: str | None
    docs_url: str = Field(
        description="The documentation page with these workflows in it, signed for 24 hours."
    )


def workflow_view(catalogue: Catalogue, own: OwnWorkflow) -> WorkflowView:
    """Shape a workflow."""
    (variant,) = catalogue.families(own.tool)
    state = catalogue.readiness(variant)
    return WorkflowView(
        name=own.head.name,
        title=own.workflow.title,
        version=own.head.version,
        digest=own.head.digest,
        created_at=own.head.created_at.astimezone(UTC),
        readiness=state.readiness,
        missing=[shown_missing(item) for item in state.missing],
        tool=tool_name(own.head.name),
        path=own.tool.path,
        async_path=f"{own.tool.path}/async",
        status_path=f"{own.tool.path}/{{job_id}}",
        files_path=OWN.files_path or WORKFLOWS_PATH,
    )


def workflow_detail(
    catalogue: Catalogue, own: OwnWorkflow, versions: Sequence[Head]
) -> WorkflowDetail:
    """Shape a workflow with all of its content."""
    workflow = own.workflow
    return WorkflowDetail(
        **dict(workflow_view(catalogue, own)),
        versions=[
            VersionView(
                version=one.version,
                digest=one.digest,
                created_at=one.created_at.astimezone(UTC),
            )
            for one in versions
        ],
        params_schema=own.tool.params.model_json_schema(),
        examples=dict(own.tool.examples),
        graph=dict(workflow.graph),
        manifest=workflow.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True),
    )
