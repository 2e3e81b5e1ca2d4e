"""Jobs and results as callers see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, cast

from fastapi import Response
from pydantic import BaseModel, Field, JsonValue, SerializeAsAny

from gateway.errors import JobCancelled, JobFailed
from gateway.job import Artifact, Job, JobError, JobStatus, Outcome
from gateway.own_workflows.tool import OWN, is_own
from gateway.security.signing import Signer
from gateway.storage.base import Storage
from gateway.tool import AnyTool, FileView, ToolResult

LINK_LIFETIME = timedelta(hours=24)

_STATUS = {
    "missing_model": 503,
    "missing_node": 503,
    "storage_unavailable": 503,
    "deadline_exceeded": 504,
    "timeout": 504,
}

R = TypeVar("R", bound=ToolResult)


class JobErrorView(BaseModel):
    """Why a job failed."""

    code: str = Field(description="Stable code, listed in `docs/errors.md`.")
    message: str


class JobView(BaseModel, Generic[R]):
    """A job, as every route shows it."""

    job_id: str
    status: JobStatus
    progress: float = Field(ge=0, le=1, description="How far it is, 0 to 1.")
    result: SerializeAsAny[R] | None
    error: JobErrorView | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    tool: str
    variant: str
    priority: int
    deadline_at: datetime
    eta_seconds: float | None = Field(
        description="Seconds from now until it should be done, judged by the latest jobs of its "
        "kind and by what is ahead of it; null once it has ended, or while nothing was measured."
    )
    webhook_url: str | None
    batch_id: str | None
    events_url: str = Field(description="Server-sent events, signed for 24 hours.")

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Name the jobs of one tool in the documentation: `GenerateJob`."""
        result = cast("type", params[0])
        return f"{result.__name__.removesuffix('Result')}Job"


class Submitted(BaseModel):
    """A job that was taken."""

    job_id: str
    status: JobStatus
    eta_seconds: float | None = Field(
        description="Seconds until it should be done; null while nothing was measured."
    )


class JobList(BaseModel):
    """One page of jobs, newest first."""

    items: list[JobView[ToolResult]]
    next_cursor: str | None


def job_view_of(tool: AnyTool) -> type[BaseModel]:
    """Name the model of one tool's jobs, for its documentation."""
    return cast("type[BaseModel]", JobView.__class_getitem__(tool.result))


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Shapes jobs for callers: paths, fresh links, values really used."""

    tools: Mapping[str, AnyTool]
    storage: Storage
    signer: Signer

    def tool(self, name: str) -> AnyTool:
        """Find the tool of a job; of a caller's own workflow what all of them have in common."""
        return OWN if is_own(name) else self.tools[name]

    def job(self, job: Job, eta_seconds: float | None = None) -> JobView[ToolResult]:
        """Shape a job; `eta_seconds` from now."""
        return JobView[ToolResult](
            job_id=job.id,
            status=job.status,
            progress=1.0 if job.status == "completed" else job.progress,
            result=self.result(job),
            error=shown_error(job),
            created_at=_utc(job.created_at),
            started_at=_utc(job.started_at) if job.started_at else None,
            finished_at=_utc(job.finished_at) if job.finished_at else None,
            tool=job.tool,
            variant=job.variant,
            priority=job.priority,
            deadline_at=_utc(job.deadline_at),
            eta_seconds=eta_seconds,
            webhook_url=job.webhook_url,
            batch_id=job.batch_id,
            events_url=self.signer.link(f"/api/jobs/{job.id}/events", LINK_LIFETIME),
        )

    def result(self, job: Job) -> ToolResult | None:
        """Shape what a completed job made; None for any other."""
        if job.status != "completed" or job.outcome is None:
            return None
        tool, outcome = self.tool(job.tool), job.outcome
        used: dict[str, JsonValue] = {**job.params, **job.call.params, **outcome.params}
        if "prompt" in job.params:
            # a style changes what the model is told, not what the caller asked for
            used["prompt"] = job.params["prompt"]
        files = [self._file(tool, artifact) for artifact in job.artifacts]
        first = files[0] if files else None
        kept = [
            file
            for file, artifact in zip(files, job.artifacts, strict=True)
            if artifact.removed_at is None
        ]
        return tool.result.model_validate(
            {
                "job_id": job.id,
                **(_by_output(job, kept) if tool.by_output else _made(tool, outcome, first, kept)),
                "r2_path": first.r2_path if first else None,
                "files": kept,
                tool.params_key: used
                if tool.by_output
                else {shown: used.get(name) for shown, name in tool.reported.items()},
                **{name: used.get(name) for name in tool.echoed},
                "duration_seconds": outcome.duration_seconds,
                "engine": outcome.engine,
                "backend": outcome.backend,
                "variant": job.variant,
            }
        )

    def _file(self, tool: AnyTool, artifact: Artifact) -> FileView:
        path = f"{tool.files_path}/{artifact.filename}"
        return FileView(
            url=path,
            link=self.signer.link(path, LINK_LIFETIME),
            r2_path=self.storage.address(artifact.key),
            media_type=artifact.media_type,
            bytes=artifact.bytes,
            sha256=artifact.sha256,
            width=artifact.width,
            height=artifact.height,
            frames=artifact.frames,
            duration_s=artifact.duration_s,
            faces=artifact.faces,
        )


def _by_output(job: Job, kept: Sequence[FileView]) -> dict[str, JsonValue]:
    """Files and texts by the names that the workflow has for its outputs."""
    there = (artifact for artifact in job.artifacts if artifact.removed_at is None)
    urls: dict[str, list[JsonValue]] = {}
    for file, artifact in zip(kept, there, strict=True):
        urls.setdefault(artifact.output, []).append(file.url)
    texts = job.outcome.texts if job.outcome else {}
    said: dict[str, JsonValue] = {name: list[JsonValue](lines) for name, lines in texts.items()}
    return {"outputs": dict[str, JsonValue](urls), "texts": said}


def _made(
    tool: AnyTool, outcome: Outcome, first: FileView | None, kept: Sequence[FileView]
) -> dict[str, JsonValue]:
    """The tool's own field: the first file's path, the paths of all, or the text."""
    found: dict[str, JsonValue] = {}
    if tool.url_key is not None:
        found[tool.url_key] = first.url if first else None
    if tool.urls_key is not None:
        found[tool.urls_key] = [file.url for file in kept]
    if tool.text_key is not None:
        found[tool.text_key] = "\n".join(outcome.texts.get(tool.text_key, ()))
    return found


def failure(job: Job) -> JobFailed | None:
    """Make the error that a waited-for job's failure is answered with; None unless it failed."""
    if job.status == "cancelled":
        return JobCancelled(job.id)
    if job.status != "failed":
        return None
    error = job.error or JobError(code="job_failed", message="The job failed.")
    return JobFailed(job.id, error.code, _status(error), error.message)


def shown_error(job: Job) -> JobErrorView | None:
    """Shape why a job failed."""
    return JobErrorView(code=job.error.code, message=job.error.message) if job.error else None


def as_json(
    model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Answer a model, serialised once and validated once."""
    return Response(
        model.model_dump_json(),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def _status(error: JobError) -> int:
    if error.kind == "usage":
        return 422
    return _STATUS.get(error.code, 502)


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
